"""The step that merges two or more adapters into one.

The merge runs in float32, without loading the base model.
A merge on A and B is PEFT's ``add_weighted_adapter``. The weight x scaling of an adapter is split as a square root
between A and B. A negative sign goes to A.
A merge on deltas stores the method's matrix by module as an adapter of the sum of the ranks.
The merged adapter has alpha = r. The artifact is ``adapter/``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from expunge_jobs.artifacts.manifests import Manifest
from expunge_jobs.core.errors import BadTask
from expunge_jobs.core.hashing import identity, stable_hash
from expunge_jobs.merge_methods import Deltas, Factors
from expunge_jobs.modeling.adapters import Adapter, adapter_config, write_adapter
from expunge_jobs.modeling.base_weights import BaseWeights
from expunge_jobs.plugins import PluginCall
from expunge_jobs.runtime.context import StepContext
from expunge_jobs.tasks.references import ArtifactRef, ModelRef
from expunge_jobs.tasks.tasks import MergeTask


def run(task: MergeTask, context: StepContext) -> dict[str, Any]:
    """Merge the adapters and return the receipt's figures.

    ``norm`` is the norm of the merged update. ``norms`` are the norms of the adapters' updates.
    """
    adapters = [Adapter(context.path(a.ref)) for a in task.adapters]
    weights = [a.weight for a in task.adapters]
    receipts = [context.manifest(a.ref) if isinstance(a.ref, ArtifactRef) else None for a in task.adapters]
    check_base(task, receipts)
    check_modules(adapters)
    seed, more = task.seed or 0, {}
    norms = [x.norm() for x in adapters]  # before the merge: a method may work in place
    if task.call.plugin.ACTS_ON == "factors":
        check_factors(adapters, [r.figures.get("a_start") if r else None for r in receipts])
        if None in receipts:
            context.notice(
                "an adapter from outside has no record of its base and of A's start: only its shapes were checked"
            )
        a, b = merge_factors(adapters, weights, task.call, seed)
        rank = adapters[0].rank
    else:
        base = BaseWeights(context.path(task.base)) if getattr(task.call.plugin, "NEEDS_BASE", False) else None
        a, b, lost = merge_deltas(adapters, weights, task.call, seed, base.read if base else None)
        rank, more = next(iter(a.values())).shape[0], {"svd_error": lost}
    first = adapters[0]
    # PEFT also accepts a pattern as targets; therefore use the modules' own names in that case.
    targets = first.config["target_modules"] if isinstance(first.config["target_modules"], list) else sorted(first.A)
    write_adapter(context.out / "adapter", adapter_config(rank, rank, 0.0, targets), a, b)
    return {"norm": Adapter(context.out / "adapter").norm(), "norms": norms, **more}


def check_base(task: MergeTask, receipts: list[Manifest | None]) -> None:
    """Refuse adapters that were trained on another base than the merge's.

    An adapter from outside has no receipt.

    Raises:
        BadTask: an adapter has another base; the message gives the adapter's number.
    """
    base = identity(ModelRef(base=task.base).model_dump(mode="json"))
    for number, receipt in enumerate(receipts, 1):
        if receipt is not None and identity(receipt.task["model"]) != base:
            raise BadTask(f"adapter {number} of the merge was trained on another base model")


def check_modules(adapters: list[Adapter]) -> None:
    """Refuse adapters that no method can merge.

    Raises:
        BadTask: the modules or shapes differ, or values are not finite.
    """
    first = adapters[0]
    for number, other in enumerate(adapters, 1):
        if set(other.A) != set(first.A):
            module = sorted(set(other.A) ^ set(first.A))[0]
            raise BadTask(
                f"adapters with different targets cannot be merged: {module} is adapted in one and not in the other"
            )
        for name in first.A:
            if other.A[name].shape[1] != first.A[name].shape[1] or other.B[name].shape[0] != first.B[name].shape[0]:
                raise BadTask(
                    f"adapters of different shapes cannot be merged: {name}: they were trained on different models"
                )
        if not other.finite():
            raise BadTask(f"adapter {number} of the merge holds values that are not finite")


def check_factors(adapters: list[Adapter], starts: list[str | None]) -> None:
    """Refuse adapters that cannot be merged on A and B.

    Raises:
        BadTask: the ranks differ, or the initial A matrices differ.
    """
    first = adapters[0]
    for other in adapters:
        if other.rank != first.rank:
            raise BadTask(
                f"adapters of rank {first.rank} and {other.rank} cannot be merged on A and B: give them one rank"
            )
    known = {s for s in starts if s is not None}
    if len(known) > 1:
        raise BadTask(
            "the adapters' A matrices started differently (another seed): merged on A and B they would mean nothing"
        )


def merge_factors(
    adapters: Sequence[Adapter], weights: Sequence[float], call: PluginCall, seed: int
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Merge on A and B; return the merged A and B by module.

    A is [r, in] and B is [out, r], for scaling 1.
    """
    scaled = [w * x.scaling for w, x in zip(weights, adapters, strict=True)]
    root_b = [math.sqrt(abs(s)) for s in scaled]
    root_a = [math.copysign(r, s) for r, s in zip(root_b, scaled, strict=True)]
    merge, given = call.plugin.merge, call.parameters
    a, b = {}, {}
    for name in sorted(adapters[0].A):
        generator = _generator(seed, name)
        mine = [x.A[name] for x in adapters], [x.B[name] for x in adapters]
        a[name] = _checked(
            merge(Factors(name, "A", mine[0], root_a, weights, generator), given), mine[0][0], call, name
        )
        b[name] = _checked(
            merge(Factors(name, "B", mine[1], root_b, weights, generator), given), mine[1][0], call, name
        )
    return a, b


