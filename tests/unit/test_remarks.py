"""What is said before the verdict: whether there is anything to judge."""

from __future__ import annotations

from dataclasses import replace

import pytest
from expunge_controller.cli.tables import results_table
from expunge_jobs.results.remarks import remarks
from expunge_jobs.results.summary import CORE, EvaluatedModel, by_model


def model(name: str, group: str = "default", seed: int = 0, **scores: float) -> EvaluatedModel:
    """A model with these scores, ``F`` for all of forget."""
    forget = scores.pop("F", None)
    metrics: dict[str, float | None] = dict.fromkeys(CORE)
    if forget is not None:
        metrics |= dict.fromkeys(("regurgitation/forget", "knowledge/forget", "extraction/forget"), forget)
    return EvaluatedModel(group, group, seed, name, f"{group}{name}{seed}", metrics | scores)


def test_a_merge_that_says_what_the_base_says_has_forgotten_nothing() -> None:
    same = [model("base", F=1.0), model("merged", F=0.998)]
    assert remarks(same) == ["merged says of forget what base says: nothing was forgotten."]
    assert remarks(same, lambda _: 0.1134) == [
        "merged says of forget what base says: nothing was forgotten (norm of the update: 0.113)."
    ]
    assert remarks([model("base", F=1.0), model("merged", F=0.9)]) == []


def test_one_score_that_differs_is_something_forgotten() -> None:
    merged = model("merged", **{"F": 1.0, "knowledge/forget": 0.5})
    assert remarks([model("base", F=1.0), merged]) == []


def test_a_base_that_knows_nothing_of_forget_has_nothing_to_forget() -> None:
    (line,) = remarks([model("base", F=0.011), model("merged", F=0.011)])
    assert line.startswith("The base knows 1% of forget: there is nothing to forget here. Check data.template,")


@pytest.mark.parametrize(
    ("auc", "words"), [(1.0, "can still be told"), (0.0, "higher loss than any other"), (0.9, ""), (0.5, "")]
)
def test_membership_that_still_tells_every_document(auc: float, words: str) -> None:
    found = remarks([model("base", F=1.0), model("merged", F=0.1, mia_auc=auc)])
    assert len(found) == bool(words)
    assert words in "".join(found)


def test_each_group_of_a_sweep_by_its_name_and_a_shared_base_once() -> None:
    rows = [EvaluatedModel(g, g, 0, "base", "b", model("base", F=1.0).metrics) for g in ("a", "b")]
    rows += [model("merged", "a", F=1.0), model("merged", "b", F=0.2)]
    assert remarks(rows) == ["a: merged says of forget what base says: nothing was forgotten."]


def test_models_that_were_not_evaluated_alike_are_named() -> None:
    old, new = {"device": "cpu", "torch": "2.14.0"}, {"device": "NVIDIA H100", "torch": "2.14.0"}
    rows = [replace(model("base", F=1.0), made_with=old), replace(model("over", F=0.5), made_with=old)]
    assert remarks(rows) == []
    assert remarks([*rows, replace(model("merged", F=0.2), made_with=new)]) == [
        "The models were not evaluated alike: device was cpu (base, over); NVIDIA H100 (merged)."
    ]


def test_without_an_evaluation_nothing_is_said() -> None:
    assert remarks([model("base"), model("merged")]) == []


@pytest.mark.parametrize(("over", "under", "starred"), [(0.3, 0.2, ["over"]), (0.0, 0.0, []), (0.4, 0.4, [])])
def test_no_single_run_is_best_where_all_are_equal_or_zero(over: float, under: float, starred: list[str]) -> None:
    rows = by_model([model("over", task_aggregate=over), model("under", task_aggregate=under)])
    assert [r.model for r in rows if r.best_single] == starred


def test_the_legend_says_which_way_each_column_is_good() -> None:
    text = results_table([model("base", F=1.0), model("merged", F=0.2, task_aggregate=0.5)])
    assert "Higher is better: aggregate, regurg R, know R, MIA, extract R, probe." in text
    assert "Lower is better: regurg F, know F, extract F, collapse." in text
    assert "Best near 0.5: AUC." in text


def test_mmlu_and_final_have_columns_where_they_exist() -> None:
    without = results_table([model("merged", F=0.2)])
    assert "MMLU" not in without
    whole = results_table([model("base", F=1.0), model("merged", F=0.2, mmlu=0.3, final=0.6)])
    assert whole.splitlines()[0].split()[:4] == ["MODEL", "aggregate", "MMLU", "final"]
