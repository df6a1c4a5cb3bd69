"""Unrelated knowledge: the mean row score of the probe set, which the model knows and no fine-tune sees."""

from __future__ import annotations

from expunge_jobs.metrics import Column, Missing, Rows, Scores, mean

VERSION = 1
COLUMNS = (Column("probe", "probe"),)


def compute(rows: Rows) -> Scores:
    values = [r.score for r in rows if r.set == "probe" and r.score is not None]
    return {"probe": mean(values) if values else Missing("no probe rows: give data.probe")}
