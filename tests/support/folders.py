"""Directories of models and adapters as small as they may be: right in form, of zeros."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from expunge_jobs.inputs import adapter_folder

CONFIG = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj"], "bias": "none"}
MODULE = "base_model.model.m.q_proj"
SHAPES = {f"{MODULE}.lora_A.weight": [4, 32], f"{MODULE}.lora_B.weight": [16, 4]}


def safetensors(shapes: dict[str, list[int]]) -> bytes:
    """A file of zeros in float32."""
    header, at = {}, 0
    for name, shape in shapes.items():
        size = 4
        for n in shape:
            size *= n
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + bytes(at)


def adapter(folder: Path, config: Any = None, weights: bytes | None = None) -> Path:
    folder.mkdir(exist_ok=True)
    given = json.dumps(CONFIG | (config or {})).encode() if not isinstance(config, bytes) else config
    (folder / adapter_folder.CONFIG).write_bytes(given)
    (folder / adapter_folder.WEIGHTS).write_bytes(safetensors(SHAPES) if weights is None else weights)
    return folder


def model(folder: Path, **files: bytes) -> Path:
    folder.mkdir(exist_ok=True)
    whole = {"config": b"{}", "tokenizer": b"{}", "weights": safetensors({"w": [2, 2]})} | files
    (folder / "config.json").write_bytes(whole["config"])
    (folder / "tokenizer.json").write_bytes(whole["tokenizer"])
    (folder / "model.safetensors").write_bytes(whole["weights"])
    return folder
