"""A Job that a run waits for, and what follows from what is seen of it. Pure.

Job, pods and the time -> ``Outcome``; the executor acts on it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal

from expunge_controller.execution.kubernetes import diagnosis
from expunge_controller.kube_client.client import Object
from expunge_controller.planning.plan import Step

NODE_LOST_AFTER_SECONDS = 5 * 60.0
"""Past the end of its grace period, after which a pod that does not go is taken for lost with its node."""
UNSEEN_AFTER_SECONDS = 10.0
"""After which a Job that was created and never listed is asked for."""
PODLESS_AFTER_SECONDS = 2.0
"""After which the Events of a Job without a pod are read."""

Action = Literal["wait", "ask cluster", "read events", "vanished", "failed", "replace", "cannot start", "node lost"]
"""What is to be done about a Job:

wait            nothing
ask cluster     the informer never had it: see whether it is there
read events     it has no pod: its Events may say why
vanished        it is gone without an artifact: its steps start again
failed          it has ended, or will end, without an artifact
replace         another run created it with other resources, and it failed: that is no verdict on ours
cannot start    its pod had its time to start
node lost       its pod does not go: a Job makes no new pod while the old one may still run
"""


@dataclass(frozen=True)
class Outcome:
    """What follows from what is seen of a Job."""

    action: Action = "wait"
    reason: str = ""
    evidence: str = ""
    """What has ended, if anything has: the store is asked once for each, and an artifact counts before the action."""


@dataclass
class TrackedJob:
    """A Job that this run waits for."""

    steps: tuple[Step, ...]
    """Those that it does, in order."""
    name: str
    uid: str
    foreign: bool
    """Created by another run with other resources than this one asks for."""
    since: float
    """When it was met, in seconds of the monotonic clock."""
    seen: bool = False
    """The informer has had it: if it is not there now, it is gone."""
    answered: str = ""
    """The evidence for which the store was asked last."""
    events: list[Object] = field(default_factory=list)

    def observe(
        self, job: Object | None, pods: Sequence[Object], now: datetime, age: float, start_timeout: float
    ) -> Outcome:
        """Return what follows from the Job and its pods. ``age``: seconds since it was met; ``start_timeout``: that a pod with
        a node may take to start."""
        if job is None:
            if self.seen:
                return Outcome("vanished", evidence="gone")
            return Outcome("ask cluster" if age > UNSEEN_AFTER_SECONDS else "wait")
        self.seen = True
        ended = diagnosis.newest(p for p in pods if diagnosis.has_ended(p))
        final = diagnosis.condition(job, "Failed", "Complete")
        evidence = f"{ended and ended['metadata']['uid']} {final and final['type']}" if ended or final else ""
        # A step that met its own limit meets it again: no need to wait for the Job's other tries.
        if final or (ended and (diagnosis.out_of_memory(ended) or diagnosis.out_of_disk(ended))):
            return Outcome("replace" if self.foreign else "failed", evidence=evidence)
        for pod in pods:
            if problem := "" if diagnosis.has_ended(pod) else diagnosis.start_trouble(pod):
                if self.foreign:
                    return Outcome("replace", evidence=evidence)
                if diagnosis.seconds_since_scheduled(pod, now) > start_timeout:
                    reason = f"could not start within {start_timeout:.0f} s: {problem}"
                    return Outcome("cannot start", reason, evidence)
            if diagnosis.seconds_past_end(pod, now) > NODE_LOST_AFTER_SECONDS:
                return Outcome("node lost", evidence=evidence)
        if not pods and not job["spec"]["suspend"] and age > PODLESS_AFTER_SECONDS:
            return Outcome("read events")
        return Outcome(evidence=evidence)
