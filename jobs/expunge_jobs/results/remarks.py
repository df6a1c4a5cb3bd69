"""Remarks beside the verdict: whether there is anything to judge."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from expunge_jobs.metrics import LONG_ANSWER
from expunge_jobs.results.summary import EvaluatedModel, Summary, by_model

FORGET = ("regurgitation/forget", "knowledge/forget", "extraction/forget")
"""Scores of what a model still says of forget."""
SAME = 0.005
"""Difference of two scores below which they count as the same."""
KNOWN = 0.05
"""Score of the base on forget below which there is nothing to forget."""
ORIGINS = ("device", "expunge", "torch", "transformers", "peft", "tokenizers")
"""What changes scores a little: the device, and versions of the code."""
TOLD = 0.995
"""AUC from which every forget document counts as told from the others."""


def remarks(
    models: Sequence[EvaluatedModel], norm_of: Callable[[EvaluatedModel], float | None] = lambda model: None
) -> list[str]:
    """Return what a reader of the table has to know before the verdict.

    ``norm_of`` returns the norm of a merge's update, or None where it is not known.
    """
    rows = by_model(models)
    bases = {row.group: row for row in rows if row.model == "base"}
    out = [line for base in bases.values() for line in (*_of_base(base), *_of_rows(base))]
    for merged in (row for row in rows if row.model == "merged"):
        prefix = f"{merged.group}: " if merged.group else ""
        base = bases.get(merged.group) or bases.get("")
        if base is not None:
            out += [prefix + line for line in _of_merge(merged, base, norm_of)]
        out += [prefix + line for line in _of_membership(merged)]
    return out + list(_of_origin(models))


def _of_origin(models: Sequence[EvaluatedModel]) -> Iterator[str]:
    for name in ORIGINS:
        by_value: dict[str, dict[str, None]] = {}
        for model in models:
            if value := model.made_with.get(name):
                by_value.setdefault(value, {})[model.model] = None
        if len(by_value) > 1:
            said = "; ".join(f"{value} ({', '.join(names)})" for value, names in by_value.items())
            yield f"The models were not evaluated alike: {name} was {said}."


def _of_base(base: Summary) -> Iterator[str]:
    known = [v for name in FORGET if (v := _mean(base, name)) is not None]
    if known and max(known) < KNOWN:
        where = f" ({base.group})" if base.group else ""
        yield (
            f"The base knows {max(known):.0%} of forget{where}: there is nothing to forget here. Check data.template, "
            "data.separator and the model."
        )


def _of_rows(base: Summary) -> Iterator[str]:
    """Yield what the figures of some rows mean.

    Every model is asked the same rows; therefore the base's are enough.
    """
    if others := _mean(base, "regurgitation/other_scripts"):
        yield (
            f"regurg: ROUGE-L of {others:.0f} completions reads the words of their own script. ROUGE's tokenizer reads a to "
            "z alone."
        )
    if any(_mean(base, f"knowledge_recall/{side}") is not None for side in ("forget", "retain")):
        yield (
            f"know counts an answer with one wrong word as forgotten. know~ is ROUGE-L recall of the answers with more than "
            f"{LONG_ANSWER} words."
        )


def _of_merge(merged: Summary, base: Summary, norm_of: Callable[[EvaluatedModel], float | None]) -> Iterator[str]:
    pairs = [(_mean(merged, name), _mean(base, name)) for name in FORGET]
    known = [(m, b) for m, b in pairs if m is not None and b is not None]
    if known and max(b for _, b in known) >= KNOWN and all(abs(m - b) < SAME for m, b in known):
        norm = norm_of(merged.models[0])
        size = f" (norm of the update: {norm:.3g})" if norm is not None else ""
        yield f"merged says of forget what base says: nothing was forgotten{size}."


def _of_membership(merged: Summary) -> Iterator[str]:
    auc = _mean(merged, "mia_auc")
    if auc is not None and auc >= TOLD:
        yield f"Membership: every forget document can still be told from one that was never trained on (AUC {auc:.3f})."
    elif auc is not None and auc <= 1 - TOLD:
        yield (
            f"Membership: every forget document has a higher loss than any other (AUC {auc:.3f}). It is forgotten too much, "
            "and an attack can tell it by that."
        )


def _mean(row: Summary, name: str) -> float | None:
    found = row.interval(name)
    return found.mean if found is not None else None
