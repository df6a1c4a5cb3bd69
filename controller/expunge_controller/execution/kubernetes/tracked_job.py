"""A Job that a run waits for, and the outcome of each observation. Pure.

Job, pods and the time -> ``Outcome``. The executor acts on the outcome.
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
"""Time after the end of a pod's grace period, in seconds.

After this time, a pod that still exists counts as lost with its node.
"""
UNSEEN_AFTER_SECONDS = 10.0
"""Time after which the executor asks the cluster for a created Job that was never listed, in seconds."""
PODLESS_AFTER_SECONDS = 2.0
"""Time after which the executor reads the Events of a Job without a pod, in seconds."""

Action = Literal["wait", "ask cluster", "read events", "vanished", "failed", "replace", "cannot start", "node lost"]
"""The executor's next action for a Job.

wait            no action
ask cluster     the informer never listed the Job: ask the cluster whether the Job exists
read events     the Job has no pod: its Events may give the reason
vanished        the Job is gone without an artifact: its steps restart
failed          the Job has ended, or will end, without an artifact
replace         another run created the Job with other resources, and the Job failed or cannot start: no verdict on ours
cannot start    the pod has exceeded its start timeout
node lost       the pod does not terminate: a Job creates no new pod while the old pod may still run
"""


@dataclass(frozen=True)
class Outcome:
    """The consequence of one observation of a Job."""

    action: Action = "wait"
    reason: str = ""
    evidence: str = ""
    """Identifier of the ended pod and the Job's final condition, ``gone``, or an empty string.

    The executor asks the store once for each evidence. An artifact in the store takes precedence over the action.
    """


@dataclass
class TrackedJob:
    """A Job that this run waits for."""

    steps: tuple[Step, ...]
    """The steps that the Job executes, in order."""
    name: str
    uid: str
    foreign: bool
    """Whether another run created the Job with a different fingerprint (see ``jobspec.fingerprint``)."""
    since: float
    """Start of the tracking, or time of the last ``ask cluster`` action, in seconds of the monotonic clock."""
    seen: bool = False
    """Whether the informer has listed the Job, or the cluster has reported the Job as gone.

    A seen Job that is not listed now is gone.
    """
    answered: str = ""
    """The evidence for which the executor last asked the store."""
    events: list[Object] = field(default_factory=list)

    def observe(
        self, job: Object | None, pods: Sequence[Object], now: datetime, age: float, start_timeout: float
    ) -> Outcome:
        """Return the outcome of one observation of the Job and its pods.

        ``age``: seconds since ``since``.
        ``start_timeout``: seconds that a pod may take to start once it has a node.
        """
        ended = diagnosis.newest(p for p in pods if diagnosis.has_ended(p))
        if job is None:
            if self.seen:
                return Outcome("vanished", evidence="gone")
            evidence = f"{ended['metadata']['uid']}" if ended else ""
            return Outcome("ask cluster" if age > UNSEEN_AFTER_SECONDS else "wait", evidence=evidence)
        self.seen = True
        final = diagnosis.condition(job, "Failed", "Complete")
        evidence = f"{ended and ended['metadata']['uid']} {final and final['type']}" if ended or final else ""
        # A step that exceeded its own limit exceeds the limit again; therefore do not wait for the Job's other tries.
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
