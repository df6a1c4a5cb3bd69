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


def verdict(results: Sequence[Result]) -> list[str]:
    """For each group of trials a sentence: whether the merge beat every specialist and control on the aggregate."""
    out = []
    for group in dict.fromkeys(r.group for r in results):
        mine = [r for r in results if r.group == group]
        merged = {r.seed: r.metrics["task_aggregate"] for r in mine if r.model == "merged"}
        if merged:
            prefix = f"{group}: " if group != "default" else ""
            out.append(prefix + _sentence(mine, merged))
    return out


def _sentence(results: list[Result], merged: dict[int, float | None]) -> str:
    rivals: dict[str, dict[int, float | None]] = defaultdict(dict)
    for r in results:
        if r.model not in ("base", "merged"):
            rivals[r.model][r.seed] = r.metrics["task_aggregate"]
    missing = sum(v is None for values in (merged, *rivals.values()) for v in values.values())
    if missing:
        return f"Nothing can be said of the merge yet: {missing} task aggregates are missing."
    if len(merged) == 1:
        return _one_seed(rivals, merged)
    beaten: list[str] = []
    equal: list[str] = []
    lost: list[str] = []
    for name, values in rivals.items():
        difference = mean_interval([float(merged[s] or 0) - float(values[s] or 0) for s in merged])
        text = f"{name} ({_signed(difference.mean)} [{_signed(difference.low or 0)}, {_signed(difference.high or 0)}])"
        target = beaten if (difference.low or 0) > 0 else lost if (difference.high or 0) < 0 else equal
        target.append(text)
    parts = []
    if beaten:
        parts.append(f"beats {', '.join(beaten)}")
    if lost:
        parts.append(f"IS BEATEN BY {', '.join(lost)}")
    if equal:
        parts.append(f"shows NO DIFFERENCE to {', '.join(equal)}")
    head = "The merge beats every specialist, baseline and control" if not lost and not equal else (
        "The merge does NOT beat every specialist, baseline and control"
    )  # fmt: skip
    return (
        f"{head}. Over {len(merged)} seeds it {'; it '.join(parts)} "
        "(difference of task aggregates, 95 % interval over unlearning seeds)."
    )


def _one_seed(rivals: dict[str, dict[int, float | None]], merged: dict[int, float | None]) -> str:
    (seed, value), = merged.items()  # fmt: skip
    own = float(value or 0)
    above = [n for n, v in rivals.items() if float(v[seed] or 0) >= own]
    said = "the merge is above every specialist, baseline and control" if not above else (
        f"the merge is NOT above {', '.join(f'{n} ({float(rivals[n][seed] or 0):.3f})' for n in above)}"
    )  # fmt: skip
    return f"On this one seed {said} (merged {own:.3f}); one seed cannot tell: sweep.seed: [0, 1, 2, 3, 4] does."


def _signed(value: float) -> str:
    return f"{value:+.3f}"
