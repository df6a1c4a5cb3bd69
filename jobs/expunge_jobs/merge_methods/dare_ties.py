"""TIES' election after dropping values at random (Yu et al., arXiv 2311.03099), as PEFT's dare_ties."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from expunge_jobs.merge_methods import DensityParameters, drop_and_rescale, elect_and_average

if TYPE_CHECKING:
    from torch import Generator, Tensor

VERSION = 1
RANDOM = True
Parameters = DensityParameters


def merge(
    tensors: Sequence[Tensor], weights: Sequence[float], parameters: DensityParameters, generator: Generator
) -> Tensor:
    return elect_and_average([drop_and_rescale(t, parameters.density, generator) for t in tensors], weights)
