"""Trim, sign election and disjoint mean on A and B (Yadav et al., arXiv 2306.01708), as PEFT's ties."""

from __future__ import annotations

from typing import TYPE_CHECKING

from expunge_jobs.merge_methods import DensityParameters, Factors, elect_and_average, keep_largest

if TYPE_CHECKING:
    from torch import Tensor

VERSION = 1
RANDOM = False
ACTS_ON = "factors"
Parameters = DensityParameters


def merge(given: Factors, parameters: DensityParameters) -> Tensor:
    return elect_and_average([keep_largest(t, parameters.density) for t in given.tensors], given.roots)
