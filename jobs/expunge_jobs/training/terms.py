"""The terms of an objective and their combined needs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from expunge_jobs.modeling.encoding import Encoded
from expunge_jobs.objectives import Needs, RowOutput, Side
from expunge_jobs.plugins import PluginCall
from expunge_jobs.training.sampling import Draw


@dataclass(frozen=True)
class Term:
    """One term of the objective."""

    call: PluginCall
    needs: Needs

    @classmethod
    def of(cls, call: PluginCall) -> Term:
        """Create the term, with the plugin's needs for these parameters."""
        return cls(call, call.plugin.needs(call.parameters))

    @property
    def name(self) -> str:
        return self.call.name

    @property
    def weight(self) -> float:
        parameters: Any = self.call.parameters
        return float(parameters.weight)

    def values(self, rows: Sequence[RowOutput]) -> Tensor:
        """Return the plugin's values for the rows.

        The mean of the values over ``Needs.averaged_over`` is the term.
        """
        found: Tensor = self.call.plugin.values(self.call.parameters, rows)
        return found

    def count(self, draws: Sequence[Draw], rows: Sequence[Encoded]) -> int:
        """Return the divisor for the sum of an optimizer step's values.

        ``rows`` are the drawn rows, one for each draw.
        """
        mine = [(d, r) for d, r in zip(draws, rows, strict=True) if d.side in self.needs.sets]
        if self.needs.averaged_over == "micro_batches":
            return len({d.micro_batch for d, _ in mine})
        if self.needs.averaged_over == "labels":
            return sum(len(r.labels) for _, r in mine)
        return len(mine)


@dataclass(frozen=True)
class SideNeeds:
    """The combined needs of the terms that read one set.

    The needs are outputs of the model at the rows of the set.
    """

    terms: tuple[Term, ...]

    @classmethod
    def of(cls, terms: Sequence[Term], side: Side) -> SideNeeds:
        """Return the needs at the rows of one set."""
        return cls(tuple(t for t in terms if side in t.needs.sets))

    @property
    def reference(self) -> frozenset[str]:
        return frozenset(r for t in self.terms for r in t.needs.reference)

    @property
    def hidden(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(h for t in self.terms for h in t.needs.hidden))

    def positions(self, row: Encoded) -> range:
        """Return the positions whose logits some term reads.

        The positions of the label tokens are always the last.
        """
        everything = any(t.needs.positions == "all" for t in self.terms)
        return range(0 if everything else row.prompt - 1, len(row.ids) - 1)
