"""Every metric of an evaluation's rows."""

from __future__ import annotations

from typing import Any

from expunge_jobs import plugins
from expunge_jobs.metrics import Missing, Rows


def compute_all(rows: Rows) -> dict[str, Any]:
    """Every metric's figures as JSON: {metric: {"version", "values": {figure: number or null}, "reasons": {...}}}."""
    out = {}
    for name in plugins.names("metrics"):
        figures = plugins.load("metrics", name).compute(rows)
        out[name] = {
            "version": plugins.version("metrics", name),
            "values": {k: None if isinstance(v, Missing) else v for k, v in figures.items()},
            "reasons": {k: v.reason for k, v in figures.items() if isinstance(v, Missing)},
        }
    return out
