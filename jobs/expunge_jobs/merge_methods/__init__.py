"""Merge methods, one in each file.

A method is a pure tensor function of one module of every adapter.

A method's module defines, in addition to the attributes of every plugin (see ``plugins``):

    Parameters  a pydantic model (``NoParameters``, ``DensityParameters`` or its own)
    RANDOM      whether the method draws at random (only then is the seed part of a merge's key)
    ACTS_ON     "factors": on A and on B separately, as PEFT's ``add_weighted_adapter`` does
                "deltas": on whole updates
    NEEDS_BASE  only with deltas: whether the method reads the base's own weight
    merge       (Factors, parameters) -> Tensor of the factors' shape, or (Deltas, parameters) -> Tensor [out, in]

A method on deltas returns a full matrix. A truncated SVD turns the matrix into an adapter, whose rank is the sum of the
adapters' ranks. The relative error of the SVD is in the receipt.

This module also holds the primitives that methods share. The interface is provisional until version 1.0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from expunge_jobs.core.schema import Float, Schema

if TYPE_CHECKING:
    from torch import Generator, Tensor

__all__ = [
    "Deltas",
    "Density",
    "DensityParameters",
    "Factors",
    "NoParameters",
    "drop_and_rescale",
    "elect_and_average",
    "keep_largest",
    "weighted_sum",
]

Density = Annotated[Float, Field(gt=0, le=1)]


class NoParameters(Schema):
    """The parameters of a method without parameters."""


class DensityParameters(Schema):
    """The parameters of a method that keeps a share of the values.

    ``density`` is the share of each tensor's values that is kept, by magnitude or at random.
    """

    density: Density = 0.8


@dataclass(frozen=True)
class Factors:
    """The factor A (or B) of one module in every adapter."""

    module: str
    factor: Literal["A", "B"]
    tensors: Sequence[Tensor]
    """float32, all of one shape: A is [r, in], B is [out, r]."""
    roots: Sequence[float]
    """sqrt(|weight x alpha / r|) of each adapter. A's root has the weight's sign. The product of A's and B's roots is
    weight x alpha / r, the share of the adapter's BA in the merged update. The merged adapter is
    stored with alpha = r.
    """
    weights: Sequence[float]
    """Weights in the experiment."""
    generator: Generator
    """Random generator of this module, from the experiment's seed."""


@dataclass(frozen=True)
class Deltas:
    """The whole update of one module by every adapter."""

    module: str
    deltas: Sequence[Tensor]
    """float32 [out, in]: alpha / r times BA."""
    weights: Sequence[float]
    """Weights in the experiment."""
    base: Tensor | None
    """float32 [out, in]: the base's own weight, if ``NEEDS_BASE``."""
    generator: Generator
    """Random generator of this module, from the experiment's seed."""


def keep_largest(tensor: Tensor, density: float) -> Tensor:
    """Return the tensor with all but its largest magnitudes set to 0.

    The ``int(density x count)`` largest magnitudes are kept (TIES, step 1: trim).
    """
    import torch

    if density >= 1:
        return tensor
    flat = tensor.reshape(-1)
    magnitudes, count = flat.abs(), int(density * flat.numel())
    if count:
        # Finding the smallest kept value takes a quarter of the time of finding all kept values.
        keep = magnitudes >= magnitudes.kthvalue(flat.numel() - count + 1).values
        if int(keep.sum()) == count:
            return torch.where(keep, flat, 0.0).reshape(tensor.shape)
    kept = torch.zeros_like(flat)
    largest = magnitudes.topk(count).indices  # of equal values at the threshold, `topk` picks the same as PEFT
    kept[largest] = flat[largest]
    return kept.reshape(tensor.shape)


def drop_and_rescale(tensor: Tensor, density: float, generator: Generator) -> Tensor:
    """Keep each value with probability ``density``, divided by ``density``.

    The source is DARE (arXiv 2311.03099), equation 3.
    """
    import torch

    kept = torch.bernoulli(torch.full_like(tensor, density), generator=generator)
    return tensor * kept / density


def weighted_sum(tensors: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """Return the sum of weight x tensor."""
    import torch

    return torch.stack([t * w for t, w in zip(tensors, weights, strict=True)]).sum(0)


def elect_and_average(tensors: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """Elect the sign of each value, and average the values of that sign.

    The source is TIES (arXiv 2306.01708), steps 2 and 3. The sign is elected on the unweighted sum, where 0 counts as
    positive. The weighted values of the elected sign are averaged over their number.
    """
    import torch

    stacked = torch.stack(list(tensors))
    elected = torch.where(stacked.sum(0) >= 0, 1.0, -1.0)
    agrees = stacked.sign() == elected
    total = torch.stack([t * w for t, w in zip(tensors, weights, strict=True)]).mul(agrees).sum(0)
    return total / agrees.sum(0).clamp(min=1)
