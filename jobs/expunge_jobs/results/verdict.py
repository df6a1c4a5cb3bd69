"""The verdict: the lines below the table."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from expunge_jobs.artifacts.manifests import folder, read_manifest
from expunge_jobs.results.intervals import Interval
from expunge_jobs.results.summary import EvaluatedModel
from expunge_jobs.store import Store
from expunge_jobs.tasks.references import ArtifactRef

BASELINES = "baselines"
"""Name of the rival that is the best of the baselines."""
COMPARISONS = "comparisons.json"
"""File of a report with the comparisons of every group."""


@dataclass(frozen=True)
class Comparison:
    """A merge against one rival, by task aggregate over a group's seeds."""

    group: str
    rival: str
    """Name of a specialist, or ``BASELINES``."""
    candidates: tuple[str, ...]
    """Models from which the rival's best setting was chosen."""
    chosen: tuple[str, ...]
    """Models that were chosen, on some seed and half."""
    merged: float
    best: float
    """The rival's aggregate, with each document scored by the setting that won on the other half."""
    seeds: Interval
    """Mean difference, merge minus rival, with its interval over seeds."""
    documents: Interval
    """The same, with its interval over documents."""

    @property
    def outcome(self) -> Literal["won", "lost", "open"]:
        """What both intervals show; a difference counts if both exclude 0."""
        both = (self.seeds, self.documents)
        if all(i.low is not None and i.low > 0 for i in both):
            return "won"
        return "lost" if all(i.high is not None and i.high < 0 for i in both) else "open"

    def as_json(self) -> dict[str, Any]:
        """Return the comparison as part of the public contract."""
        intervals = {k: getattr(self, k)._asdict() for k in ("seeds", "documents")}
        return {**asdict(self), **intervals, "outcome": self.outcome}

    @classmethod
    def from_json(cls, found: dict[str, Any]) -> Comparison:
        """Restore a comparison from ``as_json``."""
        given = {k: v for k, v in found.items() if k != "outcome"}
        given |= {k: Interval(**found[k]) for k in ("seeds", "documents")}
        given |= {k: tuple(found[k]) for k in ("candidates", "chosen")}
        return cls(**given)


def read_comparisons(store: Store, report: ArtifactRef) -> list[Comparison] | None:
    """Return the comparisons of a report, or None while there is no report."""
    manifest = read_manifest(store, report)
    if manifest is None or all(f.path != COMPARISONS for f in manifest.files):  # or a report of 0.1
        return None
    data, _ = store.get(f"{folder(report)}/attempts/{manifest.attempt}/{COMPARISONS}")
    return [Comparison.from_json(c) for c in json.loads(data)]


def verdict(results: Sequence[EvaluatedModel], comparisons: Sequence[Comparison] | None) -> list[str]:
    """Return the lines on each group of trials that has a merge.

    ``comparisons`` is None before the report is made.
    """
    out = []
    for group in dict.fromkeys(r.group for r in results if r.model == "merged"):
        prefix = f"{group}: " if group != "default" else ""
        mine = [r for r in results if r.group == group]
        missing = sum(r.metrics["task_aggregate"] is None for r in mine)
        if missing:
            out.append(f"{prefix}Nothing can be said of the merge yet: {missing} task aggregates are missing.")
        elif comparisons is None:
            out.append(f"{prefix}No verdict yet: the report is missing; `expunge run` makes it.")
        else:
            lines = _lines([c for c in comparisons if c.group == group])
            out += [prefix + lines[0], *lines[1:]] if lines else []
    if any(line.startswith("  ") for line in out):
        out.append(
            "Task aggregates. A rival's best setting is chosen on one half of the documents and counted on the other. "
            "Intervals: 95 %, paired Student t over seeds, bootstrap over documents."
        )
    return out


def _lines(comparisons: Sequence[Comparison]) -> list[str]:
    if not comparisons:
        return []
    seeds = comparisons[0].seeds.n
    outcomes = [c.outcome for c in comparisons]
    if seeds == 1:
        above = all(c.merged > c.best for c in comparisons)
        head = f"One seed cannot tell (sweep.seed: [0, 1, 2, 3, 4] can). On this one the merge ({comparisons[0].merged:.3f}) is"
        head += " above every rival:" if above else " not above every rival:"
    elif all(o == "won" for o in outcomes):
        head = f"The merge beats every rival over {seeds} seeds:"
    elif "lost" in outcomes:
        head = f"The merge is beaten over {seeds} seeds:"
    else:
        head = f"The merge does not beat every rival over {seeds} seeds:"
    return [head, *(f"  {_line(c)}" for c in comparisons)]


def _line(found: Comparison) -> str:
    name = _rival(found)
    if found.seeds.n == 1:
        word = "above" if found.merged > found.best else "below" if found.merged < found.best else "level with"
        said = f"{word} {name}, {found.best:.3f}"
    else:
        words = {"won": "beats {}", "lost": "is beaten by {}", "open": "no difference can be shown to {}"}
        said = f"{words[found.outcome].format(name)}, {found.best:.3f}"
    known = [(i, what) for i, what in ((found.seeds, "seeds"), (found.documents, "documents")) if i.low is not None]
    shown = ", ".join(f"[{i.low:+.3f}, {i.high:+.3f}] over {what}" for i, what in known)
    return f"{said}: {found.seeds.mean:+.3f}, {shown}"


def _rival(found: Comparison) -> str:
    if found.rival == BASELINES:
        return f"the best baseline ({', '.join(found.chosen)})"
    if len(found.candidates) == 1:
        return found.rival
    scales = [c.rpartition("@")[2] if c.startswith("control:") else "1" for c in found.chosen]
    return f"{found.rival} at its best scale ({', '.join(scales)})"
