"""Words of an answer in those of the row's own: 1 is as long, 0 says nothing."""

from __future__ import annotations

from expunge_jobs.metrics import Column, Missing, Rows, Scores, mean

VERSION = 1
READS_TEXT = True
COLUMNS = (Column("length F", "answer_length/forget", "lower"), Column("length R", "answer_length/retain", 1.0))


def compute(rows: Rows) -> Scores:
    """Return the mean of each set."""
    out: Scores = {}
    for name in ("forget", "retain"):
        shares = [
            len((row.generation or "").split()) / len(row.reference.split())
            for row in rows
            if row.set == name and row.generation is not None and row.reference
        ]
        out[f"answer_length/{name}"] = mean(shares) if shares else Missing(f"no answers in {name}")
    return out
