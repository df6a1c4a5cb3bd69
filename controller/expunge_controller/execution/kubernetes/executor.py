"""An executor that runs steps as Jobs of a cluster.

A Job's name follows from the step's key; therefore a start creates or adopts the Job.
The next runner, on this machine or another, finds the same Jobs.
The manifest in the store is the verdict. Jobs and pods only tell when to read the store, and why a step failed.
"""

from __future__ import annotations

import contextlib
import math
import queue
import time
from collections.abc import Callable
from datetime import UTC, datetime

from expunge_jobs.artifacts.attempts import End, attempts
from expunge_jobs.artifacts.manifests import folder
from expunge_jobs.store import SMALL, NotFound, Store, StoreError

from expunge_controller.execution.executor import Ended, SlotPool, Start
from expunge_controller.execution.kubernetes import diagnosis
from expunge_controller.execution.kubernetes.job_informer import JobInformer, jobs_path
from expunge_controller.execution.kubernetes.jobspec import (
    KEY,
    RESOURCES,
    START_TIMEOUT,
    fingerprint,
    job,
    job_name,
    requested,
)
from expunge_controller.execution.kubernetes.observe import cancel, events_of
from expunge_controller.execution.kubernetes.pod_config import PodConfig
from expunge_controller.execution.kubernetes.pod_progress import PodProgress
from expunge_controller.execution.kubernetes.tracked_job import TrackedJob
from expunge_controller.execution.step_log import Progress
from expunge_controller.experiment.scheduling import Kubernetes, ResourcesByKind
from expunge_controller.kube_client.client import ApiError, Object
from expunge_controller.planning.plan import Step
from expunge_controller.planning.step_states import is_done

CLOCK_SECONDS = 2.0
"""Interval between two checks of all Jobs for timeouts, in seconds."""
BLOCKED_RETRY_SECONDS, BLOCKED_REPORT_SECONDS = 0.5, 15.0
"""Delays for a step whose earlier Job is still being deleted, in seconds.

The first is the delay before a retry. The second is the time after which the executor reports the problem.
"""


