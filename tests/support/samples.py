"""Tasks and evaluated rows for tests, with sensible values for whatever a test does not care about."""

from __future__ import annotations

import json
from typing import Any

from expunge_jobs.metrics import EvaluatedRow
from expunge_jobs.tasks.tasks import KIND_VERSIONS, Task, parse_task

_KEY = "ab" * 32


def data(**sets: str) -> dict[str, Any]:
    """A task's data: sets by name, each a URI."""
    given = sets or {"forget": "file:///f.jsonl", "retain": "file:///r.jsonl"}
    return {"sets": {n: {"input": {"uri": u, "digest": f"sha256:{n}"}} for n, u in given.items()}}


def raw(kind: str, **fields: Any) -> dict[str, Any]:
    """A task of this kind as JSON values, nothing more in it than must be."""
    model = {"base": {"kind": "memorize", "key": _KEY, "folder": "model"}}
    adapters = [{"ref": {"kind": "finetune", "key": c * 64, "folder": "adapter"}} for c in "cd"]
    each: dict[str, dict[str, Any]] = {
        "memorize": {"data": data(), "settings": {}, "architecture": {}},
        "finetune": {"model": model, "data": data(), "settings": {"objective": {"npo": 0.4, "kl": 0.6}}, "seed": 42},
        "merge": {"base": model["base"], "adapters": adapters, "method": "ties", "parameters": {"density": 0.8}},
        "evaluate": {"model": {**model, "adapters": adapters}, "data": data(), "settings": {}},
    }
    version = {} if "version" in fields else {"version": KIND_VERSIONS.get(kind, 1)}
    return {"format": 1, "kind": kind, **version, **each[kind], **fields}


def task(kind: str, **fields: Any) -> Task:
    """The same, parsed."""
    return parse_task(json.dumps(raw(kind, **fields)))


def row(
    set: str = "forget", kind: str = "sc", task: str = "Task1", score: float | None = 1.0, **fields: Any
) -> EvaluatedRow:
    """One line of an evaluation."""
    return EvaluatedRow(
        **{"set": set, "id": "i", "document": "d", "kind": kind, "task": task, "score": score, **fields}
    )
