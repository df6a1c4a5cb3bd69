"""The weighted mean of whole updates, optionally no larger than a share of the base's weight."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from expunge_jobs.core.schema import Float, Schema
from expunge_jobs.merge_methods import Deltas
from pydantic import Field

if TYPE_CHECKING:
    from torch import Tensor

VERSION = 1
RANDOM = False
ACTS_ON = "deltas"
NEEDS_BASE = True


class Parameters(Schema):
    """``largest`` bounds each module's update: its norm in that of the base's weight."""

    largest: Annotated[Float, Field(gt=0)] = 1.0


def merge(given: Deltas, parameters: Parameters) -> Tensor:
    """[out, in]: the update of one module."""
    import torch

    total = sum(abs(w) for w in given.weights) or 1.0
    mean = torch.stack([d * (w / total) for d, w in zip(given.deltas, given.weights, strict=True)]).sum(0)
    assert given.base is not None, "NEEDS_BASE"
    bound = parameters.largest * float(given.base.norm())
    norm = float(mean.norm())
    return mean * (bound / norm) if norm > bound else mean
