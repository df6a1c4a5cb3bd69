"""Weighted sum of A and of B, each trimmed to its largest values, as PEFT's magnitude_prune."""

from __future__ import annotations

from typing import TYPE_CHECKING

from expunge_jobs.merge_methods import DensityParameters, Factors, keep_largest, weighted_sum

if TYPE_CHECKING:
    from torch import Tensor

VERSION = 1
RANDOM = False
ACTS_ON = "factors"
Parameters = DensityParameters


def merge(given: Factors, parameters: DensityParameters) -> Tensor:
    return weighted_sum([keep_largest(t, parameters.density) for t in given.tensors], given.roots)
