"""All metrics of an evaluation's rows."""

from __future__ import annotations

import math
import numbers
from dataclasses import replace
from functools import cache
from typing import Any

from expunge_jobs import plugins
from expunge_jobs.metrics import Column, Missing, Rows, Scores

FIRST = ("semeval", "regurgitation", "knowledge", "membership", "extraction", "collapse", "probe")
"""Order of the package's own metrics in the table. Other metrics follow by name."""


def compute_all(rows: Rows, only: frozenset[str] | None = None) -> dict[str, Any]:
    """Return every metric's scores as JSON.

    The form is {metric: {"version", "values": {score: number or null}, "reasons": {...}}}. ``only`` restricts the
    metrics by name.

    A metric of another distribution may be unusable or fail. Such a metric gives null and one reason under its own
    name, and does not affect the other metrics. An own metric's exception is raised.
    """
    out: dict[str, Any] = {}
    taken: dict[str, str] = {}
    known = [n for n in plugins.names("metrics") if only is None or n in only]
    for name in sorted(known, key=lambda n: not plugins.is_own("metrics", n)):  # own metrics first
        version, scores = _computed(name, rows)
        for score in [s for s in scores if s in taken]:
            scores = {name: Missing(f"the metric '{name}' gives the score '{score}', which is '{taken[score]}'s")}
        taken |= dict.fromkeys(scores, name)
        out[name] = {
            "version": version,
            "values": {k: None if isinstance(v, Missing) else v for k, v in scores.items()},
            "reasons": {k: v.reason for k, v in scores.items() if isinstance(v, Missing)},
        }
    return dict(sorted(out.items()))


def _computed(name: str, rows: Rows) -> tuple[int | None, Scores]:
    """Return a metric's version and its scores, or why there are none."""
    if plugins.is_own("metrics", name):
        return plugins.version("metrics", name), plugins.load("metrics", name).compute(rows)
    version = None
    try:
        version = plugins.version("metrics", name)
        found = plugins.load("metrics", name).compute([replace(r) for r in rows])  # its own copies
        return version, {str(k): _number(v) for k, v in found.items()}
    except (Exception, SystemExit) as error:  # foreign code may raise anything
        reason = str(error) if version is None else f"{type(error).__name__} in the metric '{name}'"
        return version, {name: Missing(reason)}


def _number(value: Any) -> float | Missing:
    if isinstance(value, Missing):
        return Missing(str(value.reason))
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        return Missing(f"no number, but a {type(value).__name__}")
    try:
        number = float(value)
    except OverflowError:
        return Missing("a number too large")
    return number if math.isfinite(number) else Missing(f"the number {number}")


@cache
def columns() -> tuple[Column, ...]:
    """Return the table's columns, as defined by the metrics."""
    found = []
    known = plugins.names("metrics")
    for name in (*FIRST, *(n for n in known if n not in FIRST)):
        try:
            found += list(plugins.load("metrics", name).COLUMNS)
        except plugins.PluginError:  # `expunge list metrics` shows the reason
            continue
    return tuple(found)
