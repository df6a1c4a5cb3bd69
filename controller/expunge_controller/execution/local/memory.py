"""Memory of a step whose file says none, estimated from its model."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import unquote, urlsplit

from expunge_jobs.artifacts.manifests import read_manifest
from expunge_jobs.core.errors import BadTask, DamagedInput
from expunge_jobs.inputs.weight_files import read_json
from expunge_jobs.store import Store
from expunge_jobs.tasks.references import ArtifactRef, Input
from expunge_jobs.tasks.tasks import EvaluateTask, FinetuneTask, MemorizeTask, MergeTask, Task

FLOOR = 2**30
"""Bytes of Python, torch and a small model's work."""
COPIES = {"memorize": 5, "finetune": 2, "evaluate": 2, "merge": 1}
"""Copies of a model's weights that a kind of step holds. To memorize takes gradients and AdamW's two moments."""


def estimated_memory(task: Task, store: Store) -> int:
    """Return the bytes that a step may need.

    A model that is not on this machine or in the store counts as small, since asking for its size would take time.
    """
    base: ArtifactRef | Input | None = None
    if isinstance(task, FinetuneTask | EvaluateTask) or (isinstance(task, MemorizeTask) and task.model is not None):
        base = task.model.base if task.model is not None else None
    elif isinstance(task, MergeTask):
        base = task.base
    if base is None:
        return FLOOR
    return FLOOR + COPIES.get(task.kind, 0) * _weights(base, store) * _widened(
        base, getattr(task, "dtype", "checkpoint")
    )


def _weights(base: ArtifactRef | Input, store: Store) -> int:
    if isinstance(base, ArtifactRef):
        try:
            manifest = read_manifest(store, base)
        except DamagedInput:  # the step itself says so
            return 0
        return sum(f.size for f in manifest.files if f.path.endswith(".safetensors")) if manifest is not None else 0
    address = urlsplit(base.uri)
    folder = Path(unquote(address.path))
    return sum(f.stat().st_size for f in folder.glob("*.safetensors")) if address.scheme == "file" else 0


def _widened(base: ArtifactRef | Input, dtype: str) -> int:
    """Return 2 for weights of 16 bits that a step holds in 32."""
    if isinstance(base, ArtifactRef) or dtype != "float32":
        return 1
    try:
        config = read_json(Path(unquote(urlsplit(base.uri).path)) / "config.json")
    except (BadTask, OSError):  # of a bucket or the hub; or a model that the step will refuse
        return 1
    return 2 if config.get("dtype", config.get("torch_dtype")) in ("bfloat16", "float16") else 1
