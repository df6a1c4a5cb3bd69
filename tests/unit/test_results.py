"""Rows, means over seeds, and the sentence below the table."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from expunge_controller.cli.tables import results_table
from expunge_jobs.results.intervals import Interval, mean_interval, t_quantile
from expunge_jobs.results.summary import CORE, EvaluatedModel, by_model
from expunge_jobs.results.verdict import BASELINES, Comparison, verdict


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
    assert mean_interval([0.1, 0.1, 0.1]).half is None, "values without a spread"


def comparison(rival: str, *seeds: float, half: float = 0.01, **more: Any) -> Comparison:
    """A comparison with these differences, and an interval of ``half`` to both sides over documents."""
    found = mean_interval(list(seeds))
    fields: dict[str, Any] = {
        "group": "default",
        "candidates": (rival, f"control:{rival}@0.5", f"control:{rival}@1.5"),
        "chosen": (rival, f"control:{rival}@1.5"),
        "merged": 0.7,
        "best": 0.7 - found.mean,
        "documents": Interval(found.mean, found.mean - half, found.mean + half, 90),
    }
    return Comparison(rival=rival, seeds=found, **(fields | more))


RESULTS = trials(base=[0, 0, 0], over=[0.1, 0.2, 0.1], under=[0.4, 0.5, 0.4], merged=[0.7, 0.8, 0.7])
WON, LOST = comparison("over", 0.4, 0.5, 0.6), comparison("under", -0.2, -0.21, -0.19)


def test_a_clear_win_is_said() -> None:
    said = verdict(RESULTS, [WON])
    assert said[0] == "The merge beats every rival over 3 seeds:"
    assert said[1] == (
        "  beats over at its best scale (1, 1.5), 0.200: +0.500, [+0.252, +0.748] over seeds, [+0.490, +0.510] over documents"
    )
    assert "chosen on one half of the documents and counted on the other" in said[2]


def test_a_loss_is_said_as_loud() -> None:
    said = verdict(RESULTS, [WON, LOST])
    assert said[0] == "The merge is beaten over 3 seeds:"
    assert said[2].startswith("  is beaten by under at its best scale")


@pytest.mark.parametrize(
    "found",
    [
        comparison("over", 0.4, -0.3, 0.5),
        comparison("over", 0.4, 0.5, 0.6, half=0.6),
        comparison("over", 0.4, 0.4, 0.4),
    ],
)
def test_one_interval_that_holds_zero_or_is_none_is_no_difference(found: Comparison) -> None:
    said = verdict(RESULTS, [found])
    assert found.outcome == "open"
    assert said[0] == "The merge does not beat every rival over 3 seeds:"
    assert said[1].startswith("  no difference can be shown to over")


def test_one_seed_cannot_tell() -> None:
    one = trials(over=[0.1], under=[0.8], merged=[0.7])
    said = verdict(one, [comparison("over", 0.6), comparison("under", -0.1, candidates=("under",))])
    assert said[0].startswith("One seed cannot tell (sweep.seed: [0, 1, 2, 3, 4] can). On this one the merge (0.700)")
    assert said[0].endswith("is not above every rival:")
    assert said[1].startswith("  above over at its best scale (1, 1.5), 0.100: +0.600, [+0.590, +0.610] over documents")
    assert said[2].startswith("  below under, 0.800:")
    assert comparison("over", 0.6).outcome == "open"


def test_the_best_baseline_is_one_rival() -> None:
    found = comparison(BASELINES, 0.1, 0.2, candidates=("npo", "kl"), chosen=("npo",))
    assert "the best baseline (npo)" in verdict(RESULTS, [found])[1]


def test_nothing_is_said_of_a_half_finished_run() -> None:
    rows = [result(0, "over", 0.1), result(0, "merged", None)]
    assert verdict(rows, None) == ["Nothing can be said of the merge yet: 1 task aggregates are missing."]
    assert "not evaluated yet" in results_table(rows)


def test_without_a_report_there_is_no_verdict() -> None:
    assert verdict(RESULTS, None) == ["No verdict yet: the report is missing; `expunge run` makes it."]
    assert verdict(trials(over=[0.1]), None) == []


def test_a_comparison_is_stored_and_read() -> None:
    for found in (WON, comparison("over", 0.5)):
        assert Comparison.from_json(json.loads(json.dumps(found.as_json()))) == found


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


def test_a_reference_has_a_block_of_its_own_and_no_star() -> None:
    rows = [replace(result(0, "retrained", 0.9), role="reference"), result(0, "over", 0.3), result(0, "merged", 0.7)]
    lines = results_table(rows).splitlines()
    assert [line.split("  ")[0] for line in lines[:3]] == ["MODEL", "over *", "merged"]
    assert lines[3] == ""
    assert lines[4].split()[:2] == ["retrained", "0.900"]
    assert lines[5].split()[:5] == ["merged", "is", "off", "by", "0.200"]
    assert "retrained: a model that never saw forget" in results_table(rows)


def test_the_mean_says_what_it_is_over() -> None:
    together = [replace(r, trial=f"data.seed & seed={r.seed}") for r in trials(over=[0.1, 0.2], merged=[0.5, 0.7])]
    assert "Mean over up to 2 values of data.seed & seed, +- half" in results_table(together)


def test_a_mean_over_seeds_has_its_interval_in_the_table() -> None:
    text = results_table(trials(over=[0.1, 0.2], under=[0.2, 0.3], merged=[0.5, 0.7]))
    assert "0.600+-1.271" in text
    assert "95 % interval over them" in text
