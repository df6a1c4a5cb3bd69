"""Merges two or more adapters into one, in float32, without loading the base model.

PEFT's ``add_weighted_adapter`` on A and on B: the weight x scaling of an adapter is split as a square root over both
(a negative sign goes to A), and the merged adapter has alpha = r. Artifact: ``adapter/``.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from expunge_jobs import plugins
from expunge_jobs.artifacts.manifests import Manifest
from expunge_jobs.core.errors import BadTask
from expunge_jobs.core.hashing import identity, stable_hash
from expunge_jobs.modeling.adapters import Adapter, adapter_config, write_adapter
from expunge_jobs.runtime.context import StepContext
from expunge_jobs.tasks.references import ArtifactRef, ModelRef
from expunge_jobs.tasks.tasks import MergeTask


def run(task: MergeTask, context: StepContext) -> dict[str, Any]:
    """Merge; returns the norm of the merge's update beside each adapter's."""
    adapters = [Adapter(context.path(a.ref)) for a in task.adapters]
    receipts = [context.manifest(a.ref) for a in task.adapters if isinstance(a.ref, ArtifactRef)]
    check_base(task, receipts)
    preflight(adapters, [r.figures.get("a_start") for r in receipts])
    if len(receipts) < len(adapters):
        context.notice(
            "an adapter from outside has no record of its base and of A's start: only its shapes were checked"
        )
    a, b = merge(adapters, [w.weight for w in task.adapters], task.method, task.parameters, task.seed or 0)
    first = adapters[0]
    # PEFT takes a pattern too: then the modules' own names.
    targets = first.config["target_modules"] if isinstance(first.config["target_modules"], list) else sorted(first.A)
    write_adapter(context.out / "adapter", adapter_config(first.rank, first.rank, 0.0, targets), a, b)
    return {"norm": Adapter(context.out / "adapter").norm(), "norms": [x.norm() for x in adapters]}


def check_base(task: MergeTask, receipts: list[Manifest]) -> None:
    """Refuses adapters that were trained on another base than the merge's.

    Raises:
        BadTask: by number.
    """
    base = identity(ModelRef(base=task.base).model_dump(mode="json"))
    for number, receipt in enumerate(receipts, 1):
        if identity(receipt.task["model"]) != base:
            raise BadTask(f"adapter {number} of the merge was trained on another base model")


def preflight(adapters: list[Adapter], starts: list[str | None]) -> None:
    """Refuses adapters that cannot be merged on A and B.

    Raises:
        BadTask: other ranks, modules or shapes; values that are not finite; other starts of A.
    """
    first = adapters[0]
    for number, other in enumerate(adapters, 1):
        if other.rank != first.rank:
            raise BadTask(
                f"adapters of rank {first.rank} and {other.rank} cannot be merged on A and B: give them one rank"
            )
        if set(other.A) != set(first.A):
            module = sorted(set(other.A) ^ set(first.A))[0]
            raise BadTask(
                f"adapters with different targets cannot be merged: {module} is adapted in one and not in the other"
            )
        for name in first.A:
            if other.A[name].shape != first.A[name].shape or other.B[name].shape != first.B[name].shape:
                raise BadTask(
                    f"adapters of different shapes cannot be merged: {name}: they were trained on different models"
                )
        if not other.finite():
            raise BadTask(f"adapter {number} of the merge holds values that are not finite")
    known = {s for s in starts if s is not None}
    if len(known) > 1:
        raise BadTask(
            "the adapters' A matrices started differently (another seed): merged on A and B they would mean nothing"
        )


def merge(
    adapters: list[Adapter], weights: list[float], method: str, parameters: dict[str, Any], seed: int
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """A [r, in] and B [out, r] of the merged adapter by module, for scaling 1."""
    plugin = plugins.load("merge_methods", method)
    given = plugin.Parameters.model_validate(parameters)
    scaled = [w * x.scaling for w, x in zip(weights, adapters, strict=True)]
    root_b = [math.sqrt(abs(s)) for s in scaled]
    root_a = [math.copysign(r, s) for r, s in zip(root_b, scaled, strict=True)]
    a, b = {}, {}
    for name in sorted(adapters[0].A):
        generator = torch.Generator().manual_seed(stable_hash("merge", seed, name))
        a[name] = plugin.merge([x.A[name] for x in adapters], root_a, given, generator)
        b[name] = plugin.merge([x.B[name] for x in adapters], root_b, given, generator)
    return a, b
