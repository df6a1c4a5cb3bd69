"""The Jobs of an experiment, rendered without a cluster."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from expunge_controller.execution.kubernetes.jobspec import job
from expunge_controller.execution.kubernetes.pod_config import PodConfig, check_reachable
from expunge_controller.experiment.loading import load_experiment
from expunge_controller.planning.resolve import resolve


def render(file: Path, overrides: list[str], site: PodConfig) -> list[dict[str, Any]]:
    """Return the specification of every step's Job.

    The function asks no cluster.

    Raises:
        ExperimentError: every problem of the file; no image; a store or inputs that pods cannot reach.
    """
    loaded = load_experiment(file, overrides)
    resolved = resolve(loaded, stage=True)
    check_reachable(site, resolved.pins)
    spec = loaded.experiment.spec
    return [job(s, site, spec.resources, spec.kubernetes, resolved.run) for s in resolved.plan.steps]
