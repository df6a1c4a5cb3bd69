"""Share of questions answered exactly, by set and task."""

from __future__ import annotations

from expunge_jobs.metrics import Column, Missing, Rows, Scores, cells, mean

VERSION = 2
COLUMNS = (
    Column("know F", "knowledge/forget", "lower"),
    Column("know R", "knowledge/retain"),
    Column("know~ F", "knowledge_recall/forget", "lower", optional=True),
    Column("know~ R", "knowledge_recall/retain", optional=True),
)


def compute(rows: Rows) -> Scores:
    """Return the means, and the recall of answers that are sentences."""
    by_cell = cells(rows, "qa")
    out: Scores = {f"knowledge/{s}/{task}": mean(v) for (s, task), v in by_cell.items()}
    for name in ("forget", "retain"):
        values = [x for (s, _), v in by_cell.items() if s == name for x in v]
        out[f"knowledge/{name}"] = mean(values) if values else Missing(f"no question rows in {name}")
        recalls = [r.recall for r in rows if r.kind == "qa" and r.set == name and r.recall is not None]
        if recalls:
            out[f"knowledge_recall/{name}"] = mean(recalls)
    return out
