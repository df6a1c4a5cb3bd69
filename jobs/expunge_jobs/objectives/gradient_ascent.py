"""Raise the loss on the forget rows: minus the mean NLL of a row's label tokens (Jang et al., arXiv 2210.01504)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from expunge_jobs.objectives import Needs, Rows, TermParameters

if TYPE_CHECKING:
    from torch import Tensor

VERSION = 1


class Parameters(TermParameters):
    """The parameters of a term with only a weight."""


def needs(parameters: Parameters) -> Needs:
    return Needs(sets=("forget",))


def values(parameters: Parameters, rows: Rows) -> Tensor:
    import torch

    return -torch.stack([r.nll.mean() for r in rows])
