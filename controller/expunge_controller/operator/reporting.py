"""The report of a reconcile: an Experiment's status and its Events.

Neither is written too often.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from expunge_controller.execution.kubernetes.diagnosis import cut
from expunge_controller.experiment.resource import FINAL, Phase, resources_path
from expunge_controller.experiment.schema import API_VERSION
from expunge_controller.kube_client.client import ApiError, Cluster, Object, TooDeep
from expunge_controller.kube_client.informer import Informer
from expunge_controller.operator.active_experiment import ActiveExperiment
from expunge_controller.operator.conditions import conditions
from expunge_controller.operator.events import Event
from expunge_controller.operator.work_queue import NamespacedName, WorkQueue

STATUS_SECONDS, STATUSES_A_SECOND = 5.0, 10.0
"""Limits of the writes of a status whose conditions change in nothing but their messages.

The first is the shortest interval between two writes for an Experiment. The second is the most writes a second for all.
"""
CONFLICT_SECONDS = 0.5
"""Delay before the retry of a write after a conflict with another client."""


@dataclass(frozen=True)
class Update:
    """The outcome of a reconcile, which is collected first and written once."""

    phase: Phase | None = None
    """None leaves the status as it is."""
    message: str = ""
    reason: str = ""
    """Why the Experiment makes no progress, if no phase says so."""
    status: Callable[[], Object] = dict
    """Further fields of the status, computed only if the status is written."""
    events: Sequence[Event] = ()
    observed: bool = True
    """Whether this generation is at work from here on, or has ended."""
    again: float | None = None
    """Seconds until the next reconcile if nothing changes before."""
    starts: ActiveExperiment | None = None
    """The Experiment that is at work once the status is written."""
    unseen: bool = False
    """Whether the informer may not show the status, which is then written only once."""
    refused: bool = False
    """The Experiment waits for its turn to start."""
    ends: bool = False
    """Whether the Experiment is no longer at work once the status is written."""


class StatusReporter:
    """The writer of statuses and Events to the API server."""

    def __init__(
        self,
        cluster: Cluster,
        informers: Mapping[str, Informer],
        queue: WorkQueue,
        log: Callable[..., None],
    ) -> None:
        self.cluster, self.informers, self.queue, self.log = cluster, informers, queue, log
        self._written: dict[NamespacedName, float] = {}
        """Time of the last write of each status, in seconds of the monotonic clock."""
        self._unseen: dict[NamespacedName, tuple[Any, ...]] = {}
        """The last report on each Experiment whose spec is unreadable.

        If the spec is nested too deep, the informer does not show the status either.
        """

    def forget(self, name: NamespacedName) -> None:
        """Forget a deleted Experiment."""
        self._written.pop(name, None)
        self._unseen.pop(name, None)

    def report(self, name: NamespacedName, found: Object, update: Update, active: int) -> bool:
        """Record the events and write the status.

        ``active`` is the number of Experiments at work. Returns False if another client changed the Experiment, which
        is then reconciled again.

        Raises:
            ApiError: the cluster refuses, or does not answer.
        """
        meta = found["metadata"]
        said = (meta["uid"], meta["generation"], meta["retry"], update.message)
        if update.unseen and self._unseen.get(name) == said:
            return True
        self.record_events(name, found, update.events)
        written = update.phase is None or self.update_status(name, found, update, active)
        if written and update.unseen:
            self._unseen[name] = said
        return written

    def update_status(self, name: NamespacedName, found: Object, update: Update, active: int = 0) -> bool:
        """Write the status if it has changed.

        A new phase is written at once, and any other change not too often. Returns False if another client changed the
        Experiment.

        Raises:
            ApiError: the cluster refuses, or does not answer.
        """
        assert update.phase is not None, "an update without a phase has no status"
        meta, now = found["metadata"], time.monotonic()
        # The decision holds for the version in ``found``; therefore the server must refuse to overwrite a newer one.
        before, last = found["status"], self._written.get(name, 0.0)
        holds = before.get("conditions", [])
        said = conditions(update.phase, update.message, meta["generation"], holds, _now(), update.reason)
        rest = last + max(STATUS_SECONDS, active / STATUSES_A_SECOND) - now
        if rest > 0 and _head(said) == _head(holds):
            self.queue.add_after(name, rest)
            return True
        mark = {"observedGeneration": meta["generation"], "retried": meta["retry"]} if update.observed else {}
        status = {**before, **update.status(), "phase": update.phase, "conditions": said, **mark}
        if status == before:
            return True
        at = {"uid": meta["uid"], "resourceVersion": meta["resourceVersion"]}
        body = {"metadata": at, "status": status}
        try:
            self.informers[name[0]].apply_response(
                self.cluster.request("PATCH", resources_path(*name, status=True), body)
            )
        except TooDeep:  # The status is written; only the answer, which contains the spec, is unreadable.
            pass
        except ApiError as error:
            if error.status not in (404, 409):
                raise
            # The Experiment was edited, deleted, or written by another operator; therefore decide from its new state.
            self.queue.add_after(name, CONFLICT_SECONDS)
            return False
        self._written[name] = now
        self._record_change(name, found, holds, update)
        text = f"{update.phase}: {update.message}" if update.message else update.phase
        self.log("info", name, text, steps=status.get("steps", ""))
        return True

    def _record_change(self, name: NamespacedName, found: Object, holds: Sequence[Object], update: Update) -> None:
        """Record an Event when an Experiment stops or resumes.

        The cause is never a step. The end of the Experiment has an Event of its own.
        """
        earlier = next((c["reason"] for c in holds if c["type"] == "Progressing"), "")
        if (update.reason or update.phase) == earlier or update.phase in FINAL:
            return
        if update.reason:
            self.record_event(name, found, Event("Warning", update.reason, update.message))
        elif update.phase == "Suspended":
            self.record_event(name, found, Event("Normal", "Suspended", "starts nothing until spec.suspend is false"))
        elif earlier and earlier not in FINAL:
            self.record_event(name, found, Event("Normal", "Resumed", f"after {earlier}"))

    def record_events(self, name: NamespacedName, found: Object, events: Iterable[Event]) -> None:
        """Create Events."""
        for event in events:
            self.record_event(name, found, event)

    def record_event(self, name: NamespacedName, found: Object, event: Event) -> None:
        """Create an Event.

        The name of the Event follows from its text, so that a restart creates no second Event.
        """
        meta, text, now = found["metadata"], cut(event.message, 1000), _now()
        identity = f"{meta['uid']} {meta['generation']} {meta['retry']} {event.reason} {text}"
        mark = hashlib.sha256(identity.encode()).hexdigest()[:16]
        body = {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"name": f"{meta['name']}.{mark}", "namespace": name[0]},
            "involvedObject": {
                "apiVersion": API_VERSION,
                "kind": "Experiment",
                "name": meta["name"],
                "namespace": name[0],
                "uid": meta["uid"],
            },
            "type": event.type,
            "reason": event.reason,
            "message": text,
            "firstTimestamp": now,
            "lastTimestamp": now,
            "count": 1,
            "source": {"component": "expunge"},
        }
        try:
            self.cluster.request("POST", f"/api/v1/namespaces/{name[0]}/events", body)
        except ApiError as error:
            if error.status != 409:  # The Event was recorded before.
                self.log("warning", name, f"an Event could not be written: {error}")


def _head(said: Iterable[Object]) -> list[tuple[Any, ...]]:
    """Return the part of the conditions whose change is written at once."""
    return [(c["type"], c["status"], c["reason"], c["observedGeneration"]) for c in said]


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
