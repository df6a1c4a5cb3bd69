"""Model directories that are right in form, with any values in them: each is loaded, or refused in words."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from expunge_jobs.core.errors import BadTask
from expunge_jobs.modeling.loading import encoder_for, load_base
from expunge_jobs.tasks.references import TaskData
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.jobs import tiny_models as tiny

VALUES = st.sampled_from(
    [None, -1, 0, 1, 3, 32, 64, 2.5, True, "", "olmo", "gpt2", "llama", "relu", [], {}, [1], {"a": 1}]
)
FUZZ = settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def loaded_or_refused(folder: Path) -> None:
    said = "loaded"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the libraries; a step's log shows them
        try:
            model, tokenizer = load_base(folder, "checkpoint")
            encoder_for(model, tokenizer, TaskData(sets={})).row(tiny.FORGET[0], 32)
        except BadTask as error:
            said = str(error)
    assert said.strip() and "Traceback" not in said


@pytest.fixture
def changed(base_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(base_folder, tmp_path / "changed", dirs_exist_ok=True))


def write(base_folder: Path, folder: Path, name: str, changes: dict[str, Any]) -> None:
    whole = json.loads((base_folder / name).read_text())
    (folder / name).write_text(json.dumps(whole | changes))


CONFIG = st.sampled_from(
    [
        "architectures",
        "model_type",
        "hidden_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "vocab_size",
        "hidden_act",
        "dtype",
        "rope_parameters",
        "max_position_embeddings",
        "eos_token_id",
        "tie_word_embeddings",
        "quantization_config",
        "auto_map",
    ]
)


@FUZZ
@given(changes=st.dictionaries(CONFIG, VALUES, min_size=1, max_size=2))
def test_configurations(base_folder: Path, changed: Path, changes: dict[str, Any]) -> None:
    write(base_folder, changed, "config.json", changes)
    loaded_or_refused(changed)


TOKENIZER = st.sampled_from(
    ["model", "added_tokens", "normalizer", "pre_tokenizer", "post_processor", "decoder", "truncation"]
)
OF_TOKENIZER = st.sampled_from(
    ["tokenizer_class", "eos_token", "bos_token", "unk_token", "chat_template", "added_tokens_decoder", "auto_map"]
)


@FUZZ
@given(
    changes=st.dictionaries(TOKENIZER, VALUES | st.sampled_from([{"type": "BPE"}, {"type": "ByteLevel"}]), max_size=2),
    words=st.dictionaries(OF_TOKENIZER, VALUES, max_size=2),
)
def test_tokenizers(base_folder: Path, changed: Path, changes: dict[str, Any], words: dict[str, Any]) -> None:
    write(base_folder, changed, "tokenizer.json", changes)
    write(base_folder, changed, "tokenizer_config.json", words)
    loaded_or_refused(changed)


@FUZZ
@given(place=st.integers(0, 10**6), byte=st.integers(0, 255), cut=st.booleans())
def test_weights_with_a_byte_changed_or_cut_off(
    base_folder: Path, changed: Path, place: int, byte: int, cut: bool
) -> None:
    data = bytearray((base_folder / "model.safetensors").read_bytes())
    place %= len(data)
    data[place] = byte
    (changed / "model.safetensors").write_bytes(data[:place] if cut else data)
    loaded_or_refused(changed)
    torch.set_num_threads(1)
