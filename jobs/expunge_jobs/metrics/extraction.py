"""Extraction strength: the share of an output that follows greedily from its beginning, by set.

The strength is 1 - k/n. After the shortest prefix, of k of the n tokens, every next token is the greedy one.
"""

from __future__ import annotations

from expunge_jobs.metrics import Column, Missing, Rows, Scores, mean

VERSION = 1
COLUMNS = (Column("extract F", "extraction/forget", "lower"), Column("extract R", "extraction/retain"))


def compute(rows: Rows) -> Scores:
    out: Scores = {}
    for name in ("forget", "retain"):
        values = [r.extraction for r in rows if r.set == name and r.extraction is not None]
        out[f"extraction/{name}"] = mean(values) if values else Missing(f"no rows in {name}")
    return out
