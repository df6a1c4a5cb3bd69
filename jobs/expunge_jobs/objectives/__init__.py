"""Objective terms, one a file. The loss is the sum over terms of weight x mean of the term's values.

A term's module states, beside what every plugin states (see ``plugins``):

    Parameters   a ``TermParameters`` with fields of its own
    needs        (parameters) -> Needs: which rows it reads, and what of the model at them
    values       (parameters, rows) -> Tensor [n]: what is averaged over ``Needs.averaged_over``
    alternative  (parameters, row) -> str: only if ``Needs.alternative``: another answer to the row's input

``values`` is called once for each packed pass, with the rows of whole micro-batches: one optimizer step may take several passes,
whose sums are divided by the number of the step's rows, label tokens or micro-batches. So one value stands for one of these.

The interface is provisional until version 1.0.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from expunge_jobs.core.schema import Float, Schema

if TYPE_CHECKING:
    from torch import Tensor

Side = Literal["forget", "retain"]
Weight = Annotated[Float, Field(ge=0)]


class TermParameters(Schema):
    """What every term has."""

    weight: Weight = 1.0


@dataclass(frozen=True)
class Needs:
    """What a term reads."""

    sets: tuple[Side, ...]
    """Whose rows: ``("forget",)``, ``("retain",)`` or both."""
    positions: Literal["output", "all"] = "output"
    """Where logits and hidden states are taken: the positions that predict label tokens, or all of prompt and output."""
    reference: frozenset[Literal["nll", "logits", "hidden"]] = frozenset()
    """What it asks of the model before unlearning (the same model with its adapter off)."""
    hidden: tuple[str, ...] = ()
    """Modules whose output it reads, by their names in the model (``model.layers.7``)."""
    alternative: bool = False
    """It also reads each row with the answer that ``alternative`` gives."""
    averaged_over: Literal["rows", "labels", "micro_batches"] = "rows"
    """What one value of ``values`` stands for."""


@dataclass(slots=True)
class RowOutput:
    """What the policy, and the reference where a term needs it, say of one row. Logits are float32.

    Label tokens are the output's tokens and the end token. Positions are those of ``Needs.positions``, the widest that a term of
    the row's set asks for; those that predict label tokens are the last.
    """

    nll: Tensor
    """[labels]: the policy's -log p of each label token."""
    logits: Tensor | None = None
    """[positions, vocabulary]."""
    reference_nll: Tensor | None = None
    """[labels]: the reference's -log p, without gradient."""
    reference_logits: Tensor | None = None
    """[positions, vocabulary], without gradient."""
    micro_batch: int = 0
    """Which micro-batch of the optimizer step the row is in."""
    side: Side = "forget"
    hidden: Mapping[str, Tensor] = field(default_factory=dict)
    """[positions, width] by module."""
    reference_hidden: Mapping[str, Tensor] = field(default_factory=dict)
    """The reference's, without gradient."""
    alternative: RowOutput | None = None
    """The same row with the other answer."""


Rows = Sequence[RowOutput]
