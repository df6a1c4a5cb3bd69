"""Objective terms, one in each file.

The loss is the sum over terms of weight x mean of the term's values.

A term's module defines, in addition to the attributes of every plugin (see ``plugins``):

    Parameters   a ``TermParameters`` with fields of its own
    needs        (parameters) -> Needs: the rows that the term reads, and the model's outputs at these rows
    values       (parameters, rows) -> Tensor [n]: the values to average over ``Needs.averaged_over``
    alternative  (parameters, row) -> str: only if ``Needs.alternative``: another answer to the row's input

``values`` is called once for each forward pass, with the rows of one or more micro-batches. A large micro-batch may
come in parts, if no term reads both sets or averages over micro-batches. One optimizer step may take several passes.
The sums of these passes are divided by the number of the step's rows, label tokens or micro-batches.
Therefore one value stands for one row, label token or micro-batch.

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

__all__ = [
    "Needs",
    "RowOutput",
    "Rows",
    "Side",
    "TermParameters",
    "Weight",
]

Side = Literal["forget", "retain"]
Weight = Annotated[Float, Field(ge=0)]


class TermParameters(Schema):
    """The parameters of every term."""

    weight: Weight = 1.0


@dataclass(frozen=True)
class Needs:
    """The inputs of a term."""

    sets: tuple[Side, ...]
    """Sets whose rows the term reads: ``("forget",)``, ``("retain",)`` or both."""
    positions: Literal["output", "all"] = "output"
    """Positions of logits and hidden states: where label tokens are predicted, or all of prompt and output."""
    reference: frozenset[Literal["nll", "logits", "hidden"]] = frozenset()
    """Outputs of the model before unlearning (the same model with its adapter off)."""
    hidden: tuple[str, ...] = ()
    """Modules whose output the term reads, by their names in the model (``model.layers.7``)."""
    alternative: bool = False
    """Whether the term also reads each row with the answer from ``alternative``."""
    averaged_over: Literal["rows", "labels", "micro_batches"] = "rows"
    """Unit of one value of ``values``."""

    def __post_init__(self) -> None:
        """Refuse words that are not allowed.

        Raises:
            ValueError: the field, its value and the allowed words.
        """
        for field_name, found, allowed in (
            ("sets", self.sets, ("forget", "retain")),
            ("positions", (self.positions,), ("output", "all")),
            ("reference", tuple(self.reference), ("nll", "logits", "hidden")),
            ("averaged_over", (self.averaged_over,), ("rows", "labels", "micro_batches")),
        ):
            if wrong := [w for w in found if w not in allowed]:
                raise ValueError(f"Needs.{field_name} has {wrong[0]!r}; allowed: {', '.join(allowed)}")
        if not self.sets:
            raise ValueError("Needs.sets is empty; allowed: forget, retain")


@dataclass(slots=True)
class RowOutput:
    """The outputs of the policy, and of the reference if needed, for one row.

    Logits are float32.

    Label tokens are the output's tokens and the end token. Positions are those of ``Needs.positions``, the widest that
    a term of the row's set requests. The positions that predict label tokens are the last.
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
    """Micro-batch of the row in the optimizer step."""
    side: Side = "forget"
    hidden: Mapping[str, Tensor] = field(default_factory=dict)
    """[positions, width] by module."""
    reference_hidden: Mapping[str, Tensor] = field(default_factory=dict)
    """[positions, width] by module, of the reference, without gradient."""
    alternative: RowOutput | None = None
    """The same row with the other answer."""


Rows = Sequence[RowOutput]
