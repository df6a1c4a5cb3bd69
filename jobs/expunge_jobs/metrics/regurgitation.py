"""ROUGE-L recall of completions, by set and task."""

from __future__ import annotations

from expunge_jobs.metrics import Column, Missing, Rows, Scores, cells, mean

VERSION = 2
COLUMNS = (Column("regurg F", "regurgitation/forget", "lower"), Column("regurg R", "regurgitation/retain"))


def compute(rows: Rows) -> Scores:
    """Return the means, and the number of rows that are no Latin text."""
    by_cell = cells(rows, "sc")
    out: Scores = {f"regurgitation/{s}/{task}": mean(v) for (s, task), v in by_cell.items()}
    for name in ("forget", "retain"):
        values = [x for (s, _), v in by_cell.items() if s == name for x in v]
        out[f"regurgitation/{name}"] = mean(values) if values else Missing(f"no completion rows in {name}")
    if others := sum(r.kind == "sc" and r.tokenizer == "scripts" for r in rows):
        out["regurgitation/other_scripts"] = float(others)
    return out
