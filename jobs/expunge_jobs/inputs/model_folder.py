"""Directories of models and adapters: contents, digest, requirements."""

from __future__ import annotations

import hashlib
from pathlib import Path

from expunge_jobs.core.errors import BadTask
from expunge_jobs.inputs import adapter_folder
from expunge_jobs.inputs.weight_files import read_json, tensor_shapes
from expunge_jobs.store import sha256_of


def folder_digest(folder: Path) -> str:
    """Return the digest of a model's or adapter's files.

    The digest is ``sha256:`` and the SHA-256 of the files' names and digests.

    Raises:
        BadTask: no such folder, or it holds no such files.
    """
    if not folder.is_dir():
        raise BadTask(
            f"{folder}: " + ("is a file; allowed: a model directory" if folder.exists() else "no such directory")
        )
    digest = hashlib.sha256()
    for file in model_files(folder):
        digest.update(f"{file.name}\0{sha256_of(file)}\n".encode())
    return f"sha256:{digest.hexdigest()}"


def model_files(folder: Path) -> list[Path]:
    """Return the files of a directory that belong to a model or adapter.

    Raises:
        BadTask: there are none.
    """
    files = sorted(p for p in folder.iterdir() if p.is_file() and p.suffix in MODEL_SUFFIXES)
    if not files:
        raise BadTask(f"{folder}: no model or adapter in it (no .json, .safetensors, .model, .txt or .jinja files)")
    return files


def check_model_folder(folder: Path) -> None:
    """Refuse a directory that is not a complete model.

    A model has a config, a tokenizer and safetensors weights. The error names the missing part.
    """
    if not (folder / "config.json").is_file():
        raise BadTask("the model directory lacks config.json")
    if (folder / adapter_folder.CONFIG).exists():
        raise BadTask(
            f"the model directory holds an adapter ({adapter_folder.CONFIG}), which transformers would put on the model: "
            "move the adapter's files to a directory of their own"
        )
    read_json(folder / "config.json")
    if not any((folder / n).is_file() for n in TOKENIZER_FILES):
        if (folder / "tokenizer.model").is_file():
            raise BadTask(
                "the model directory has tokenizer.model alone: convert it to tokenizer.json, with transformers and "
                "sentencepiece (AutoTokenizer.from_pretrained(DIR).save_pretrained(DIR))"
            )
        raise BadTask("the model directory lacks a tokenizer (tokenizer.json, or vocab.json with merges.txt)")
    index = folder / "model.safetensors.index.json"
    if (folder / "model.safetensors").is_file():  # transformers takes this file, whatever an index beside it says
        shards = ["model.safetensors"]
    elif index.is_file():
        try:
            shards = sorted(set(read_json(index)["weight_map"].values()))
        except (KeyError, AttributeError, TypeError):
            raise BadTask("the model directory's model.safetensors.index.json is not readable") from None
        if not shards or not all(isinstance(s, str) and "/" not in s and "\\" not in s for s in shards):
            raise BadTask("the model directory's model.safetensors.index.json names no files beside it")
        missing = [s for s in shards if not (folder / s).is_file()]
        if missing:
            raise BadTask(
                f"the model directory lacks {missing[0]}" + (f" and {len(missing) - 1} more" if missing[1:] else "")
            )
    else:
        pickled = any(folder.glob("*.bin")) or any(folder.glob("*.pt"))
        raise BadTask(
            "the model directory lacks model.safetensors" + ("; pickled weights are not read" if pickled else "")
        )
    for shard in shards:
        empty = next((k for k, shape in tensor_shapes(folder / shard).items() if 0 in shape), None)
        if empty:
            raise BadTask(f"{shard}: {empty} is empty: was it saved under ZeRO-3 without gathering?")
    for name in TOKENIZER_FILES:
        if (folder / name).is_file() and name.endswith(".json"):
            read_json(folder / name)


def check_folder(folder: Path) -> None:
    """Refuse a directory that is neither a complete model nor an adapter.

    The error names the missing part.
    """
    weights = (folder / "model.safetensors", folder / "model.safetensors.index.json")
    if (folder / adapter_folder.CONFIG).exists() and not any(w.exists() for w in weights):
        adapter_folder.check_adapter_folder(folder)
    else:
        check_model_folder(folder)


TOKENIZER_FILES = ("tokenizer.json", "vocab.json")
MODEL_SUFFIXES = (".json", ".safetensors", ".model", ".txt", ".jinja")
