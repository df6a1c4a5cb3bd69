"""Files of users with anything in them: each is taken, or refused in words. No other exception, whatever is in it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from expunge_jobs.core.errors import BadTask
from expunge_jobs.data import rows
from expunge_jobs.inputs import adapter_folder, model_folder
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support import folders

ANYTHING = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=True)
    | st.text(max_size=12)
    | st.sampled_from(["LORA", "q_proj", "all-linear", "Task1", "sc", "d1sc1", "none", "F32", 1e400, 2**63, "\ud800"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)
NUMBERS = st.sampled_from([-1, 0, 1, 4, 32, 512, 10**30, 2.5, 1e400, float("nan"), "4", None, True, []])
FUZZ = settings(
    max_examples=100,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@contextmanager
def in_words() -> Iterator[None]:
    """A refusal says something; nothing else is raised."""
    said = "taken"
    try:
        yield
    except BadTask as error:
        said = str(error)
    assert said.strip() and "Traceback" not in said


def changed(whole: dict[str, Any], changes: dict[str, Any]) -> bytes:
    return json.dumps(whole | changes).encode()


@st.composite
def safetensors(draw: st.DrawFn) -> bytes:
    """A file whose header says anything of its tensors."""
    entry = st.fixed_dictionaries(
        {},
        optional={
            "dtype": st.sampled_from(["F32", "BF16", "I64", "F8", ""]) | ANYTHING,
            "shape": st.lists(NUMBERS, max_size=3) | ANYTHING,
            "data_offsets": st.lists(NUMBERS, max_size=3) | ANYTHING,
        },
    )
    names = st.sampled_from([*folders.SHAPES, "w", "__metadata__", ""]) | st.text(max_size=5)
    header = json.dumps(draw(st.dictionaries(names, entry | ANYTHING, max_size=4) | ANYTHING)).encode()
    length = draw(st.sampled_from([len(header)] * 6 + [0, len(header) - 1, 2**40, 2**63]))
    return length.to_bytes(8, "little") + header + draw(st.binary(max_size=64))


@FUZZ
@given(weights=safetensors() | st.binary(max_size=40))
def test_weights(tmp_path: Path, weights: bytes) -> None:
    with in_words():
        adapter_folder.check_adapter_folder(folders.adapter(tmp_path / "a", weights=weights))
    with in_words():
        model_folder.check_model_folder(folders.model(tmp_path / "m", weights=weights))


FIELDS = st.sampled_from([*folders.CONFIG, "use_dora", "rank_pattern", "init_lora_weights", "eva_config", "new"])


@FUZZ
@given(changes=st.dictionaries(FIELDS | st.text(max_size=9), ANYTHING, max_size=3))
def test_adapter_configurations(tmp_path: Path, changes: dict[str, Any]) -> None:
    with in_words():
        adapter_folder.check_adapter_folder(folders.adapter(tmp_path / "a", changed(folders.CONFIG, changes)))


@FUZZ
@given(config=ANYTHING, tokenizer=ANYTHING, index=ANYTHING | st.fixed_dictionaries({"weight_map": ANYTHING}))
def test_models_of_any_json(tmp_path: Path, config: Any, tokenizer: Any, index: Any) -> None:
    folder = folders.model(tmp_path / "m", config=json.dumps(config).encode(), tokenizer=json.dumps(tokenizer).encode())
    with in_words():
        model_folder.check_model_folder(folder)
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with in_words():
        model_folder.check_folder(folder)


ROW = {"id": "d1sc1", "input": "a", "output": "b", "task": "Task1"}
KEYS = st.sampled_from([*ROW, "kind", "document", "text", "subject", "question", "choices", "answer", "split"])


@pytest.mark.parametrize("role", ["forget", "retain", "probe", "members", "nonmembers", "mmlu"])
@FUZZ
@given(
    lines=st.lists(st.dictionaries(KEYS | st.text(max_size=5), ANYTHING, max_size=4) | ANYTHING, max_size=4),
    torn=st.booleans(),
)
def test_rows(role: str, lines: list[Any], torn: bool) -> None:
    written = [json.dumps(ROW | line if isinstance(line, dict) else line) for line in lines]
    content = "\n".join(written).encode()
    with in_words():
        rows.parse(content[:-1] if torn else content, "rows.jsonl", role)
    with in_words():  # the same by columns
        rows.parse(json.dumps(lines[0] if lines else {}).encode(), "rows.json", role)


@FUZZ
@given(content=st.binary(max_size=80), role=st.sampled_from(["forget", "nonmembers", "mmlu"]))
def test_rows_of_any_bytes(content: bytes, role: str) -> None:
    with in_words():
        rows.parse(content, "rows.jsonl", role)
