"""Negative preference optimization without a reference, by the mean over tokens (SimNPO).

Fan et al. 2024 (arXiv 2410.07163), equation 5: -(2/beta) log sigmoid(-(beta / |y|) log p(y|x) - gamma).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from expunge_jobs.core.schema import Float, Positive
from expunge_jobs.objectives import Needs, Rows, TermParameters

if TYPE_CHECKING:
    from torch import Tensor

VERSION = 1


class Parameters(TermParameters):
    """``beta`` is the inverse temperature, ``gamma`` the margin of the reward."""

    beta: Positive = 2.5
    gamma: Float = 0.0


def needs(parameters: Parameters) -> Needs:
    """Forget rows, at the positions of their outputs; nothing of the reference."""
    return Needs(sets=("forget",))


def values(parameters: Parameters, rows: Rows) -> Tensor:
    """One value a row; the mean over the rows of an optimizer step is the term."""
    import torch
    from torch.nn.functional import logsigmoid

    nll = torch.stack([row.nll.mean() for row in rows])
    return -(2 / parameters.beta) * logsigmoid(parameters.beta * nll - parameters.gamma)
