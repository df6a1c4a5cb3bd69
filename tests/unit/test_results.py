"""Rows, means over seeds, and the sentence below the table."""

from __future__ import annotations

import pytest
from expunge_controller.cli.tables import results_table
from expunge_jobs.results.intervals import mean_interval, t_quantile
from expunge_jobs.results.summary import CORE, EvaluatedModel, by_model
from expunge_jobs.results.verdict import verdict


def result(seed: int, model: str, value: float | None, group: str = "default", step: str = "") -> EvaluatedModel:
    figures: dict[str, float | None] = dict.fromkeys(CORE, value)
    reasons = {} if value is not None else dict.fromkeys(CORE, "not evaluated yet")
    trial = f"seed={seed}" if group == "default" else f"{group},seed={seed}"
    return EvaluatedModel(trial, group, seed, model, step or f"{model}-{seed}-{group}", figures, reasons)


def trials(**values: list[float]) -> list[EvaluatedModel]:
    return [result(seed, model, v) for model, each in values.items() for seed, v in enumerate(each)]


@pytest.mark.parametrize(
    ("degrees", "table"),
    [(1, 12.706), (2, 4.303), (3, 3.182), (4, 2.776), (5, 2.571), (9, 2.262), (30, 2.042), (120, 1.980)],
)
def test_t_quantiles_are_the_table_s(degrees: int, table: float) -> None:
    assert t_quantile(0.975, degrees) == pytest.approx(table, abs=5e-4)


def test_mean_and_interval_of_known_values() -> None:
    found = mean_interval([1.0, 2.0, 3.0, 4.0, 5.0])
    # s = sqrt(2.5), half = 2.776 s / sqrt(5)
    assert found.mean == 3.0
    assert found.half == pytest.approx(1.963, abs=1e-3)
    assert mean_interval([2.0]).half is None


def test_a_clear_win_is_said() -> None:
    said = verdict(trials(base=[0, 0, 0], over=[0.1, 0.2, 0.1], under=[0.4, 0.5, 0.4], merged=[0.7, 0.8, 0.7]))
    assert said[0].startswith("The merge beats every specialist, baseline and control. Over 3 seeds it beats over")


def test_an_interval_that_holds_zero_is_no_difference() -> None:
    said = verdict(trials(over=[0.1, 0.2, 0.1], under=[0.9, 0.5, 0.7], merged=[0.7, 0.8, 0.7]))[0]
    assert "does NOT beat every" in said
    assert "beats over" in said
    assert "shows NO DIFFERENCE to under" in said


def test_a_loss_is_said_as_loud() -> None:
    said = verdict(trials(over=[0.1, 0.2, 0.1], under=[0.9, 0.95, 0.9], merged=[0.7, 0.8, 0.7]))[0]
    assert "IS BEATEN BY under" in said


def test_one_seed_cannot_tell() -> None:
    said = verdict(trials(over=[0.1], merged=[0.7], under=[0.8]))[0]
    assert "NOT above under (0.800)" in said
    assert "one seed cannot tell" in said


def test_nothing_is_said_of_a_half_finished_run() -> None:
    rows = [result(0, "over", 0.1), result(0, "merged", None)]
    assert verdict(rows) == ["Nothing can be said of the merge yet: 1 task aggregates are missing."]
    assert "not evaluated yet" in results_table(rows)


def test_what_groups_share_stands_once_and_the_best_single_run_is_marked() -> None:
    rows = []
    for group in ("merge.density=0.2", "merge.density=0.8"):
        rows += [
            result(0, "base", 0.0, group, "b"),
            result(0, "over", 0.3, group, "o"),
            result(0, "under", 0.2, group, "u"),
        ]
        rows += [result(0, "merged", 0.5, group)]
    table = by_model(rows)
    assert [(r.model, r.group, r.best_single) for r in table] == [
        ("base", "", False),
        ("over", "", True),
        ("under", "", False),
        ("merged", "merge.density=0.2", False),
        ("merged", "merge.density=0.8", False),
    ]


def test_a_mean_over_seeds_has_its_interval_in_the_table() -> None:
    text = results_table(trials(over=[0.1, 0.2], under=[0.2, 0.3], merged=[0.5, 0.7]))
    assert "0.600+-1.271" in text
    assert "95 % interval over seeds" in text
