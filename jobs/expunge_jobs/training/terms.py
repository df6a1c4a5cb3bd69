"""The terms of an objective and their combined needs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from expunge_jobs.core.errors import BadTask
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
        """Ask the plugin for the needs of these parameters.

        Raises:
            BadTask: the plugin gives no ``Needs``, or ``Needs`` that are not allowed.
        """
        try:
            needs = call.plugin.needs(call.parameters)
        except Exception as error:
            raise BadTask(f"the objective '{call.name}': needs fails: {type(error).__name__}: {error}") from error
        if not isinstance(needs, Needs):
            raise BadTask(f"the objective '{call.name}': needs gives a {type(needs).__name__}, not Needs")
        if needs.alternative and not callable(getattr(call.plugin, "alternative", None)):
            raise BadTask(f"the objective '{call.name}' needs alternatives, but has no function alternative")
        return cls(call, needs)

    @property
    def name(self) -> str:
        return self.call.name

    @property
    def weight(self) -> float:
        parameters: Any = self.call.parameters
        return float(parameters.weight)

    def values(self, rows: Sequence[RowOutput]) -> Tensor:
        """Return the plugin's values for these rows.

        The term is their mean over ``Needs.averaged_over``.

        Raises:
            BadTask: the plugin gives no tensor with a value for each of what it averages over, or one without gradient.
        """
        found: Any = self.call.plugin.values(self.call.parameters, rows)
        over = self.needs.averaged_over
        if over == "rows":
            wanted = len(rows)
        elif over == "labels":
            wanted = sum(len(r.nll) for r in rows)
        else:
            wanted = len({r.micro_batch for r in rows})
        said = ""
        if not isinstance(found, Tensor):
            said = f"a {type(found).__name__}, not a tensor"
        elif found.shape != (wanted,):
            said = f"a tensor of {list(found.shape)}, not one value for each of the {wanted} {over.replace('_', ' ')}"
        elif not found.requires_grad:
            said = "values without a gradient"
        if said:
            raise BadTask(f"the objective '{self.name}': values gives {said}")
        return found  # type: ignore[no-any-return]

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
