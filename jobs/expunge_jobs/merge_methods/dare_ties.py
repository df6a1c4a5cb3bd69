"""Sign election of TIES after random dropping (DARE, Yu et al., arXiv 2311.03099), as PEFT's dare_ties."""

from __future__ import annotations

from typing import TYPE_CHECKING

from expunge_jobs.merge_methods import DensityParameters, Factors, drop_and_rescale, elect_and_average

if TYPE_CHECKING:
    from torch import Tensor

VERSION = 1
RANDOM = True
ACTS_ON = "factors"
Parameters = DensityParameters


def merge(given: Factors, parameters: DensityParameters) -> Tensor:
    return elect_and_average(
        [drop_and_rescale(t, parameters.density, given.generator) for t in given.tensors], given.roots
    )
