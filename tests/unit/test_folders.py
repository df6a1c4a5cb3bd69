"""Folders of models and adapters that people have: refused in words before anything runs, without torch."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from expunge_jobs.core.errors import BadTask
from expunge_jobs.inputs import adapter_folder, model_folder, weight_files

from tests.support.folders import CONFIG, MODULE, SHAPES, adapter, model, safetensors

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"


def refusal(check: Callable[[Path], None], folder: Path) -> str:
    with pytest.raises(BadTask) as caught:
        check(folder)
    return str(caught.value)


def test_a_plain_adapter_and_a_whole_model_are_taken(tmp_path: Path) -> None:
    fields = {
        "megatron_core": "megatron.core",
        "loftq_config": {},
        "rank_pattern": {},
        "use_dora": False,
        "qalora_group_size": 16,
    }
    adapter_folder.check_adapter_folder(adapter(tmp_path / "a", {**fields, "init_lora_weights": "gaussian"}))
    model_folder.check_model_folder(model(tmp_path / "m"))
    assert weight_files.tensor_shapes(tmp_path / "a" / adapter_folder.WEIGHTS) == {
        k: tuple(v) for k, v in SHAPES.items()
    }


@pytest.mark.parametrize(
    ("weights", "words"),
    [
        (POINTER, "git-lfs pointer, not the file itself"),
        (safetensors(SHAPES)[:300], "is cut short"),
        (safetensors(SHAPES)[:40], "is cut short: its header alone takes"),
        (b"", "is no safetensors file"),
        (b"PK\x03\x04 an archive of pickles", "is no safetensors file"),
        ((9).to_bytes(8, "little") + b"{} broken", "header cannot be read"),
        (safetensors({k: [0] for k in SHAPES}), "is empty ([0]): was it saved under ZeRO-3"),
        (safetensors({**SHAPES, f"{MODULE}.lora_A.weight": [8, 32]}), "is [8, 32], which does not fit r 4"),
        (safetensors({f"{MODULE}.lora_A.weight": [4, 32]}), "an A without its B"),
        (safetensors({**SHAPES, "m.lm_head.weight": [3, 3]}), "something else than pairs of A and B: m.lm_head.weight"),
        (safetensors({k.removeprefix("base_model."): v for k, v in SHAPES.items()}), "does not begin with base_model"),
        (safetensors(SHAPES) + b"more", "has bytes behind its tensors"),
        (safetensors({}), "pairs of A and B: nothing"),
    ],
)
def test_weights_that_are_no_adapter_s(tmp_path: Path, weights: bytes, words: str) -> None:
    assert words in refusal(adapter_folder.check_adapter_folder, adapter(tmp_path / "a", weights=weights))


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (POINTER, "adapter_config.json is a git-lfs pointer"),
        (b"\xef\xbb\xbf" + json.dumps(CONFIG).encode(), "begins with a byte-order mark"),
        (b'{"peft_type": "LORA",', "is not JSON"),
        (b"[1]", "holds no JSON object"),
        ({"peft_type": "LOHA"}, "of PEFT type LOHA; allowed: LORA"),
        ({"r": None}, "r is None; allowed: a whole number"),
        ({"r": 0}, "r is 0"),
        ({"lora_alpha": float("inf")}, "lora_alpha is inf"),
        ({"lora_alpha": "16"}, "lora_alpha is '16'; allowed: a number above 0"),
        ({"target_modules": None}, "target_modules is None"),
        ({"bias": "lora_only"}, "bias is 'lora_only'"),
        ({"a_field_of_tomorrow": 1}, "a_field_of_tomorrow is 1: this version does not know"),
        *(
            ({"init_lora_weights": start}, "BA holds a part of the base's weight")
            for start in ("pissa", "pissa_niter_16", "olora", "corda", "loftq", "lora_ga")
        ),
        *(
            ({field: value}, f"adapter_config.json: {field} is ")
            for field, value in {
                "alora_invocation_tokens": [1],
                "alpha_pattern": {"q": 1},
                "arrow_config": {"top_k": 3},
                "kasa_config": {"x": 1},
                "layer_replication": [[0, 2]],
                "lora_bias": True,
                "megatron_config": {"x": 1},
                "modules_to_save": ["head"],
                "rank_pattern": {"q": 8},
                "target_parameters": ["w"],
                "trainable_token_indices": [1],
                "use_bdlora": {"x": 1},
                "use_dora": True,
                "use_qalora": True,
                "use_rslora": True,
            }.items()
        ),
    ],
)
def test_configurations_that_are_more_than_pairs(tmp_path: Path, config: Any, words: str) -> None:
    assert words in refusal(adapter_folder.check_adapter_folder, adapter(tmp_path / "a", config))


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"config": POINTER}, "config.json is a git-lfs pointer"),
        ({"config": b"\xef\xbb\xbf{}"}, "byte-order mark"),
        ({"tokenizer": POINTER}, "tokenizer.json is a git-lfs pointer"),
        ({"tokenizer": b"{"}, "tokenizer.json is not JSON"),
        ({"weights": POINTER}, "model.safetensors is a git-lfs pointer"),
        ({"weights": safetensors({"w": [9, 9]})[:-1]}, "model.safetensors is cut short"),
        ({"weights": safetensors({"w": [0]})}, "w is empty"),
    ],
)
def test_models_that_are_not_whole(tmp_path: Path, files: dict[str, bytes], words: str) -> None:
    assert words in refusal(model_folder.check_model_folder, model(tmp_path / "m", **files))


def test_a_shard_that_is_cut_short(tmp_path: Path) -> None:
    folder = model(tmp_path / "m")
    (folder / "model.safetensors").rename(folder / "one.safetensors")
    (folder / "two.safetensors").write_bytes(safetensors({"v": [5]})[:-3])
    index = {"weight_map": {"w": "one.safetensors", "v": "two.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "two.safetensors is cut short" in refusal(model_folder.check_model_folder, folder)


def test_adapter_files_beside_a_model(tmp_path: Path) -> None:
    folder = model(tmp_path / "m")
    adapter(tmp_path / "a")
    for file in (tmp_path / "a").iterdir():
        file.rename(folder / file.name)
    for check in (model_folder.check_model_folder, model_folder.check_folder):
        assert "holds an adapter (adapter_config.json)" in refusal(check, folder)
