"""Trim, elect sign, disjoint mean on A and B (Yadav et al., arXiv 2306.01708), as PEFT's ties."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from expunge_jobs.merge_methods import DensityParameters, elect_and_average, keep_largest

if TYPE_CHECKING:
    from torch import Generator, Tensor

VERSION = 1
RANDOM = False
Parameters = DensityParameters


def merge(
    tensors: Sequence[Tensor], weights: Sequence[float], parameters: DensityParameters, generator: Generator
) -> Tensor:
    return elect_and_average([keep_largest(t, parameters.density) for t in tensors], weights)
