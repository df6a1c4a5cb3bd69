"""A row's own score, which needs rouge-score: made where rows are made, in a step."""

from __future__ import annotations

import pytest
from expunge_jobs.metrics import row_score
from hypothesis import given
from hypothesis import strategies as st


@pytest.mark.parametrize("expected", ["", "NA", "None", "nan"])
def test_words_for_nothing_are_not_each_other(expected: str) -> None:
    """A CSV round trip makes them all nan, and the organisers' script counts them as equal."""
    for generated in ("", "NA", "None", "nan"):
        assert row_score("qa", expected, generated) == float(expected.lower() == generated.lower())
        if expected:
            assert row_score("sc", expected, generated) == float(expected.lower() == generated.lower())


def longest_common(a: list[str], b: list[str]) -> int:
    table = [[0] * (len(b) + 1) for _ in range(len(a) + 1)]
    for i, x in enumerate(a):
        for j, y in enumerate(b):
            table[i + 1][j + 1] = table[i][j] + 1 if x == y else max(table[i][j + 1], table[i + 1][j])
    return table[-1][-1]


@given(st.lists(st.sampled_from("abcde"), min_size=1), st.lists(st.sampled_from("abcde")))
def test_a_completion_is_rouge_l_recall(expected: list[str], generated: list[str]) -> None:
    score = row_score("sc", " ".join(expected), " ".join(generated))
    assert score == pytest.approx(longest_common(expected, generated) / len(expected))


def test_a_completion_is_stemmed_and_its_length_costs_nothing() -> None:
    assert row_score("sc", "He walked to the houses.", "he walks to the house and then on and on") == 1
    assert row_score("sc", "one two three four", "two FOUR") == 0.5
