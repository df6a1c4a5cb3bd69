"""Each metric against its formula, written out again here."""

from __future__ import annotations

import math
from typing import Any

import pytest
from expunge_jobs.data.rows import parse
from expunge_jobs.metrics import EvaluatedRow, Missing, collapse, extraction, membership, probe, row_score, semeval
from expunge_jobs.results.scores import compute_all
from hypothesis import given
from hypothesis import strategies as st

from tests.support.samples import row

TASKS = ("Task1", "Task2", "Task3")
losses = st.lists(st.floats(0, 9).map(lambda x: round(x, 1)), min_size=1, max_size=20)


def twelve(forget: float = 0.2, retain: float = 0.9, tasks: tuple[str, ...] = TASKS) -> list[EvaluatedRow]:
    """Two rows a cell, with these means."""
    each = [("forget", forget), ("retain", retain)]
    return [row(s, k, t, m + d) for s, m in each for k in ("sc", "qa") for t in tasks for d in (-0.1, 0.1)]


def mia(*values: float, name: str = "nonmembers", **fields: Any) -> list[EvaluatedRow]:
    return [row(name, "document", "", None, document_nll=v, **fields) for v in values]


def number(value: float | Missing) -> float:
    assert not isinstance(value, Missing)
    return value


def test_aggregate_of_equal_cells_is_their_value() -> None:
    figures = semeval.compute(twelve(forget=0.3, retain=0.7))
    assert figures["task_aggregate"] == pytest.approx(0.7)
    assert figures["aggregate_cells"] == 12


def test_aggregate_is_the_harmonic_mean_of_twelve() -> None:
    """By hand: 1 - forget is .8 six times, retain .5 five times and .1 once: 12 / (6/.8 + 5/.5 + 1/.1)."""
    rows = twelve(forget=0.2, retain=0.5)
    for r in rows:
        if (r.set, r.kind, r.task) == ("retain", "qa", "Task2"):
            r.score = 0.1
    assert semeval.compute(rows)["task_aggregate"] == pytest.approx(12 / (6 / 0.8 + 5 / 0.5 + 1 / 0.1))


@pytest.mark.parametrize(("name", "worst"), [("forget", 1.0), ("retain", 0.0)])
@pytest.mark.parametrize("kind", ["sc", "qa"])
def test_one_zero_cell_zeroes_the_aggregate(name: str, worst: float, kind: str) -> None:
    rows = twelve()
    for r in rows:
        if (r.set, r.kind, r.task) == (name, kind, "Task3"):
            r.score = worst
    assert semeval.compute(rows)["task_aggregate"] == 0


def test_a_cell_is_a_mean_over_rows_and_cells_weigh_the_same() -> None:
    rows = [row("forget", score=0.5)] + [row("retain", score=s) for s in (1.0, 1.0, 1.0, 0.2)]
    assert semeval.compute(rows)["task_aggregate"] == pytest.approx(2 / (1 / 0.5 + 1 / 0.8))


def test_other_tasks_count_over_the_cells_that_exist() -> None:
    rows = [row("forget", "sc", "Poems", 0.4), row("retain", "sc", "Poems", 0.6), row("retain", "qa", "Code", 0.3)]
    figures = semeval.compute(rows)
    assert figures["task_aggregate"] == pytest.approx(3 / (1 / 0.6 + 1 / 0.6 + 1 / 0.3))
    assert figures["aggregate_cells"] == 3
    everything = compute_all(rows)
    assert set(everything["regurgitation"]["values"]) >= {"regurgitation/forget/Poems", "regurgitation/retain/Poems"}
    assert everything["knowledge"]["values"]["knowledge/retain/Code"] == 0.3


def test_other_sets_do_not_count() -> None:
    extra = [row("probe", "qa", "Task1", 0.0), row("mmlu", "choice", "law", 0.0), *mia(1.0, 2.0)]
    assert semeval.compute(twelve() + extra)["task_aggregate"] == semeval.compute(twelve())["task_aggregate"]


