"""Objective terms, one a file. The loss is the sum of weight x (mean over rows of one value a row).

A term's module states, beside what every plugin states (see ``plugins``):

    SET         "forget" | "retain": whose rows it reads
    reads       (parameters) -> "output" | "all": positions whose logits it needs
    REFERENCE   None | "nll" | "logits": what it needs of the model before unlearning
    values      (parameters, rows) -> [values]: one a row, whose mean is the term (``npo`` pooled: one a micro-batch)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from expunge_jobs.core.schema import Float, Schema

if TYPE_CHECKING:
    from torch import Tensor

Weight = Annotated[Float, Field(ge=0)]


class TermParameters(Schema):
    """What every term has."""

    weight: Weight = 1.0


@dataclass(slots=True)
class RowOutput:
    """What the policy, and the reference where it is needed, say of one row. Logits are float32.

    Label tokens are the output's tokens and the end token.
    """

    nll: Tensor
    """[labels]: the policy's -log p of each label token."""
    logits: Tensor | None = None
    """[positions, vocabulary] at the positions that ``kl`` reads; None where no term needs them."""
    reference_nll: Tensor | None = None
    """[labels]: the reference's -log p, without gradient."""
    reference_logits: Tensor | None = None
    """[positions, vocabulary], without gradient."""
    micro_batch: int = 0
    """Which micro-batch of the optimizer step the row is in."""


Rows = Sequence[RowOutput]
