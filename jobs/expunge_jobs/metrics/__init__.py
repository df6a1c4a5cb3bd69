"""Metrics, one in each file.

A metric computes scores from an evaluation's rows alone. The package loads no torch.

A metric's module defines, in addition to the attributes of every plugin (see ``plugins``):

    COLUMNS      the scores of the first table, in order; the others are in ``-o json``
    compute      (rows) -> {score: a number, or the reason for its absence}
    READS_TEXT   optional, True if the metric reads ``input`` or ``reference``: these are not stored, so the metric
                 cannot be computed again after the evaluation

A score that cannot be computed is a ``Missing`` with the reason, never a guess. The scores of all metrics share one
namespace. Therefore begin a score's name with the metric's name. The interface is provisional until version 1.0.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

from expunge_jobs.core import scripts

__all__ = [
    "Column",
    "EvaluatedRow",
    "Missing",
    "Rows",
    "Scores",
    "cells",
    "mean",
    "row_score",
]


@dataclass(slots=True)
class EvaluatedRow:
    """A line of ``rows.jsonl``."""

    set: str
    id: str
    document: str
    kind: str
    task: str = ""
    generation: str | None = None
    ended: bool | None = None
    """Whether the model ended its generation itself."""
    score: float | None = None
    """The score by kind. sc: ROUGE-L recall; qa: 1 if equal; choice: 1 if right."""
    recall: float | None = None
    """ROUGE-L recall of an answer of many words, where ``score`` is 0 for one wrong word."""
    tokenizer: str | None = None
    """``scripts`` if ROUGE-L reads this row with ``core.scripts`` in place of its own tokenizer."""
    output_nll: float | None = None
    """Sum of -log p over the label tokens, in nats."""
    output_tokens: int | None = None
    extraction: float | None = None
    document_nll: float | None = None
    """Mean of -log p over all tokens of input, separator and output except the first, in nats."""
    input: str | None = None
    """The model's prompt. Not stored: an artifact holds no row's own text."""
    reference: str | None = None
    """The row's own output. Not stored."""


TEXTS = ("input", "reference")
"""Fields of a row that are not stored."""


@dataclass(frozen=True, slots=True)
class Column:
    """A column of the table of scores."""

    title: str
    score: str
    better: Literal["higher", "lower"] | float = "higher"
    """The good direction, or the value to which a good score is near."""
    optional: bool = False
    """Whether the column is left out where no model has the score."""

    def is_valid(self) -> bool:
        """Return whether the fields have their types; a plugin may pass anything."""
        better = self.better in ("higher", "lower") or (
            isinstance(self.better, int | float) and not isinstance(self.better, bool)
        )
        return isinstance(self.title, str) and isinstance(self.score, str) and better


@dataclass(frozen=True, slots=True)
class Missing:
    """The reason why a score could not be computed."""

    reason: str


Scores = dict[str, float | Missing]
Rows = Sequence[EvaluatedRow]


def cells(rows: Rows, kind: str) -> dict[tuple[str, str], list[float]]:
    """Return row scores of one kind by (set, task), for forget and retain."""
    out: dict[tuple[str, str], list[float]] = defaultdict(list)
    for row in rows:
        if row.kind == kind and row.set in ("forget", "retain") and row.score is not None:
            out[row.set, row.task].append(row.score)
    return dict(sorted(out.items()))


def mean(values: Sequence[float]) -> float:
    """Return the arithmetic mean of at least one value."""
    return sum(values) / len(values)


LONG_ANSWER = 5
"""Words of an answer. A longer one is a sentence, which a model may say in other words."""


def row_score(kind: str, expected: str, generated: str) -> float:
    """Return the score of a generation against the expected output.

    Kind ``sc``: ROUGE-L recall, see ``rouge_recall``. Kind ``qa``: 1 if the whole generation equals the output, except
    for case and outer whitespace.
    """
    if kind == "qa":
        return float(generated.strip().lower() == expected.strip().lower())
    return rouge_recall(expected, generated)


def rouge_recall(expected: str, generated: str) -> float:
    """Return ROUGE-L recall with stemming.

    The scorer is Google's rouge_score, as in the SemEval task's script. That package reads the letters a to z alone.
    Texts of other scripts are read by ``core.scripts``.
    """
    scorer = _scorer() if scripts.is_latin(expected) else _scorer_of_scripts()
    return float(scorer.score(expected, generated)["rougeL"].recall)


def judged(kind: str, expected: str, generated: str) -> dict[str, Any]:
    """Return the fields of an evaluated row that judge its generation."""
    words = expected.split() if scripts.is_latin(expected) else scripts.tokenize(expected)
    is_text = kind == "sc" or len(words) > LONG_ANSWER
    return {
        "score": row_score(kind, expected, generated),
        "recall": rouge_recall(expected, generated) if kind == "qa" and is_text else None,
        "tokenizer": "scripts" if is_text and not scripts.is_latin(expected) else None,
    }


@cache
def _scorer() -> Any:
    from rouge_score import rouge_scorer

    return rouge_scorer.RougeScorer(["rougeL"], use_stemmer=True)


@cache
def _scorer_of_scripts() -> Any:
    from rouge_score import rouge_scorer

    return rouge_scorer.RougeScorer(["rougeL"], tokenizer=scripts)
