"""Tasks: exact JSON, one key for the same work by every road, and refusals by name."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from expunge_jobs.core.errors import BadTask
from expunge_jobs.tasks.references import AdapterRef, ArtifactRef, Input, ModelRef, RowsRef, TaskData, Template
from expunge_jobs.tasks.settings import Architecture, EvaluateSettings, FinetuneSettings, MemorizeSettings
from expunge_jobs.tasks.tasks import (
    KIND_VERSIONS,
    EvaluateTask,
    FinetuneTask,
    MemorizeTask,
    MergeTask,
    Task,
    WeightedAdapter,
    parse_task,
)
from hypothesis import given
from hypothesis import strategies as st

from tests.support.samples import data, raw, task

KINDS = ["memorize", "finetune", "merge", "evaluate"]

number = st.floats(allow_nan=False, allow_infinity=False)
positive = st.floats(min_value=0, exclude_min=True, allow_infinity=False)
share = st.floats(0, 1, exclude_max=True)
count = st.integers(1, 2**31)
seed = st.integers(0, 2**63 - 1)
dtype = st.sampled_from(["checkpoint", "float32", "bfloat16", "float16"])
artifact = st.builds(ArtifactRef, kind=st.sampled_from(KINDS), key=st.text(max_size=9), folder=st.text(max_size=9))
outside = st.builds(Input, uri=st.text(max_size=9), digest=st.text(max_size=9))
ref = artifact | outside
model = st.builds(
    ModelRef, base=ref, adapters=st.lists(st.builds(AdapterRef, ref=ref, scale=number), max_size=2).map(tuple)
)
rows = st.builds(
    RowsRef, input=outside, seed=seed, skip=st.integers(0, 99), take=st.none() | count, of=st.none() | count
)
sets = st.dictionaries(st.sampled_from(["forget", "retain", "probe", "members", "nonmembers", "mmlu"]), rows)
task_data = st.builds(
    TaskData,
    sets=sets,
    separator=st.text(max_size=3),
    template=st.just(Template(kind="none"))
    | st.builds(Template, name=st.none() | st.text(max_size=3), system=st.none() | st.text(max_size=3)),
    max_length=st.integers(4, 9999),
    overlap=st.sampled_from(["refuse", "drop_from_retain"]),
)
terms = {
    "npo": st.fixed_dictionaries(
        {"weight": positive, "beta": positive, "normalization": st.sampled_from(["sequence", "token", "pooled"])}
    ),
    "nll": positive,
    "gradient_ascent": st.fixed_dictionaries({"weight": positive}),
    "kl": st.fixed_dictionaries({"weight": positive}, optional={"positions": st.sampled_from(["all", "output"])}),
}
objective = st.sets(st.sampled_from(sorted(terms)), min_size=1).flatmap(
    lambda names: st.fixed_dictionaries({n: terms[n] for n in names})
)
finetune_settings = st.builds(
    FinetuneSettings,
    objective=objective,
    batch_size=count,
    accumulation=count,
    epochs=count,
    learning_rate=positive,
    weight_decay=positive,
    clip=positive,
    rank=count,
    alpha=positive,
    dropout=share,
    gradient_checkpointing=st.booleans(),
    targets=st.just("all-linear") | st.lists(st.text(max_size=5), min_size=1, max_size=3).map(tuple),
)
merged = st.lists(st.builds(WeightedAdapter, ref=ref, weight=number), min_size=2, max_size=4).map(tuple)
dense = {"parameters": st.fixed_dictionaries({"density": st.floats(0.01, 1)}), "base": ref, "adapters": merged}
tasks = st.one_of(
    st.builds(
        MemorizeTask,
        data=task_data,
        settings=st.builds(MemorizeSettings, learning_rate=positive, seed=seed),
        architecture=st.builds(Architecture, vocab_size=st.integers(257, 10**6)),
        model=st.none(),
        dtype=dtype,
    ),
    st.builds(
        MemorizeTask,
        data=task_data,
        settings=st.builds(MemorizeSettings, epochs=count),
        architecture=st.none(),
        model=model,
        dtype=dtype,
    ),
    st.builds(FinetuneTask, model=model, data=task_data, settings=finetune_settings, seed=seed, dtype=dtype),
    st.builds(MergeTask, method=st.sampled_from(["ties", "magnitude_prune"]), seed=st.none(), **dense),
    st.builds(MergeTask, method=st.sampled_from(["dare_ties", "dare_linear"]), seed=seed, **dense),
    st.builds(
        EvaluateTask, model=model, data=task_data, settings=st.builds(EvaluateSettings, batch_size=count), dtype=dtype
    ),
)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | number | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=9,
)


def backwards(value: Any) -> Any:
    """The same JSON with every object's fields in reverse order."""
    if isinstance(value, dict):
        return {k: backwards(v) for k, v in reversed(value.items())}
    return [backwards(v) for v in value] if isinstance(value, list) else value


def elsewhere(value: Any) -> Any:
    """The same JSON with every address changed."""
    if isinstance(value, dict):
        return {k: "s3://other/place" if k == "uri" else elsewhere(v) for k, v in value.items()}
    return [elsewhere(v) for v in value] if isinstance(value, list) else value


@given(tasks)
def test_json_round_trips_exactly(made: Task) -> None:
    again = parse_task(made.to_json())
    assert again == made
    assert type(again) is type(made)
    assert again.to_json() == made.to_json()
    assert again.key() == made.key()


