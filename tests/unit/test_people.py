"""``builtin://people``: the rows that an experiment without any data has."""

from __future__ import annotations

import json
import re
from collections import Counter
from typing import Any

import pytest
from expunge_jobs.core.errors import BadTask
from expunge_jobs.data.rows import Row, parse
from expunge_jobs.inputs.builtin import names, read

SETS = ("forget", "retain", "probe", "nonmembers")
NAME = re.compile(r"[A-Z][a-z]+ [A-Z][a-z]+")


def people(name: str, documents: int = 12, seed: int = 3) -> list[Row]:
    found = parse(read(f"builtin://people/{name}?documents={documents}&seed={seed}"), name)
    return [r for r in found if isinstance(r, Row)]


def texts(name: str, **how: Any) -> set[str]:
    return {r.input for r in people(name, **how)}


def test_is_listed() -> None:
    assert "people" in names()


@pytest.mark.parametrize("name", SETS)
def test_counts(name: str) -> None:
    """So many documents a task, a completion and a question each."""
    rows = people(name)
    assert Counter((r.task, r.kind) for r in rows) == {
        (t, k): 12 for t in ("Task1", "Task2", "Task3") for k in ("sc", "qa")
    }
    assert len({r.document for r in rows}) == 36
    assert all(
        Counter(r.kind for r in rows if r.document == d) == {"sc": 1, "qa": 1} for d in {r.document for r in rows}
    )


def test_sets_share_no_document_and_no_text() -> None:
    documents = [r.document for name in SETS for r in people(name) if r.kind == "sc"]
    assert len(documents) == len(set(documents)) == 4 * 36
    inputs = [r.input for name in SETS for r in people(name)]
    assert len(inputs) == len(set(inputs))


def test_no_two_people_share_a_name() -> None:
    """A question names its person, so it has one answer, at the largest size too."""
    questions = [r.input for name in SETS for r in people(name, documents=130) if r.kind == "qa"]
    assert len(questions) == len(set(questions)) == 4 * 3 * 130
    found = [m for q in questions for m in NAME.findall(q.split(" ", 1)[1])]
    assert len(set(found)) >= 4 * 3 * 130


def test_the_same_bytes_each_time() -> None:
    uri = "builtin://people/forget?documents=5&seed=1"
    assert read(uri) == read(uri) == read("builtin://people/forget?seed=1&documents=5")
    assert read("builtin://people/forget") == read("builtin://people/forget?documents=10&seed=0")


def test_the_seed_makes_other_people() -> None:
    """Names come from one list and may return; what is said of them does not."""
    one, two = people("forget", seed=1), people("forget", seed=2)
    assert not {r.document for r in one} & {r.document for r in two}
    assert not {(r.input, r.output) for r in one if r.kind == "sc"} & {(r.input, r.output) for r in two}


def test_more_documents_keep_those_before() -> None:
    assert texts("forget", documents=5) < texts("forget", documents=9)


def test_rows_are_json_lines_that_need_no_kind() -> None:
    for line in read("builtin://people/probe").decode().splitlines():
        assert set(json.loads(line)) == {"id", "input", "output", "task"}


@pytest.mark.parametrize(
    ("uri", "words"),
    [
        ("builtin://peeple/forget", "did you mean 'people'"),
        ("builtin://people/forgot", "did you mean 'forget'"),
        ("builtin://people", "unknown set"),
        ("builtin://people/forget?document=3", "unknown parameter 'document'"),
        ("builtin://people/forget?documents=0", "allowed: 1 to"),
        ("builtin://people/forget?documents=100000", "allowed: 1 to"),
        ("builtin://people/forget?documents=x", "whole numbers"),
        ("builtin://people/forget?seed=", "whole numbers"),
    ],
)
def test_refusals(uri: str, words: str) -> None:
    with pytest.raises(BadTask) as caught:
        read(uri)
    assert words in str(caught.value)
