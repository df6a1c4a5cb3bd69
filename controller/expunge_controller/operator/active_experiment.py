"""A generation of an Experiment at work, and its status."""

from __future__ import annotations

import time
from dataclasses import dataclass

from expunge_jobs.artifacts.manifests import read_manifest

from expunge_controller.execution.kubernetes.diagnosis import cut
from expunge_controller.execution.kubernetes.executor import KubernetesExecutor
from expunge_controller.execution.runner import Runner
from expunge_controller.execution.step_log import progress_words
from expunge_controller.kube_client.client import Object
from expunge_controller.operator.conditions import summary
from expunge_controller.operator.events import EventBuffer
from expunge_controller.planning.resolve import Resolved
from expunge_controller.planning.step_states import statuses

REPORT_SECONDS = 0.5
"""Time for which events are collected before a report, because each report is a write."""


@dataclass
class ActiveExperiment:
    """The state in memory of a generation at work.

    A restart loses nothing: all lasting state is in the store, the cluster and the status.
    """

    uid: str
    generation: int
    retry: str
    resolved: Resolved
    executor: KubernetesExecutor
    runner: Runner
    events: EventBuffer
    image: str
    woken: float | None = None
    """Time of the first wake-up since the last reconcile, in seconds of the monotonic clock."""
    unreported: float | None = None
    """Time since which events wait for a report, in seconds of the monotonic clock."""

    def is_of(self, found: Object) -> bool:
        """Return whether this is the generation and retry in the cluster."""
        meta = found["metadata"]
        return (self.uid, self.generation, self.retry) == (meta["uid"], meta["generation"], meta["retry"])

    def is_time_to_report(self) -> bool:
        """Return whether a report is due.

        A report is due if no events are pending, or if they have waited for ``REPORT_SECONDS``.
        """
        now = time.monotonic()
        if self.unreported is None and self.events.pending:
            self.unreported = now
        if self.unreported is not None and now - self.unreported < REPORT_SECONDS:
            return False
        self.unreported = None
        return True

    def counts(self) -> dict[str, int]:
        """Count the steps by state, from memory alone."""
        here = {
            "done": len(self.runner.done),
            "running": len(self.executor.active_keys()),
            "failed": len(self.runner.outcome.failed),
        }
        return here | {"waiting": len(self.resolved.plan.steps) - sum(here.values())}

    def status(self) -> Object:
        """Return the fields of the status."""
        running = {k: progress_words(p) if p else "running" for k, p in self.executor.running().items()}
        idle = "suspended (spec.suspend)" if self.runner.paused else self.executor.full or "begins soon"
        states = statuses(self.resolved.plan, self.runner.done, running, self.runner.outcome.failed, idle)
        own = {"digest": self.resolved.digest, "image": self.image, "store": self.runner.store.uri}
        return summary(self.resolved.plan, states) | own

    def best(self) -> str:
        """Return the model with the highest task aggregate.

        The source is the report's manifest. If the manifest names no best model, the result is ``-``.
        """
        report = self.resolved.plan.steps[-1]
        manifest = read_manifest(self.runner.store, report.ref)
        best = manifest.figures["best"] if manifest else None
        return cut(f"{best['group']} {best['model']} {best['task_aggregate']:.3f}".strip()) if best else "-"
