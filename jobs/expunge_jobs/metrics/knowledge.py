"""Share of questions answered exactly, by set and task."""

from __future__ import annotations

from expunge_jobs.metrics import Column, Missing, Rows, Scores, cells, mean

VERSION = 1
COLUMNS = (Column("know F", "knowledge/forget", "lower"), Column("know R", "knowledge/retain"))


def compute(rows: Rows) -> Scores:
    by_cell = cells(rows, "qa")
    out: Scores = {f"knowledge/{s}/{task}": mean(v) for (s, task), v in by_cell.items()}
    for name in ("forget", "retain"):
        values = [x for (s, _), v in by_cell.items() if s == name for x in v]
        out[f"knowledge/{name}"] = mean(values) if values else Missing(f"no question rows in {name}")
    return out
