"""Metrics, one a file: scores made from an evaluation's rows alone. Loads no torch.

A metric's module states, beside what every plugin states (see ``plugins``):

    COLUMNS      the scores of the first table, in order; the others are in ``-o json``
    compute      (rows) -> {score: a number, or why there is none}
    READS_TEXT   optional, True where it reads ``input`` or ``reference``: these are not stored, so such a metric cannot be
                 computed again after the evaluation

A score that cannot be computed is a ``Missing`` with the reason, never a guess. Scores of all metrics share one space of names:
begin them with the metric's own. The interface is provisional until version 1.0.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any


@dataclass(slots=True)
class EvaluatedRow:
    """One line of ``rows.jsonl``."""

    set: str
    id: str
    document: str
    kind: str
    task: str = ""
    generation: str | None = None
    ended: bool | None = None
    """Whether the model ended its generation itself."""
    score: float | None = None
    """sc: ROUGE-L recall; qa: 1 if equal; choice: 1 if right."""
    output_nll: float | None = None
    """Sum of -log p over the label tokens, in nats."""
    output_tokens: int | None = None
    extraction: float | None = None
    document_nll: float | None = None
    """Mean of -log p over all tokens of input, separator and output but the first, in nats."""
    input: str | None = None
    """What the model was asked. Not stored: an artifact holds no row's own text."""
    reference: str | None = None
    """The output that the row has. Not stored."""


TEXTS = ("input", "reference")
"""Fields of a row that are not stored."""


@dataclass(frozen=True, slots=True)
class Column:
    """A column of the table of scores."""

    title: str
    score: str


@dataclass(frozen=True, slots=True)
class Missing:
    """Why a score could not be computed."""

    reason: str


Scores = dict[str, float | Missing]
Rows = Sequence[EvaluatedRow]


def cells(rows: Rows, kind: str) -> dict[tuple[str, str], list[float]]:
    """Row scores of one kind by (set, task), for the forget and retain sets."""
    out: dict[tuple[str, str], list[float]] = defaultdict(list)
    for row in rows:
        if row.kind == kind and row.set in ("forget", "retain") and row.score is not None:
            out[row.set, row.task].append(row.score)
    return dict(sorted(out.items()))


def mean(values: Sequence[float]) -> float:
    """The arithmetic mean of at least one value."""
    return sum(values) / len(values)


def row_score(kind: str, expected: str, generated: str) -> float:
    """sc: ROUGE-L recall with stemming (Google's rouge_score, as the SemEval task's script); qa: 1 if the whole
    generation equals the output but for case and outer blanks."""
    if kind == "qa":
        return float(generated.strip().lower() == expected.strip().lower())
    return float(_scorer().score(expected, generated)["rougeL"].recall)


@cache
def _scorer() -> Any:
    from rouge_score import rouge_scorer

    return rouge_scorer.RougeScorer(["rougeL"], use_stemmer=True)
