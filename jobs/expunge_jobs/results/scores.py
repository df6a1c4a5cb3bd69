"""All metrics of an evaluation's rows."""

from __future__ import annotations

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
    out = {}
    for name in plugins.names("metrics"):
        if only is not None and name not in only:
            continue
        version = None
        try:
            version = plugins.version("metrics", name)
            scores: Scores = plugins.load("metrics", name).compute(rows)
        except Exception as error:  # foreign code may raise anything
            if plugins.is_own("metrics", name):
                raise
            scores = {
                name: Missing(str(error) if version is None else f"{type(error).__name__} in the metric '{name}'")
            }
        out[name] = {
            "version": version,
            "values": {k: None if isinstance(v, Missing) else v for k, v in scores.items()},
            "reasons": {k: v.reason for k, v in scores.items() if isinstance(v, Missing)},
        }
    return out


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
