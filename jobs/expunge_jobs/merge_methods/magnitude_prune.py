"""The weighted sum of A and of B, each trimmed to its largest values, as PEFT's magnitude_prune."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from expunge_jobs.merge_methods import DensityParameters, keep_largest, weighted_sum

if TYPE_CHECKING:
    from torch import Generator, Tensor

VERSION = 1
RANDOM = False
Parameters = DensityParameters


def merge(
    tensors: Sequence[Tensor], weights: Sequence[float], parameters: DensityParameters, generator: Generator
) -> Tensor:
    return weighted_sum([keep_largest(t, parameters.density) for t in tensors], weights)
