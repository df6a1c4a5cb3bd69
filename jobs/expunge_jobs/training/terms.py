"""An objective's terms, ready to be computed, and what they need together."""

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
        """Ask the plugin what it needs with these parameters."""
        return cls(call, call.plugin.needs(call.parameters))

    @property
    def name(self) -> str:
        return self.call.name

    @property
    def weight(self) -> float:
        parameters: Any = self.call.parameters
        return float(parameters.weight)

    def values(self, rows: Sequence[RowOutput]) -> Tensor:
        """What the plugin gives for these rows; their mean over ``Needs.averaged_over`` is the term."""
        found: Tensor = self.call.plugin.values(self.call.parameters, rows)
        return found

    def count(self, draws: Sequence[Draw], rows: Sequence[Encoded]) -> int:
        """What the sum of an optimizer step's values is divided by; ``rows`` are those that were drawn."""
        mine = [(d, r) for d, r in zip(draws, rows, strict=True) if d.side in self.needs.sets]
        if self.needs.averaged_over == "micro_batches":
            return len({d.micro_batch for d, _ in mine})
        if self.needs.averaged_over == "labels":
            return sum(len(r.labels) for _, r in mine)
        return len(mine)


@dataclass(frozen=True)
class SideNeeds:
    """What the terms that read a set need of the model at its rows, all together."""

    terms: tuple[Term, ...]

    @classmethod
    def of(cls, terms: Sequence[Term], side: Side) -> SideNeeds:
        """The needs at one set's rows."""
        return cls(tuple(t for t in terms if side in t.needs.sets))

    @property
    def reference(self) -> frozenset[str]:
        return frozenset(r for t in self.terms for r in t.needs.reference)

    @property
    def hidden(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(h for t in self.terms for h in t.needs.hidden))

    def positions(self, row: Encoded) -> range:
        """Positions whose logits some term reads; those of the label tokens are always the last."""
        everything = any(t.needs.positions == "all" for t in self.terms)
        return range(0 if everything else row.prompt - 1, len(row.ids) - 1)