@given(st.lists(st.floats(0.01, 1), min_size=1, max_size=12))
def test_harmonic_mean(values: list[float]) -> None:
    plain = len(values) / math.fsum(1 / v for v in values)
    assert semeval.harmonic_mean(values) == pytest.approx(plain)
    assert semeval.harmonic_mean([*values, 0.0]) == 0


def test_cells_are_named_and_summed_up() -> None:
    rows = [row("forget", "sc", "Task1", s) for s in (0.2, 0.4)] + [row("forget", "sc", "Task2", 0.9)]
    figures = compute_all(rows)["regurgitation"]
    assert figures["values"]["regurgitation/forget/Task1"] == pytest.approx(0.3)
    assert figures["values"]["regurgitation/forget"] == pytest.approx(0.5)
    assert figures["values"]["regurgitation/retain"] is None
    assert "retain" in figures["reasons"]["regurgitation/retain"]


@given(losses, losses)
def test_auc_is_the_share_of_pairs(members: list[float], others: list[float]) -> None:
    won = sum((m < o) + 0.5 * (m == o) for m in members for o in others)
    figures = membership.compute(mia(*members, name="members") + mia(*others))
    auc = won / (len(members) * len(others))
    assert figures["mia_auc"] == pytest.approx(auc)
    assert figures["mia_score"] == pytest.approx(1 - 2 * abs(auc - 0.5))


def test_members_that_the_model_knows_give_auc_one_and_score_zero() -> None:
    figures = membership.compute(mia(0.1, 0.2, name="members") + mia(3.0, 4.0))
    assert (figures["mia_auc"], figures["mia_score"]) == (1, 0)


def test_members_are_the_forget_completions_where_none_are_given() -> None:
    rows = [row("forget", "sc", document_nll=0.1), row("forget", "qa", document_nll=9.0), *mia(1.0)]
    assert membership.compute([*rows, row("retain", "sc", document_nll=9.0)])["mia_auc"] == 1
    assert membership.compute([*rows, *mia(5.0, name="members")])["mia_auc"] == 0


def test_extraction_is_a_mean_by_set() -> None:
    rows = [row("forget", extraction=0.0), row("forget", extraction=0.5), row("probe", extraction=1.0)]
    figures = extraction.compute(rows)
    assert figures["extraction/forget"] == 0.25
    assert isinstance(figures["extraction/retain"], Missing)


def test_probe_is_the_mean_over_its_rows() -> None:
    assert probe.compute([row("probe", score=1.0), row("probe", "qa", score=0.0), row("retain")])["probe"] == 0.5


def test_final_is_the_mean_of_three() -> None:
    questions = [row("mmlu", "choice", "law", s) for s in (1.0, 0.0, 0.0, 1.0)] + [row("mmlu", "choice", "art", 1.0)]
    members = mia(1.0, 3.0, name="members") + mia(2.0, 2.0)
    figures = semeval.compute(twelve(0.3, 0.7) + questions + members)
    assert figures["mmlu"] == pytest.approx(0.6), "over questions, not over subjects"
    assert figures["final"] == pytest.approx((0.7 + 1.0 + 0.6) / 3)


@pytest.mark.parametrize("missing", ["task_aggregate", "mia_score", "mmlu"])
def test_final_is_null_with_the_reason(missing: str) -> None:
    parts = {
        "task_aggregate": twelve(),
        "mia_score": [*mia(1.0), *mia(2.0, name="members")],
        "mmlu": [row("mmlu", "choice", "law", 1.0)],
    }
    rows = [r for name, part in parts.items() if name != missing for r in part]
    figures = compute_all(rows)["semeval"]
    assert figures["values"]["final"] is None
    assert figures["reasons"]["final"].startswith(f"{missing}: ")
    assert all(other not in figures["reasons"]["final"].replace(missing, "") for other in parts if other != missing)