class KubernetesExecutor:
    """An executor with one Job for each step.

    No Job ends with the executor or its machine.

    ``wake``: called from another thread when ``wait`` has work to do.
    ``owner``: the owner reference to the custom resource that owns the Jobs.
    ``look``: interval between two checks of all Jobs for timeouts, in seconds.
    ``used``: called with an ended step and its containers' run time in seconds, if the Job carries this run's label.
    """

    detached = True

    def __init__(
        self,
        store: Store,
        watch: JobInformer,
        site: PodConfig,
        resources: ResourcesByKind,
        kubernetes: Kubernetes,
        run: str,
        parallel: int,
        *,
        start_timeout: float = START_TIMEOUT,
        owner: Object | None = None,
        room: SlotPool | None = None,
        wake: Callable[[], None] = lambda: None,
        look: float = CLOCK_SECONDS,
        used: Callable[[Step, float], None] = lambda step, seconds: None,
    ) -> None:
        self.store, self.watch, self.site, self.run, self.parallel = store, watch, site, run, parallel
        self.cluster = watch.cluster
        self.resources, self.kubernetes, self.start_timeout = resources, kubernetes, start_timeout
        self.owner, self.room, self.wake, self.look, self.used = owner, room, wake, look, used
        self.full = ""
        """The reason why the last step found no room, in words."""
        self._tracked: dict[str, TrackedJob] = {}
        """The tracked Jobs, by name."""
        self._replaced: set[str] = set()
        """Keys of steps whose failed Job from another run was replaced.

        A step's Job is replaced at most once.
        """
        self._judged: dict[str, str] = {}
        """Uids of the Jobs whose failure is final for this run, by step key."""
        self._deleted: set[str] = set()
        """Uids of deleted Jobs that the informer may still list."""
        self._ended: list[Ended] = []
        self._changes: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._refused = self._unheard = ""
        self._not_before = 0.0
        self._blocked: dict[str, tuple[float, float]] = {}
        """Steps whose earlier Job is being deleted: key -> (time of the first refusal, time of the next retry)."""
        self._next_look = 0.0
        self._progress: PodProgress | None = None

    def read_logs(self) -> None:
        """Start to read the pods' logs for the progress in ``running``."""
        self._progress = PodProgress(self.cluster, self.site.namespace, self._running_pods)
        self._progress.start()

    def start(self, step: Step) -> Start:
        now = time.monotonic()
        if len(self._tracked) >= self.parallel:
            self._blocked.pop(step.key, None)  # the earlier Job is no longer checked
            self.full = f"waits for one of {self.parallel} steps that may run at once (spec.parallel)"
            return "no room"
        if now < self._not_before or now < self._blocked.get(step.key, (0, 0))[1]:
            return "no room"
        if self.adopt(step):
            return "started"
        if self.room and not self.room.acquire(job_name(step)):
            self.full = f"waits for one of {self.room.most} Jobs that may be unfinished here at once (maxJobs)"
            return "no room"
        self.full = ""
        try:
            started = self._create(step)
        except ApiError as error:
            # An exceeded quota becomes free again, like a queue; therefore retry.
            if error.renewable or "exceeded quota" in str(error):
                self._refused = str(error)
                self._not_before = time.monotonic() + max(error.after or 0.0, 1.0)
                return "no room"
            self._ended.append(Ended(step.key, ok=False, reason=f"the cluster refuses its Job: {error}", final=True))
            started = True
        except _Refused as error:
            self._ended.append(Ended(step.key, ok=False, reason=str(error), final=True))
            started = True
        finally:
            if self.room and job_name(step) not in self._tracked:
                self.room.release(job_name(step))
        self._refused = ""
        if started:
            self._blocked.pop(step.key, None)
        else:
            since = self._blocked.get(step.key, (now, 0.0))[0]
            self._blocked[step.key] = (since, now + BLOCKED_RETRY_SECONDS)
        return "started" if started else "no room"

    def adopt(self, step: Step) -> bool:
        known = self.watch.jobs.get(job_name(step))
        if known is None or not _is_at_work(known, step) or known["metadata"]["uid"] in self._deleted:
            return False
        if self.room:
            self.room.acquire(job_name(step), there=True)
        self._track(step, known, seen=True)
        return True

    def next_retry_in(self) -> float:
        now = time.monotonic()
        put_off = [self._not_before, *(again for _, again in self._blocked.values())]
        return min((then - now for then in put_off if then > now), default=math.inf)

    def active_keys(self) -> set[str]:
        tracked = list(self._tracked.values())  # another thread may ask, and the dictionary change meanwhile
        return {*(s.key for t in tracked for s in t.steps), *(e.key for e in list(self._ended))}

    def running(self) -> dict[str, Progress]:
        tracked = {s.key: self._how(t, s) for t in list(self._tracked.values()) for s in t.steps}
        return tracked | {e.key: {} for e in list(self._ended)}

    def problem(self) -> str:
        return self._silence() or self._does_not_go()

    def _silence(self) -> str:
        """Return the reason why Jobs cannot be created or observed now."""
        return self._refused or self._unheard or self.watch.problem

    def _does_not_go(self) -> str:
        now = time.monotonic()
        for key in [k for k, (since, _) in self._blocked.items() if now - since > BLOCKED_REPORT_SECONDS]:
            return f"the earlier Job of step {key[:12]} is being deleted, but does not go: see its finalizers"
        return ""

    def wait(self, seconds: float) -> list[Ended]:
        names: set[str] = set()
        with contextlib.suppress(queue.Empty):
            names.add(self._changes.get(timeout=0.0 if self._ended else seconds))
            while True:
                names.add(self._changes.get_nowait())
        try:
            for name in names:
                if name in self._tracked:
                    self._look(self._tracked[name])
            if time.monotonic() >= self._next_look:
                self._next_look = time.monotonic() + self.look
                for tracked in list(self._tracked.values()):
                    self._look(tracked)
        except (StoreError, ApiError) as error:
            for name in names:  # keep the changes for the next call
                self._changes.put(name)
            if isinstance(error, StoreError) or not error.renewable:
                raise
            self._unheard = str(error)
        else:
            self._unheard = ""
        ended, self._ended = self._ended, []
        return ended

    def cancel(self) -> None:
        cancel(self.cluster, self.site.namespace, self.run)

    def failure_recorded(self, step: Step) -> None:
        """Delete the unfinished Job of a step whose failure is recorded.

        A finished Job stays for inspection.
        """
        found = self.watch.jobs.get(job_name(step))
        if found is None or found["metadata"]["uid"] != self._judged.get(step.key):
            return
        if diagnosis.condition(found, "Failed", "Complete") is None:
            with contextlib.suppress(ApiError):  # the Job stays, and the next run finds it
                self._delete(found)

    def stop(self, grace: float) -> None:
        """Stop the observation and leave all Jobs running."""
        if self._progress:
            self._progress.stop()
        self.wake = lambda: None  # it may refer to this executor, which is then a cycle that only a collection frees
        for tracked in self._tracked.values():
            self._untrack(tracked)

    def _create(self, step: Step) -> bool:
        """Create or adopt the step's Job, and return whether the start is settled.

        The start is settled if the Job is tracked, or if the step's artifact exists already.
        The failed Job of an earlier run is deleted, and the next call creates a new Job.
        """
        wish = job(step, self.site, self.resources, self.kubernetes, self.run, self.owner)
        try:
            found = self.cluster.request("POST", jobs_path(self.site.namespace), wish)
        except ApiError as error:
            if error.status != 409:
                raise
            try:
                found = self.cluster.request("GET", jobs_path(self.site.namespace, job_name(step)))
            except ApiError as second:
                if second.status == 404:
                    return False  # the Job was deleted between the two requests; therefore retry later
                raise
        found = diagnosis.trim_job(found)
        if found["metadata"]["annotations"].get(KEY) != step.key:
            raise _Refused(f"a Job {job_name(step)} is there already and is not ours: rename or delete it")
        if found["metadata"]["deletionTimestamp"]:
            return False
        if _is_at_work(found, step):
            self._track(step, found)
            return True
        if is_done(self.store, step):
            self._ended.append(Ended(step.key, ok=True))
            return True
        self._delete(found)
        return False

    def _track(self, step: Step, found: Object, seen: bool = False) -> None:
        wanted = fingerprint(self.site, requested(step, self.resources), self.kubernetes)
        foreign = found["metadata"]["annotations"].get(RESOURCES) != wanted and step.key not in self._replaced
        name = job_name(step)
        self._blocked.pop(step.key, None)
        self._tracked[name] = TrackedJob((step,), name, found["metadata"]["uid"], foreign, time.monotonic(), seen)
        self.watch.subscribe(name, self._notify)
        self._notify(name)  # the Job may have changed before the subscription; therefore check it once

    def _notify(self, name: str) -> None:
        self._changes.put(name)
        self.wake()

    def _untrack(self, tracked: TrackedJob) -> None:
        self.watch.unsubscribe(tracked.name, self._notify)
        if self.room:
            self.room.release(tracked.name)

    def _delete(self, found: Object) -> None:
        meta = found["metadata"]
        self._deleted.add(meta["uid"])
        self.cluster.delete(jobs_path(self.site.namespace, meta["name"]), meta["uid"])

    def _find(self, tracked: TrackedJob) -> tuple[Object | None, list[Object]]:
        """Return the informer's copy of a Job, and the Job's pods."""
        found = self.watch.jobs.get(tracked.name)
        if found is not None and found["metadata"]["uid"] != tracked.uid:
            found = None  # an earlier Job in deletion, or a later Job of another run
        return found, self.watch.pods.by_index(tracked.uid)

    def _look(self, tracked: TrackedJob) -> None:
        """Observe a Job and act on the outcome."""
        found, pods = self._find(tracked)
        if pods and self.room:
            self.room.has_pod(tracked.name)
        age = time.monotonic() - tracked.since
        outcome = tracked.observe(found, pods, datetime.now(UTC), age, self.start_timeout)
        if outcome.evidence and outcome.evidence != tracked.answered:
            if all(is_done(self.store, s) for s in tracked.steps):
                self._finish(tracked, ok=True)
                return
            tracked.answered = outcome.evidence
        match outcome.action:
            case "ask cluster":
                tracked.since, tracked.seen = time.monotonic(), self._is_gone(tracked)
                self._changes.put(tracked.name)
            case "read events":
                tracked.events = events_of(self.cluster, self.site.namespace, tracked.uid)
            case "vanished":
                self._finish(tracked, reason="its Job is gone", vanished=True)
            case "replace" if found:
                self._replaced |= {s.key for s in tracked.steps}
                self._delete(found)
                self._finish(tracked, reason="failed as another run asked for it", vanished=True)
            case "failed" if found:
                self._finish(
                    tracked, reason=self._why(tracked, found, pods), final=True, pod=diagnosis.last_words(pods)
                )
            case "cannot start":
                self._finish(tracked, reason=outcome.reason, final=True)
            case "node lost" if found:
                self._delete(found)

    def _finish(
        self,
        tracked: TrackedJob,
        *,
        ok: bool = False,
        reason: str = "",
        final: bool = False,
        vanished: bool = False,
        pod: Object | None = None,
    ) -> None:
        """Record the end of a Job's steps and stop tracking the Job."""
        found, pods = self._find(tracked)
        if found is not None and found["metadata"]["run"] == self.run:
            self.used(tracked.steps[0], diagnosis.seconds_run(pods))
        del self._tracked[tracked.name]
        self._untrack(tracked)
        for step in tracked.steps:
            if final:
                self._judged[step.key] = tracked.uid
            if self._progress:
                self._progress.forget(step.key)
            self._ended.append(Ended(step.key, ok=ok, reason=reason, final=final, vanished=vanished, pod=pod or {}))

    def _why(self, tracked: TrackedJob, found: Object, pods: list[Object]) -> str:
        """Return the reason why a Job ended without an artifact."""
        if diagnosis.condition(found, "Complete"):
            return "completed without an artifact"
        step = tracked.steps[-1]
        return diagnosis.failure_words(step.kind, requested(step, self.resources), found, pods, self._said(tracked))

    def _said(self, tracked: TrackedJob) -> str:
        """Return the reason that the Job's newest attempt has written."""
        step = tracked.steps[-1]
        for record in reversed([r for r in attempts(self.store, step.ref) if r.job == tracked.uid]):
            try:
                data, _ = self.store.get(f"{folder(step.ref)}/attempts/{record.attempt}/end.json", SMALL)
            except NotFound:
                return ""
            return End.model_validate_json(data).reason
        return ""

    def _is_gone(self, tracked: TrackedJob) -> bool:
        try:
            found = self.cluster.request("GET", jobs_path(self.site.namespace, tracked.name))
        except ApiError as error:
            return error.status == 404
        return bool(found["metadata"]["uid"] != tracked.uid)

    def _how(self, tracked: TrackedJob, step: Step) -> Progress:
        found, pods = self._find(tracked)
        if silence := self._silence():
            return {"reason": silence}
        if found is None:
            return {}
        words = diagnosis.waiting_words(found, pods, tracked.events)
        return {"reason": words} if words else (self._progress.of(step.key) if self._progress else {})

    def _running_pods(self) -> dict[str, Object]:
        out: dict[str, Object] = {}
        for tracked in list(self._tracked.values()):
            pod = diagnosis.newest(
                p for p in self.watch.pods.by_index(tracked.uid) if p["status"]["phase"] == "Running"
            )
            if pod is not None:
                out |= dict.fromkeys([s.key for s in tracked.steps], pod)
        return out


def _is_at_work(found: Object, step: Step) -> bool:
    """Return whether a Job is the step's, unfinished and not being deleted."""
    meta = found["metadata"]
    return (
        meta["annotations"].get(KEY) == step.key
        and not meta["deletionTimestamp"]
        and diagnosis.condition(found, "Failed", "Complete") is None
    )


class _Refused(Exception):
    """An error for a step whose Job cannot be created."""
