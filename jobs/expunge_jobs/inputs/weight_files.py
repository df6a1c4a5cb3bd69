"""Files of models and adapters, looked at without loading any weight."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from expunge_jobs.core.errors import BadTask

LARGEST_HEADER = 100_000_000
"""Bytes of a safetensors header; the format's own limit."""
_POINTER = b"version https://git-lfs"


def read_json(file: Path) -> dict[str, Any]:
    """Return the JSON object in a file.

    Raises:
        BadTask: the file is a git-lfs pointer, begins with a byte-order mark, or holds no JSON object.
    """
    data = file.read_bytes()
    _check_pointer(file, data)
    if data.startswith(b"\xef\xbb\xbf"):
        raise BadTask(f"{file.name} begins with a byte-order mark, which JSON does not allow: save it as plain UTF-8")
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise BadTask(f"{file.name} is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise BadTask(f"{file.name} holds no JSON object")
    return value


def tensor_shapes(file: Path) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a safetensors file's tensors by name.

    Raises:
        BadTask: the file is a git-lfs pointer, cut short, or no safetensors file.
    """
    size = file.stat().st_size
    with file.open("rb") as opened:
        head = opened.read(max(8, len(_POINTER)))
        _check_pointer(file, head)
        length = int.from_bytes(head[:8], "little")
        if len(head) < 8 or length > LARGEST_HEADER:
            raise BadTask(f"{file.name} is no safetensors file")
        if size < 8 + length:
            raise BadTask(
                f"{file.name} is cut short: its header alone takes {8 + length:,} bytes, the file has {size:,}"
            )
        opened.seek(8)
        try:
            header = json.loads(opened.read(length))
            entries = {k: v for k, v in header.items() if k != "__metadata__"}
            shapes = {k: tuple(map(_size, v["shape"])) for k, v in entries.items()}
            end = max((_size(v["data_offsets"][1]) for v in entries.values()), default=0)
        except (ValueError, RecursionError, AttributeError, KeyError, TypeError, IndexError):
            raise BadTask(f"{file.name} is no safetensors file: its header cannot be read") from None
    if size != 8 + length + end:
        said = "is cut short" if size < 8 + length + end else "has bytes behind its tensors"
        raise BadTask(f"{file.name} {said}: {8 + length + end:,} bytes belong to it, the file has {size:,}")
    return shapes


def _size(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"no size: {value!r}")
    return value


def _check_pointer(file: Path, data: bytes) -> None:
    if data.startswith(_POINTER):
        raise BadTask(f"{file.name} is a git-lfs pointer, not the file itself: fetch it with `git lfs pull`")