def test_nothing_at_all_is_missing_with_reasons() -> None:
    for name, figures in compute_all([]).items():
        numbers = {k: v for k, v in figures["values"].items() if k != "aggregate_cells"}
        assert set(numbers.values()) == {None}, name
        assert all(figures["reasons"][k].strip() for k in numbers)


def test_a_kind_with_two_digits_is_scored() -> None:
    content = b'{"id": "abcqa12", "input": "q", "output": "a", "task": "Task1"}'
    [item] = parse(content, "x")
    assert row_score(item.kind, "a", "A ") == 1  # type: ignore[union-attr]
    assert semeval.compute([row("retain", item.kind, score=1.0)])["aggregate_cells"] == 1  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("expected", "generated", "score"),
    [("Blue", " blue\n", 1), ("Blue", "blue.", 0), ("Blue", "it is blue", 0), ("Blue", "", 0), ("a  b", "a b", 0)],
)
def test_a_question_is_the_whole_generation(expected: str, generated: str, score: float) -> None:
    assert row_score("qa", expected, generated) == score


def test_collapse_of_a_model_that_says_one_thing() -> None:
    rows = [row("forget", generation="6 6 6 6 6 6 6 6", ended=False) for _ in range(4)]
    figures = collapse.compute(rows)
    assert figures["collapse"] == 1
    assert figures["collapse/endless"] == figures["collapse/identical"] == figures["collapse/repeated"] == 1
    assert figures["collapse/distinct_1"] == pytest.approx(1 / 8)
    assert figures["collapse/distinct_2"] == pytest.approx(1 / 7)


def test_collapse_of_a_healthy_model() -> None:
    said = ["the cat sat on a mat", "one day in march it rained", "seven old sailors sang at dusk"]
    figures = collapse.compute([row(generation=t, ended=True) for t in said])
    assert figures["collapse"] == figures["collapse/endless"] == figures["collapse/identical"] == 0
    assert figures["collapse/empty"] == 0


def test_each_sign_of_collapse_is_seen_by_itself() -> None:
    healthy = [row(generation=f"row {n} has words of its own {n}", ended=True) for n in range(4)]
    endless = [row(generation=r.generation, ended=False) for r in healthy]
    empty = [row(generation="", ended=True) for _ in range(4)]
    assert number(collapse.compute(healthy)["collapse"]) < 0.1
    assert collapse.compute(endless)["collapse"] == 1
    assert collapse.compute(empty)["collapse"] == 1
    assert collapse.compute(empty)["collapse/empty"] == 1


def test_short_answers_may_be_equal() -> None:
    rows = [row(kind="qa", generation="1999", ended=True) for _ in range(3)]
    rows += [row(generation="a text", ended=True), row(generation="b text", ended=True)]
    assert collapse.compute(rows)["collapse/identical"] == 0


@given(st.lists(st.sampled_from("ab"), max_size=12), st.integers(1, 3))
def test_distinct_n(words: list[str], n: int) -> None:
    grams = [" ".join(words[i : i + n]) for i in range(len(words)) if i + n <= len(words)]
    assert collapse.distinct_n(words, n) == pytest.approx(len(set(grams)) / len(grams) if grams else 1)


@given(st.lists(st.sampled_from("ab"), max_size=12))
def test_longest_repeat(words: list[str]) -> None:
    best = 0
    for n in range(1, 9):
        for start in range(len(words)):
            for end in range(start + 2 * n, len(words) + 1):
                if all(words[i] == words[i - n] for i in range(start + n, end)):
                    best = max(best, end - start)
    assert collapse.longest_repeat(words) == pytest.approx(best / len(words) if words else 0)


def test_figures_are_plain_json_with_versions() -> None:
    figures = compute_all(twelve())
    assert set(figures) >= {"semeval", "regurgitation", "knowledge", "membership", "extraction", "collapse", "probe"}
    assert all(isinstance(f["version"], int) and set(f) == {"version", "values", "reasons"} for f in figures.values())
    assert all(set(f["reasons"]) == {k for k, v in f["values"].items() if v is None} for f in figures.values())
