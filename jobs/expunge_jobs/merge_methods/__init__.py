"""Merge methods, one a file. Pure tensor functions over one module of every adapter.

A method's module states, beside what every plugin states (see ``plugins``):

    Parameters  a pydantic model (``NoParameters``, ``DensityParameters`` or its own)
    RANDOM      whether it draws at random (only then is the seed part of a merge's key)
    ACTS_ON     "factors": on A and on B, each for itself, as PEFT's ``add_weighted_adapter`` does
                "deltas": on whole updates
    NEEDS_BASE  only with deltas: whether it reads the base's own weight
    merge       (Factors, parameters) -> Tensor of the factors' shape, or (Deltas, parameters) -> Tensor [out, in]

A method on deltas gives a full matrix; it is stored as an adapter of the sum of the adapters' ranks, by a truncated SVD whose
relative error is in the receipt. The primitives that methods share are here. The interface is provisional until version 1.0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from expunge_jobs.core.schema import Float, Schema

if TYPE_CHECKING:
    from torch import Generator, Tensor

Density = Annotated[Float, Field(gt=0, le=1)]


class NoParameters(Schema):
    """A method without parameters."""


class DensityParameters(Schema):
    """``density`` is the share of each tensor's values that is kept, by magnitude or at random."""

    density: Density = 0.8


@dataclass(frozen=True)
class Factors:
    """A (or B) of one module in every adapter."""

    module: str
    factor: Literal["A", "B"]
    tensors: Sequence[Tensor]
    """float32, of one shape: A is [r, in], B is [out, r]."""
    roots: Sequence[float]
    """sqrt(|weight x alpha / r|) of each adapter, on A with the weight's sign: A's and B's multiply to weight x alpha / r, the
    share of the adapter's BA in the merged update. The merged adapter is stored with alpha = r."""
    weights: Sequence[float]
    """As the experiment has them."""
    generator: Generator
    """Of this module, from the experiment's seed."""


@dataclass(frozen=True)
class Deltas:
    """The whole update of one module by every adapter."""

    module: str
    deltas: Sequence[Tensor]
    """float32 [out, in]: alpha / r times BA."""
    weights: Sequence[float]
    """As the experiment has them."""
    base: Tensor | None
    """float32 [out, in]: the base's own weight, if ``NEEDS_BASE``."""
    generator: Generator
    """Of this module, from the experiment's seed."""


def keep_largest(tensor: Tensor, density: float) -> Tensor:
    """The tensor with all but its ``int(density x count)`` largest magnitudes set to 0 (TIES, step 1: trim)."""
    import torch

    if density >= 1:
        return tensor
    flat = tensor.reshape(-1)
    magnitudes, count = flat.abs(), int(density * flat.numel())
    if count:
        # Finding the least that is kept takes a quarter of the time of finding all of them.
        keep = magnitudes >= magnitudes.kthvalue(flat.numel() - count + 1).values
        if int(keep.sum()) == count:
            return torch.where(keep, flat, 0.0).reshape(tensor.shape)
    kept = torch.zeros_like(flat)
    largest = magnitudes.topk(count).indices  # of equal ones at the edge, those that PEFT takes
    kept[largest] = flat[largest]
    return kept.reshape(tensor.shape)


def drop_and_rescale(tensor: Tensor, density: float, generator: Generator) -> Tensor:
    """Each value kept with probability ``density`` and divided by it (DARE, arXiv 2311.03099, equation 3)."""
    import torch

    kept = torch.bernoulli(torch.full_like(tensor, density), generator=generator)
    return tensor * kept / density


def weighted_sum(tensors: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """Sum of weight x tensor."""
    import torch

    return torch.stack([t * w for t, w in zip(tensors, weights, strict=True)]).sum(0)


def elect_and_average(tensors: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """TIES (arXiv 2306.01708), steps 2 and 3: the sign of each value is elected on the unweighted sum (0 counts as
    positive); the weighted values of that sign are averaged over how many there are."""
    import torch

    stacked = torch.stack(list(tensors))
    elected = torch.where(stacked.sum(0) >= 0, 1.0, -1.0)
    agrees = stacked.sign() == elected
    total = torch.stack([t * w for t, w in zip(tensors, weights, strict=True)]).mul(agrees).sum(0)
    return total / agrees.sum(0).clamp(min=1)
