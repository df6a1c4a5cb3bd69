"""Figures of models from evaluations' manifests, and means over seeds.

Every figure comes from an evaluation's manifest or its ``rows.jsonl``. No other source is used. The module loads no
torch.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple

from expunge_jobs import plugins
from expunge_jobs.artifacts.manifests import read_manifest
from expunge_jobs.core.errors import DamagedInput
from expunge_jobs.results.documents import stored_rows
from expunge_jobs.results.intervals import Interval, mean_interval
from expunge_jobs.results.scores import compute_all
from expunge_jobs.store import Store
from expunge_jobs.tasks.references import ArtifactRef, ModelRef

CORE = (
    "task_aggregate",
    "regurgitation/forget",
    "regurgitation/retain",
    "knowledge/forget",
    "knowledge/retain",
    "mia_score",
    "mia_auc",
    "mmlu",
    "final",
    "extraction/forget",
    "extraction/retain",
    "collapse",
    "probe",
)
"""Metrics of every model. A metric that is not available is null, with a reason."""


Role = Literal["base", "specialist", "baseline", "reference", "merged", "control"]
_OWN: dict[str, Role] = {"base": "base", "merged": "merged"}


@dataclass(frozen=True)
class EvaluatedModel:
    """A model of a trial, with the evaluation that judges the model.

    After the evaluation is read, the object has the scores or the reasons for their absence.
    """

    trial: str
    group: str
    """The trial's name without the seed. A group's trials share one mean."""
    seed: int
    model: str
    step: str
    """The evaluation's key."""
    metrics: Mapping[str, float | None] = field(default_factory=dict)
    reasons: Mapping[str, str] = field(default_factory=dict)
    made_with: Mapping[str, str] = field(default_factory=dict)
    """The device and the versions of libraries that evaluated it."""
    ref: ModelRef | None = None
    """The model itself, if a plan made this object."""
    role: Role = "specialist"
    """Records of earlier versions do not have the role; ``__post_init__`` reads it from the model's name."""

    def __post_init__(self) -> None:
        """Set the role of a model whose name has one."""
        own: Role | None = "control" if self.model.startswith("control:") else _OWN.get(self.model)
        if own is not None:
            object.__setattr__(self, "role", own)

    def as_json(self) -> dict[str, Any]:
        """Return the row of the public contract."""
        return {
            "trial": self.trial,
            "seed": self.seed,
            "model": self.model,
            "role": self.role,
            "step": self.step,
            "metrics": dict(self.metrics),
            "reasons": dict(self.reasons),
        }


def collect(
    store: Store, models: Iterable[EvaluatedModel], waiting: Mapping[str, str] | None = None
) -> list[EvaluatedModel]:
    """Read the scores of every model.

    ``waiting`` gives, by step, the reason for a missing evaluation.
    """
    models = list(models)
    waiting = dict(waiting or {})
    by_step: dict[str, StoredScores | None] = {}
    for step in dict.fromkeys(m.step for m in models):
        try:
            by_step[step] = read_scores(store, step)
        except DamagedInput as error:  # only one evaluation is damaged; the other scores stay valid
            by_step[step], waiting[step] = None, str(error)
    names = dict.fromkeys(CORE)
    for found in by_step.values():
        names |= dict.fromkeys(found.values if found else ())
    out = []
    for model in models:
        found = by_step[model.step]
        values, reasons, made_with = found or StoredScores({}, {}, {})
        why = "this evaluation has no such rows" if found else waiting.get(model.step, "not evaluated yet")
        metrics = {n: values.get(n) for n in names}
        missing = {n: reasons.get(n, why) for n in names if metrics[n] is None}
        out.append(replace(model, metrics=metrics, reasons=missing, made_with=made_with))
    return out


class StoredScores(NamedTuple):
    """An evaluation's scores, the reasons for null scores, and what made them."""

    values: dict[str, float | None]
    reasons: dict[str, str]
    made_with: dict[str, str]


def read_scores(store: Store, key: str) -> StoredScores | None:
    """Return what an evaluation found.

    The result is None while the evaluation is not done. Scores of a metric whose code has another version now are
    computed again from the rows. Scores of a metric that is not installed here stay as stored.
    """
    ref = ArtifactRef(kind="evaluate", key=key)
    manifest = read_manifest(store, ref)
    if manifest is None:
        return None
    stored: dict[str, Any] = dict(manifest.figures["metrics"])
    old = frozenset(n for n in plugins.names("metrics") if _is_old(n, stored.get(n)))
    if old:
        stored |= compute_all(stored_rows(store, manifest), only=old)
    values: dict[str, float | None] = {}
    reasons: dict[str, str] = {}
    # Own metrics last: what another distribution's metric has stored under their names does not count.
    for name in sorted(stored, key=lambda n: plugins.is_own("metrics", n)):
        values |= stored[name]["values"]
        reasons = {k: v for k, v in reasons.items() if k not in stored[name]["values"]} | stored[name]["reasons"]
    return StoredScores(values, reasons, {"device": manifest.device, **manifest.versions})


def _is_old(name: str, stored: dict[str, Any] | None) -> bool:
    """Return whether to compute a metric again from the stored rows."""
    try:
        plugin = plugins.load("metrics", name)
    except plugins.PluginError:  # the stored scores stay in use
        return False
    if getattr(plugin, "READS_TEXT", False):
        return False
    return stored is None or stored["version"] != plugin.VERSION


@dataclass(frozen=True)
class Summary:
    """A model over the seeds of one group of trials."""

    group: str
    model: str
    models: tuple[EvaluatedModel, ...]
    best_single: bool = False

    @property
    def role(self) -> Role:
        return self.models[0].role

    @property
    def is_single(self) -> bool:
        """Whether the model is one fine-tune."""
        return self.role in ("specialist", "baseline")

    def interval(self, name: str) -> Interval | None:
        """Return the mean over the seeds, or None if a seed lacks the figure."""
        values = [r.metrics.get(name) for r in self.models]
        return mean_interval([v for v in values if v is not None]) if values and None not in values else None


def by_model(models: Sequence[EvaluatedModel]) -> list[Summary]:
    """Return one row for each model, with a mark on the best single run.

    A model that several groups share (the base, for example) has one row.
    """
    grouped: dict[tuple[str, str], list[EvaluatedModel]] = defaultdict(list)
    for each in models:
        grouped[each.group, each.model].append(each)
    shared: dict[tuple[str, tuple[str, ...]], list[tuple[str, list[EvaluatedModel]]]] = defaultdict(list)
    for (group, model), members in grouped.items():
        distinct = {r.step: r for r in members}
        shared[model, tuple(distinct)].append((group, list(distinct.values())))
    groups = list(dict.fromkeys(m.group for m in models))
    rows = []
    for (model, _), found in shared.items():
        # A model of every group belongs to no group.
        group = found[0][0] if len(found) < len(groups) or len(groups) == 1 else ""
        rows.append(Summary("" if group == "default" else group, model, tuple(found[0][1])))
    single = [(r.interval("task_aggregate"), r) for r in rows if r.is_single]
    scored = [(i.mean, r) for i, r in single if i is not None]
    best = max(scored, key=lambda pair: pair[0], default=None)
    if best is not None and (best[0] <= 0 or (len(scored) > 1 and all(mean == best[0] for mean, _ in scored))):
        best = None  # all are equal, or zero; therefore none is the best
    return [Summary(r.group, r.model, r.models, best is not None and r is best[1]) for r in rows]