def merge_deltas(
    adapters: Sequence[Adapter],
    weights: Sequence[float],
    call: PluginCall,
    seed: int,
    base: Callable[[str], Tensor] | None,
) -> tuple[dict[str, Tensor], dict[str, Tensor], float]:
    """Merge on whole updates; return the merged A and B and their error.

    A and B are given by module, for scaling 1. The error is the relative error (Frobenius) of storing the merge
    as A and B.

    Raises:
        BadTask: the method gave a matrix of another shape, or values that are not finite.
    """
    rank = sum(x.rank for x in adapters)
    a: dict[str, Tensor] = {}
    b: dict[str, Tensor] = {}
    lost = total = 0.0
    for name in sorted(adapters[0].A):
        deltas = [x.scaling * (x.B[name] @ x.A[name]) for x in adapters]
        given = Deltas(name, deltas, weights, base(name) if base else None, _generator(seed, name))
        merged = _checked(call.plugin.merge(given, call.parameters), deltas[0], call, name)
        a[name], b[name] = factorize(merged, rank)
        lost += float((merged - b[name] @ a[name]).double().square().sum())
        total += float(merged.double().square().sum())
    return a, b, math.sqrt(lost / total) if total else 0.0


def _checked(found: Any, like: Tensor, call: PluginCall, module: str) -> Tensor:
    """Return what a method gave, in float32, if it is finite and fits."""
    said = ""
    if not isinstance(found, Tensor):
        said = f"a {type(found).__name__}, not a tensor"
    elif found.shape != like.shape:
        said = f"a matrix of {tuple(found.shape)}, not {tuple(like.shape)}"
    elif not bool(torch.isfinite(found).all()):
        said = "values that are not finite"
    if said:
        raise BadTask(f"the merge method '{call.name}' gave {said} for {module}")
    return found.float()  # type: ignore[no-any-return]


def factorize(delta: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Factorize a matrix as BA by a truncated SVD.

    BA is the nearest matrix of the given rank to ``delta`` [out, in]. A is [rank, in] and B is [out, rank].
    The square roots of the singular values go to both sides.
    A and B are zero where the matrix has fewer singular values than ``rank``.
    """
    u, s, v = torch.linalg.svd(delta, full_matrices=False)
    kept = min(rank, len(s))
    root = s[:kept].sqrt()
    a, b = torch.zeros(rank, delta.shape[1]), torch.zeros(delta.shape[0], rank)
    a[:kept], b[:, :kept] = root[:, None] * v[:kept], u[:, :kept] * root
    return a, b


def _generator(seed: int, module: str) -> torch.Generator:
    return torch.Generator().manual_seed(stable_hash("merge", seed, module))
