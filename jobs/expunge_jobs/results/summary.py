"""Evaluations' manifests -> rows of figures, means over seeds, and the sentence that says what they show. No torch.

Every figure comes from an evaluation's manifest or from its ``rows.jsonl``; nothing is computed from anything else.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from expunge_jobs import plugins
from expunge_jobs.artifacts.manifests import folder, read_manifest
from expunge_jobs.core.errors import DamagedInput
from expunge_jobs.metrics import EvaluatedRow
from expunge_jobs.results.intervals import Interval, mean_interval
from expunge_jobs.results.scores import compute_all
from expunge_jobs.store import Store
from expunge_jobs.tasks.references import ArtifactRef

CORE = (
    "task_aggregate", "regurgitation/forget", "regurgitation/retain", "knowledge/forget", "knowledge/retain", "mia_score",
    "mia_auc", "mmlu", "final", "extraction/forget", "extraction/retain", "collapse", "probe",
)  # fmt: skip
"""Figures that every row has, null with a reason where they cannot be had."""


class Asked(Protocol):
    """One model of one trial, and the evaluation that judges it."""

    @property
    def trial(self) -> str: ...
    @property
    def group(self) -> str: ...
    @property
    def seed(self) -> int: ...
    @property
    def model(self) -> str: ...
    @property
    def step(self) -> str: ...


@dataclass(frozen=True)
class Result:
    """A row of the results: figures by name, or why there is none."""

    trial: str
    group: str
    seed: int
    model: str
    step: str
    metrics: dict[str, float | None]
    reasons: dict[str, str] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """The row of the public contract."""
        return {
            "trial": self.trial, "seed": self.seed, "model": self.model, "step": self.step, "metrics": self.metrics,
            "reasons": self.reasons,
        }  # fmt: skip


def collect(store: Store, asked: Iterable[Asked], waiting: dict[str, str] | None = None) -> list[Result]:
    """A row for each model of each trial; ``waiting`` says by step why an evaluation is not there."""
    asked = list(asked)
    waiting = dict(waiting or {})
    by_step: dict[str, tuple[dict[str, float | None], dict[str, str]] | None] = {}
    for row in asked:
        if row.step not in by_step:
            try:
                by_step[row.step] = figures(store, row.step)
            except DamagedInput as error:  # one evaluation's; the others' figures are still good
                by_step[row.step], waiting[row.step] = None, str(error)
    names = dict.fromkeys(CORE)
    for found in by_step.values():
        names |= dict.fromkeys(found[0] if found else ())
    out = []
    for row in asked:
        found = by_step[row.step]
        values, reasons = found if found else ({}, {})
        why = waiting.get(row.step, "not evaluated yet")
        out.append(Result(
            row.trial, row.group, row.seed, row.model, row.step, {n: values.get(n) for n in names},
            {n: reasons.get(n, "this evaluation has no such rows" if found else why) for n in names if values.get(n) is None},
        ))  # fmt: skip
    return out


def figures(store: Store, key: str) -> tuple[dict[str, float | None], dict[str, str]] | None:
    """An evaluation's figures and the reasons for those that are null; None while it is not done.

    Figures of a metric that was made by another version of its code are made again from the rows.
    """
    ref = ArtifactRef(kind="evaluate", key=key)
    manifest = read_manifest(store, ref)
    if manifest is None:
        return None
    stored: dict[str, Any] = manifest.figures["metrics"]
    names = plugins.names("metrics")
    if any(n not in stored or stored[n]["version"] != plugins.version("metrics", n) for n in names):
        data, _ = store.get(f"{folder(ref)}/attempts/{manifest.attempt}/rows.jsonl")
        stored = compute_all([EvaluatedRow(**json.loads(line)) for line in data.decode().splitlines()])
    values: dict[str, float | None] = {}
    reasons: dict[str, str] = {}
    for name in names:
        values |= stored[name]["values"]
        reasons |= stored[name]["reasons"]
    return values, reasons


@dataclass(frozen=True)
class Row:
    """A model over the seeds of one group of trials."""

    group: str
    model: str
    results: tuple[Result, ...]
    best_single: bool = False

    def interval(self, name: str) -> Interval | None:
        """Mean over the seeds, if every one of them has the figure."""
        values = [r.metrics.get(name) for r in self.results]
        return mean_interval([v for v in values if v is not None]) if values and None not in values else None


def by_model(results: Sequence[Result]) -> list[Row]:
    """One row for each model; models that several groups share (the base, say) once. A mark on the best single run."""
    grouped: dict[tuple[str, str], list[Result]] = defaultdict(list)
    for result in results:
        grouped[result.group, result.model].append(result)
    shared: dict[tuple[str, tuple[str, ...]], list[tuple[str, list[Result]]]] = defaultdict(list)
    for (group, model), members in grouped.items():
        distinct = {r.step: r for r in members}
        shared[model, tuple(distinct)].append((group, list(distinct.values())))
    groups = list(dict.fromkeys(r.group for r in results))
    rows = []
    for (model, _), found in shared.items():
        # A model of every group belongs to none of them.
        group = found[0][0] if len(found) < len(groups) or len(groups) == 1 else ""
        rows.append(Row("" if group == "default" else group, model, tuple(found[0][1])))
    single = [(r.interval("task_aggregate"), r) for r in rows if is_single(r.model)]
    best = max(((i.mean, r) for i, r in single if i is not None), key=lambda pair: pair[0], default=None)
    return [Row(r.group, r.model, r.results, best is not None and r is best[1]) for r in rows]


def is_single(model: str) -> bool:
    """Whether a model is one fine-tune: no base, merge or control."""
    return model not in ("base", "merged") and not model.startswith("control:")
