"""Comparison of a merge with its rivals, each at its best setting.

A rival is a specialist with its controls (the same update times other factors), or all baselines together. Its best
setting is chosen by cross-fitting. Within task and set, documents are sorted by the SHA-256 of their ids and dealt in
turn into two halves. Each document counts with the setting that won on the other half. Cells are made from all
documents. Therefore nothing is chosen on what it is judged by, and no cell is halved.

A difference has two intervals. Over seeds: Student's t on paired values, since each seed chooses for itself. Over
documents: a percentile bootstrap with the seeds and the choices fixed. Documents are resampled within task and set,
with the same draws for every model and seed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from expunge_jobs.results.documents import DocumentScores
from expunge_jobs.results.intervals import LEVEL, Interval, mean_interval
from expunge_jobs.results.summary import EvaluatedModel
from expunge_jobs.results.verdict import BASELINES, Comparison

Array = NDArray[np.float64]
DRAWS = 2000
"""Number of bootstrap draws."""
CHUNK = 1 << 22
"""Numbers of one block of draws, to bound memory."""
KINDS = ("sc", "qa")


class Stratum:
    """The documents of one set and task, in the order of their hashes."""

    def __init__(self, name: str, task: str, documents: Sequence[str]) -> None:
        self.set, self.task = name, task
        self.documents = sorted(documents)  # their names are hashes
        self.half = np.arange(len(self.documents)) % 2
        """Half of each document."""

    def table(self, scores: DocumentScores) -> Array:
        """Return [documents, kinds, 2]: sums of row scores, and numbers of rows."""
        found = scores.get(self.set, {}).get(self.task, {})
        rows = [[found.get(d, {}).get(kind, [0.0, 0]) for kind in KINDS] for d in self.documents]
        return np.array(rows, dtype=np.float64).reshape(len(self.documents), len(KINDS), 2)

    def cells(self, weights: Array, table: Array) -> Array:
        """Return [draws, kinds]: the cells; nan where a draw has no row."""
        rows = weights @ table[:, :, 1]
        means = (weights @ table[:, :, 0]) / np.where(rows > 0, rows, np.nan)
        return 1 - means if self.set == "forget" else means

    def draws(self) -> Iterator[Array]:
        """Yield [draws, documents], in blocks: how often a draw has a document."""
        n = len(self.documents)
        name = f"{self.set}/{self.task}".encode()
        generator = np.random.default_rng(int.from_bytes(hashlib.sha256(name).digest()[:8]))
        block = max(1, CHUNK // n)
        for start in range(0, DRAWS, block):
            yield generator.multinomial(n, [1 / n] * n, size=min(block, DRAWS - start)).astype(np.float64)


Tables = list[Array]
"""Of one model: a table for each stratum."""


def compare(models: Sequence[EvaluatedModel], read: Callable[[str], DocumentScores]) -> list[Comparison]:
    """Return the merge's comparison with each rival, for each group of trials.

    ``read`` returns the document scores of an evaluation by its key. A group in which a model is not evaluated, or
    that has no merge, has no comparison.
    """
    out = []
    for group in dict.fromkeys(m.group for m in models):
        trials: dict[str, dict[str, EvaluatedModel]] = {}
        for model in models:
            if model.group == group:
                trials.setdefault(model.trial, {})[model.model] = model
        found = list(trials.values())
        if all("merged" in t and all(m.metrics.get("task_aggregate") is not None for m in t.values()) for t in found):
            out += _of_group(group, found, read)
    return out


def _of_group(
    group: str, trials: Sequence[dict[str, EvaluatedModel]], read: Callable[[str], DocumentScores]
) -> list[Comparison]:
    settings = rivals(list(trials[0].values()))
    judged = [_judged(trial, settings, read) for trial in trials]
    out = []
    for number, (rival, candidates) in enumerate(settings.items(), start=1):
        over_seeds = mean_interval([float(t.aggregates[0] - t.aggregates[number]) for t in judged])
        sampled = np.mean([t.sampled[0] - t.sampled[number] for t in judged], axis=0)
        low, high = np.quantile(sampled, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
        chosen = {name for t in judged for name in t.chosen[number - 1]}
        out.append(
            Comparison(
                group=group,
                rival=rival,
                candidates=tuple(candidates),
                chosen=tuple(c for c in candidates if c in chosen),
                merged=float(np.mean([t.aggregates[0] for t in judged])),
                best=float(np.mean([t.aggregates[number] for t in judged])),
                seeds=over_seeds,
                documents=Interval(over_seeds.mean, float(low), float(high), judged[0].documents),
            )
        )
    return out


class _Judged(NamedTuple):
    """The merge and its rivals in one trial."""

    aggregates: Array
    """[1 + rivals]: the merge's task aggregate, and each rival's."""
    sampled: Array
    """[1 + rivals, draws]"""
    chosen: list[tuple[str, str]]
    """The setting of each rival, on each half."""
    documents: int


def _judged(
    trial: dict[str, EvaluatedModel], settings: dict[str, list[str]], read: Callable[[str], DocumentScores]
) -> _Judged:
    documents = Documents({name: read(m.step) for name, m in trial.items()})
    tables, chosen = [documents.tables["merged"]], []
    for candidates in settings.values():
        table, names = documents.cross_fitted(candidates)
        tables.append(table)
        chosen.append(names)
    aggregates = np.array([documents.aggregate(t) for t in tables])
    return _Judged(aggregates, documents.sampled(tables), chosen, sum(len(s.documents) for s in documents.strata))


def rivals(models: Sequence[EvaluatedModel]) -> dict[str, list[str]]:
    """Return the settings of each rival, as names of models, by its name."""
    out: dict[str, list[str]] = {}
    for model in models:
        if model.role == "specialist":
            out[model.model] = [model.model]
    for model in models:
        if model.role == "control":
            out[model.model.removeprefix("control:").rpartition("@")[0]].append(model.model)
    if baselines := [m.model for m in models if m.role == "baseline"]:
        out[BASELINES] = baselines
    return out


class Documents:
    """Row scores of a trial's models, by the merge's documents."""

    def __init__(self, scores: dict[str, DocumentScores]) -> None:
        merged = scores["merged"]
        self.strata = [Stratum(s, t, list(merged[s][t])) for s in sorted(merged) for t in sorted(merged[s])]
        self.tables: dict[str, Tables] = {name: [s.table(found) for s in self.strata] for name, found in scores.items()}

    def cross_fitted(self, candidates: Sequence[str]) -> tuple[Tables, tuple[str, str]]:
        """Return the cross-fitted scores, and the setting of each half.

        Of equal settings the first wins.
        """
        best = [max(candidates, key=lambda c: self.aggregate(self.tables[c], 1 - half)) for half in (0, 1)]
        first, second = (self.tables[name] for name in best)
        mixed = [
            np.where((s.half == 0)[:, None, None], a, b) for s, a, b in zip(self.strata, first, second, strict=True)
        ]
        return mixed, (best[0], best[1])

    def aggregate(self, tables: Tables, half: int | None = None) -> float:
        """Return the task aggregate of one half of the documents, or of all."""
        cells = [
            s.cells(np.ones((1, len(s.half))) if half is None else (s.half == half)[None].astype(np.float64), t)
            for s, t in zip(self.strata, tables, strict=True)
        ]
        return float(_harmonic(np.concatenate(cells, axis=1))[0]) if cells else 0.0

    def sampled(self, models: Sequence[Tables]) -> Array:
        """Return the task aggregates of the bootstrap draws, [models, draws]."""
        cells: list[list[Array]] = [[] for _ in models]
        for number, stratum in enumerate(self.strata):
            blocks: list[list[Array]] = [[] for _ in models]
            for weights in stratum.draws():
                for found, tables in zip(blocks, models, strict=True):
                    found.append(stratum.cells(weights, tables[number]))
            for mine, found in zip(cells, blocks, strict=True):
                mine.append(np.concatenate(found))
        return np.array([_harmonic(np.concatenate(mine, axis=1)) for mine in cells])


def _harmonic(cells: Array) -> Array:
    """Return each row's harmonic mean, 0 if a cell is 0; nan is no cell."""
    known = ~np.isnan(cells)
    with np.errstate(divide="ignore"):
        inverse = np.where(known, 1 / np.where(known, cells, 1.0), 0.0)
    return np.where(inverse.sum(1) > 0, known.sum(1) / inverse.sum(1), 0.0)
