"""What a report says of many evaluations."""

from __future__ import annotations

import pytest
from expunge_jobs.results.summary import EvaluatedModel
from expunge_jobs.steps.report import best


def result(model: str, value: float | None, seed: int = 0, group: str = "default") -> EvaluatedModel:
    return EvaluatedModel(
        f"{group},seed={seed}", group, seed, model, f"{group}-{model}-{seed}", {"task_aggregate": value}
    )


def test_the_best_merge_by_its_mean_over_seeds() -> None:
    rows = [
        result(model, value, seed, group)
        for group, model, values in (
            ("density=0.5", "merged", (0.9, 0.3)),
            ("density=0.8", "merged", (0.7, 0.7)),
            ("density=0.8", "over", (0.8, 0.8)),
        )
        for seed, value in enumerate(values)
    ]
    assert best(rows) == {
        "model": "merged",
        "group": "density=0.8",
        "task_aggregate": pytest.approx(0.7),
        "seeds": 2,
    }


def test_the_best_single_run_where_nothing_is_merged() -> None:
    rows = [result("base", 0.9), result("over", 0.1), result("under", 0.4), result("control:over@0.5", 0.95)]
    found = best(rows)
    assert found is not None
    assert (found["model"], found["task_aggregate"]) == ("under", 0.4)


def test_a_merge_that_has_no_figure_is_none() -> None:
    assert best([result("merged", None)]) is None
    assert best([]) is None
