"""The step that writes an experiment's results as one file.

A user who watches hundreds of experiments need not read every evaluation. The step loads no torch.
The artifact is ``results.json`` (the public contract of ``expunge results -o json``).
The manifest holds the best model and the verdict.
"""

from __future__ import annotations

import json
from typing import Any

from expunge_jobs.results.summary import EvaluatedModel, by_model, collect, is_single
from expunge_jobs.results.verdict import verdict
from expunge_jobs.runtime.context import StepContext
from expunge_jobs.tasks.tasks import ReportTask


def run(task: ReportTask, context: StepContext) -> dict[str, Any]:
    """Collect the experiment's results and return the receipt's figures.

    The step reads every evaluation that the experiment's record names.
    """
    record = json.loads(context.store.get(task.record)[0])
    results = collect(context.store, [EvaluatedModel(**row) for row in record["models"]])
    table = {"experiment": record["experiment"]["name"], "models": [r.as_json() for r in results]}
    (context.out / "results.json").write_text(json.dumps(table, indent=1, allow_nan=False))
    return {"best": best(results), "verdict": verdict(results)}


def best(results: list[EvaluatedModel]) -> dict[str, Any] | None:
    """Return the merge with the highest mean task aggregate over seeds.

    If nothing is merged, the best single fine-tune takes the place of the merge.
    """
    rows = [(row, row.interval("task_aggregate")) for row in by_model(results)]
    merged = [(row, found) for row, found in rows if row.model == "merged" and found]
    ranked = merged or [(row, found) for row, found in rows if is_single(row.model) and found]
    if not ranked:
        return None
    row, found = max(ranked, key=lambda pair: pair[1].mean)
    return {"model": row.model, "group": row.group, "task_aggregate": found.mean, "seeds": len(row.models)}