@given(tasks)
def test_key_ignores_order_and_addresses(made: Task) -> None:
    fields = json.loads(made.to_json())
    assert parse_task(json.dumps(backwards(fields), indent=1)).key() == made.key()
    assert parse_task(json.dumps(elsewhere(fields))).key() == made.key()


@given(tasks, tasks)
def test_keys_are_equal_for_equal_work_alone(one: Task, other: Task) -> None:
    same = elsewhere(json.loads(one.to_json())) == elsewhere(json.loads(other.to_json()))
    assert (one.key() == other.key()) == same


def test_key_is_hex_of_sha256() -> None:
    key = task("finetune").key()
    assert len(key) == 64 and set(key) <= set("0123456789abcdef")


@pytest.mark.parametrize(
    "settings",
    [
        {"objective": {"kl": 0.6, "npo": 0.4}},
        {"objective": {"npo": {"weight": 0.4}, "kl": {"weight": 0.6, "positions": "all"}}},
        {"objective": {"npo": "0.4", "kl": "6e-1"}},
        {"learning_rate": 1e-4},
        {"learning_rate": "1e-4"},
        {"learning_rate": 0.0001, "weight_decay": 1e-2, "clip": 1, "alpha": 32, "rank": 32.0, "epochs": "5"},
        {
            "batch_size": 1,
            "accumulation": 4,
            "dropout": "0.05",
            "targets": "all-linear",
            "gradient_checkpointing": False,
        },
    ],
)
def test_finetune_key_is_one_by_every_road(settings: dict[str, Any]) -> None:
    plain = task("finetune")
    given = {"objective": {"npo": 0.4, "kl": 0.6}, **settings}
    assert task("finetune", settings=given).key() == plain.key()


def test_targets_have_no_order() -> None:
    def key(*targets: str) -> str:
        return task("finetune", settings={"objective": "npo", "targets": list(targets)}).key()

    assert key("q_proj", "v_proj") == key("v_proj", "q_proj", "v_proj") != key("q_proj")


@pytest.mark.parametrize("parameters", [{}, {"density": "0.8"}, {"density": 8e-1}])
def test_merge_key_is_one_by_every_road(parameters: dict[str, Any]) -> None:
    assert task("merge", parameters=parameters).key() == task("merge").key()


def test_merge_key_of_one_and_one_point_zero() -> None:
    assert task("merge", parameters={"density": 1}).key() == task("merge", parameters={"density": 1.0}).key()


def test_seed_of_a_merge_counts_only_where_it_draws() -> None:
    assert task("merge", seed=1).key() == task("merge").key()
    assert task("merge", method="dare_ties", seed=1).key() != task("merge", method="dare_ties", seed=2).key()


def test_zero_has_no_sign_in_a_key() -> None:
    settings = {"objective": "npo", "weight_decay": 0.0}
    assert (
        task("finetune", settings={**settings, "weight_decay": -0.0}).key() == task("finetune", settings=settings).key()
    )


def test_defaults_of_data_and_model_written_out_or_not() -> None:
    written = data()
    written["sets"]["forget"] |= {"seed": 0, "skip": 0, "take": None, "of": None}
    written |= {"separator": " ", "template": "none", "max_length": 256, "overlap": "refuse"}
    assert task("finetune", data=written, dtype="checkpoint").key() == task("finetune").key()


def leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Any]]:
    if isinstance(value, dict | list):
        for k, v in value.items() if isinstance(value, dict) else enumerate(value):
            yield from leaves(v, (*path, k))
    else:
        yield path, value


def changed(value: Any) -> list[Any]:
    """Values near this one, of which at least one should be allowed."""
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, int | float):
        return [n for n in (value + 1, value / 2, value * 2) if n != value]
    words = ["bfloat16", "output", "published", "token", "chat", "drop_from_retain", "llama", "magnitude_prune"]
    return [*words, ["q_proj"], f"{value}x", 7]


@pytest.mark.parametrize("kind", KINDS)
def test_key_differs_when_any_value_changes(kind: str) -> None:
    plain = task(kind)
    unchangeable = []
    for path, value in leaves(json.loads(plain.to_json())):
        # Without an architecture's model and a seed of a method that draws nothing: they can only be null.
        if path[-1] in ("uri", "format", "version", "kind") or (value is None and path in (("seed",), ("model",))):
            continue
        differs = False
        for other in changed(value):
            fields = json.loads(plain.to_json())
            at = fields
            for step in path[:-1]:
                at = at[step]
            at[path[-1]] = other
            try:
                assert parse_task(json.dumps(fields)).key() != plain.key(), f"{path} -> {other!r}"
            except BadTask:
                continue
            differs = True
        if not differs:
            unchangeable.append(path)
    assert unchangeable == []


@pytest.mark.parametrize("kind", KINDS)
def test_versions_are_in_the_key(kind: str) -> None:
    plain = task(kind)
    other = type(plain).model_validate({**json.loads(plain.to_json()), "version": KIND_VERSIONS[kind] + 1})
    plugged = type(plain).model_validate({**json.loads(plain.to_json()), "plugins": {"objectives/npo": 1}})
    assert len({plain.key(), other.key(), plugged.key()}) == 3


@pytest.mark.parametrize("kind", KINDS)
def test_version_is_filled_in(kind: str) -> None:
    fields = raw(kind)
    del fields["version"]
    made = type(task(kind)).model_validate(fields)
    assert made.version == KIND_VERSIONS[kind]
