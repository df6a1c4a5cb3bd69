"""Keep the retain rows: the mean NLL of a row's label tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from expunge_jobs.objectives import Rows, TermParameters

if TYPE_CHECKING:
    from torch import Tensor

VERSION = 1
SET = "retain"
REFERENCE = None


class Parameters(TermParameters):
    """A weight alone."""


def reads(parameters: Parameters) -> Literal["output", "all"]:
    return "output"


def values(parameters: Parameters, rows: Rows) -> Tensor:
    import torch

    return torch.stack([r.nll.mean() for r in rows])
