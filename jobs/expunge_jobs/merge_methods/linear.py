"""The weighted sum of A and of B, as PEFT's linear."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from expunge_jobs.merge_methods import NoParameters, weighted_sum

if TYPE_CHECKING:
    from torch import Generator, Tensor

VERSION = 1
RANDOM = False
Parameters = NoParameters


def merge(
    tensors: Sequence[Tensor], weights: Sequence[float], parameters: NoParameters, generator: Generator
) -> Tensor:
    return weighted_sum(tensors, weights)
