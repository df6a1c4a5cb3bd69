"""Weighted sum of A and of B, as PEFT's linear."""

from __future__ import annotations

from typing import TYPE_CHECKING

from expunge_jobs.merge_methods import Factors, NoParameters, weighted_sum

if TYPE_CHECKING:
    from torch import Tensor

VERSION = 1
RANDOM = False
ACTS_ON = "factors"
Parameters = NoParameters


def merge(given: Factors, parameters: NoParameters) -> Tensor:
    return weighted_sum(given.tensors, given.roots)
