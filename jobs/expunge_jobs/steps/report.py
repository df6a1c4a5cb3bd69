"""The step that writes an experiment's results as one file.

A user who watches hundreds of experiments need not read every evaluation. The step loads numpy, but no torch.
The artifact is ``results.json`` (the public contract of ``expunge results -o json``).
``comparisons.json`` is the part of it that the verdict reads. The manifest holds the best model.
"""

from __future__ import annotations

import json
from typing import Any

from expunge_jobs.analysis.comparison import compare
from expunge_jobs.results.documents import read_document_scores
from expunge_jobs.results.summary import EvaluatedModel, by_model, collect
from expunge_jobs.results.verdict import COMPARISONS
from expunge_jobs.runtime.context import StepContext
from expunge_jobs.tasks.tasks import ReportTask


def run(task: ReportTask, context: StepContext) -> dict[str, Any]:
    """Collect the experiment's results and return the receipt's figures.

    The step reads every evaluation that the experiment's record names.
    """
    record = json.loads(context.store.get(task.record)[0])
    results = collect(context.store, [EvaluatedModel(**row) for row in record["models"]])
    compared = [c.as_json() for c in compare(results, lambda key: read_document_scores(context.store, key))]
    table = {
        "experiment": record["experiment"]["name"],
        "models": [r.as_json() for r in results],
        "comparisons": compared,
    }
    (context.out / "results.json").write_text(json.dumps(table, indent=1, allow_nan=False))
    (context.out / COMPARISONS).write_text(json.dumps(compared, allow_nan=False))
    return {"best": best(results)}


def best(results: list[EvaluatedModel]) -> dict[str, Any] | None:
    """Return the merge with the highest mean task aggregate over seeds.

    If nothing is merged, the best single fine-tune takes the place of the merge.
    """
    rows = [(row, row.interval("task_aggregate")) for row in by_model(results)]
    merged = [(row, found) for row, found in rows if row.model == "merged" and found]
    ranked = merged or [(row, found) for row, found in rows if row.is_single and found]
    if not ranked:
        return None
    row, found = max(ranked, key=lambda pair: pair[1].mean)
    return {"model": row.model, "group": row.group, "task_aggregate": found.mean, "seeds": len(row.models)}
