"""Tasks that are refused, and how: always a BadTask, by name."""

from __future__ import annotations

import json
from typing import Any

import pytest
from expunge_jobs.core.errors import BadTask
from expunge_jobs.core.hashing import stable_hash
from expunge_jobs.tasks.references import ArtifactRef
from expunge_jobs.tasks.tasks import EvaluateTask, parse_task
from hypothesis import given

from tests.support.samples import data, raw, task
from tests.unit.test_task import json_values


def refusal(fields: Any) -> str:
    """What the refusal of this task says."""
    with pytest.raises(BadTask) as caught:
        parse_task(fields if isinstance(fields, str) else json.dumps(fields))
    return str(caught.value)


def test_newer_format() -> None:
    assert "format 2" in refusal(raw("merge", format=2))


@pytest.mark.parametrize("kind", ["memorize", "finetune", "merge", "evaluate"])
def test_newer_kind_version(kind: str) -> None:
    message = refusal(raw(kind, version=99))
    assert kind in message and "99" in message


def test_newer_plugin_version() -> None:
    message = refusal(raw("finetune", plugins={"objectives/npo": 99}))
    assert "objectives/npo" in message and "99" in message


def test_plugin_of_this_version_is_taken() -> None:
    assert task("finetune", plugins={"objectives/npo": 1}).plugins == {"objectives/npo": 1}


@pytest.mark.parametrize(
    "name", ["objectives/npoo", "nonsense/npo", "npo", "", "/", "store/file", "task/x", "metrics/"]
)
def test_unknown_plugin(name: str) -> None:
    assert name in refusal(raw("finetune", plugins={name: 1}))


def test_unknown_kind() -> None:
    message = refusal({**raw("merge"), "kind": "distil"})
    assert "distil" in message and "finetune" in message


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "1", '"x"', "{}", '{"format":1}'])
def test_not_a_task(text: str) -> None:
    refusal(text)


@given(json_values)
def test_any_other_json_is_a_bad_task(value: Any) -> None:
    refusal(json.dumps(value))


@given(json_values)
def test_any_wrong_field_is_a_bad_task_or_taken(value: Any) -> None:
    for field in ("kind", "plugins", "data", "settings", "model", "seed", "method", "parameters", "adapters"):
        for kind in ("finetune", "merge"):
            try:
                parse_task(json.dumps({**raw(kind), field: value}))
            except BadTask:
                pass


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({"objective": {"npoo": 0.4}}, "did you mean 'npo'"),
        ({"objective": {"npo": 0, "kl": 0}}, "weight 0"),
        ({"objective": {"npo": -1}}, "weight"),
        ({"objective": {}}, "objective"),
        ({"objective": {"npo": {"beta": 0}}}, "beta"),
        ({"objective": {"kl": {"beta": 1}}}, "beta"),
        ({"objective": "npo", "learning_rate": float("nan")}, "learning_rate"),
        ({"objective": "npo", "learning_rate": float("inf")}, "learning_rate"),
        ({"objective": "npo", "learning_rate": True}, "learning_rate"),
        ({"objective": "npo", "learning_rte": 1}, "learning_rte"),
        ({"objective": "npo", "batch_size": 0}, "batch_size"),
        ({"objective": "npo", "batch_size": 1.5}, "batch_size"),
        ({"objective": "npo", "epochs": True}, "epochs"),
        ({"objective": "npo", "dropout": 1}, "dropout"),
        ({"objective": "npo", "targets": []}, "targets"),
        ({}, "objective"),
    ],
)
def test_bad_finetune_settings(settings: dict[str, Any], word: str) -> None:
    assert word in refusal(raw("finetune", settings=settings))


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({"method": "tiess"}, "did you mean 'ties'"),
        ({"parameters": {"density": 0}}, "density"),
        ({"parameters": {"density": 1.1}}, "density"),
        ({"parameters": {"densty": 0.8}}, "densty"),
        ({"method": "linear"}, "density"),
        ({"adapters": raw("merge")["adapters"][:1]}, "adapters"),
    ],
)
def test_bad_merge(fields: dict[str, Any], word: str) -> None:
    assert word in refusal(raw("merge", **fields))


def test_memorize_starts_from_one_thing() -> None:
    model = raw("finetune")["model"]
    assert "architecture" in refusal(raw("memorize", model=model))
    assert "architecture" in refusal(raw("memorize", architecture=None))


def test_heads_divide_the_hidden_size() -> None:
    assert "hidden_size" in refusal(raw("memorize", architecture={"hidden_size": 30, "heads": 4}))


def test_unknown_set() -> None:
    assert "forgot" in refusal(raw("evaluate", data=data(forgot="file:///x")))


def test_a_task_is_immutable() -> None:
    made = task("finetune")
    with pytest.raises(ValueError, match="frozen"):
        made.seed = 1  # type: ignore[union-attr, misc]


def test_needs_names_each_artifact_once() -> None:
    fields = raw("evaluate")
    fields["model"]["adapters"].append(fields["model"]["adapters"][0])
    made = parse_task(json.dumps(fields))
    assert isinstance(made, EvaluateTask)
    assert [(n.kind, n.key[:2]) for n in made.needs()] == [("memorize", "ab"), ("finetune", "cc"), ("finetune", "dd")]
    assert all(isinstance(n, ArtifactRef) for n in made.needs())


def test_inputs_from_outside_are_not_needed_artifacts() -> None:
    base = {"base": {"uri": "hf://a/b@main", "digest": "commit:0"}}
    assert parse_task(json.dumps(raw("evaluate", model=base))).needs() == []


def test_stable_hash_stays_what_it_is() -> None:
    """Seeds and places hang on it: SHA-256 of the parts, the upper 63 of its first 64 bits."""
    assert stable_hash("place", 7, "x") == 7761064888068583000
    assert stable_hash("a", "b") != stable_hash("ab")
    assert 0 <= stable_hash("q") < 2**63
