"""Every metric of an evaluation's rows."""

from __future__ import annotations

from functools import cache
from typing import Any

from expunge_jobs import plugins
from expunge_jobs.metrics import Column, Missing, Rows, Scores

FIRST = ("semeval", "regurgitation", "knowledge", "membership", "extraction", "collapse", "probe")
"""The order of our own metrics in the table; others follow by name."""


def compute_all(rows: Rows, only: frozenset[str] | None = None) -> dict[str, Any]:
    """Every metric's scores as JSON: {metric: {"version", "values": {score: number or null}, "reasons": {...}}}.

    A metric that cannot be used, or fails, has no values and one reason under its own name: it spoils no other's.
    ``only``: the metrics of these names.
    """
    out = {}
    for name in plugins.names("metrics"):
        if only is not None and name not in only:
            continue
        version = None
        try:
            version = plugins.version("metrics", name)
            scores: Scores = plugins.load("metrics", name).compute(rows)
        except Exception as error:  # another's code
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
    """The table's columns, by what the metrics say of themselves."""
    found = []
    known = plugins.names("metrics")
    for name in (*FIRST, *(n for n in known if n not in FIRST)):
        try:
            found += list(plugins.load("metrics", name).COLUMNS)
        except plugins.PluginError:  # `expunge list metrics` says why
            continue
    return tuple(found)
