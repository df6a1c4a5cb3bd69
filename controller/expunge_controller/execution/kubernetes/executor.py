"""Steps as Jobs of a cluster. Names follow from keys, so starting is creating or adopting; whoever starts next, here or
elsewhere, finds the same Jobs. The manifest in the store is the verdict; Jobs and pods only say when to look, and why not.
"""

from __future__ import annotations

import contextlib
import math
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime

from expunge_jobs.artifacts.attempts import End, attempts
from expunge_jobs.artifacts.manifests import folder
from expunge_jobs.store import SMALL, NotFound, Store, StoreError

from expunge_controller.execution.executor import Ended, SlotPool, Start
from expunge_controller.execution.kubernetes import diagnosis
from expunge_controller.execution.kubernetes.jobspec import (
    KEY,
    RESOURCES,
    START_TIMEOUT,
    fingerprint,
    job,
    job_name,
    requested,
)
from expunge_controller.execution.kubernetes.observe import cancel, events_of, newest_progress
from expunge_controller.execution.kubernetes.site import Site
from expunge_controller.execution.kubernetes.watch import Watch, jobs_path
from expunge_controller.execution.step_log import Progress
from expunge_controller.experiment.scheduling import Kubernetes, ResourcesByKind
from expunge_controller.kube_client.client import ApiError, Object
from expunge_controller.planning.plan import Step
from expunge_controller.planning.step_states import is_done

LOST = 5 * 60.0
"""Seconds past the end of its grace period after which a pod that does not go is taken for lost with its node."""
LOOK = 2.0
"""Seconds between two looks at what only a clock or a pod's log tells."""
AGAIN, LONG = 0.5, 15.0
"""Seconds until a step is tried again whose earlier Job is still going, and after which that is said."""
UNSEEN = 10.0
"""Seconds after which a Job that was made and never seen is asked for."""


@dataclass
class _Held:
    """A Job that this run waits for."""

    step: Step
    uid: str
    foreign: bool
    """Made with other resources than this run asks for: if it fails, that is no verdict on ours."""
    since: float
    """When it was met, in seconds of the monotonic clock."""
    seen: bool = False
    """The mirror has had it: if it is not there now, it is gone."""
    looked: str = ""
    """What happened when the store was asked last."""
    events: list[Object] = field(default_factory=list)


class KubernetesExecutor:
    """One Job a step. Ending it, or its machine, ends no Job.

    ``wake`` is called, from another thread, when ``wait`` would have something to do; ``owner`` is the custom resource that
    Jobs belong to, as an owner reference has it; ``look``: seconds between two looks at what only a clock tells; ``used`` hears
    of a step that has ended and for how many seconds its containers ran, if its Job is this run's own.
    """

    detached = True

    def __init__(
        self, store: Store, watch: Watch, site: Site, resources: ResourcesByKind, kubernetes: Kubernetes, run: str,
        parallel: int, *, start_timeout: float = START_TIMEOUT, owner: Object | None = None, room: SlotPool | None = None,
        wake: Callable[[], None] = lambda: None, look: float = LOOK,
        used: Callable[[Step, float], None] = lambda step, seconds: None,
    ) -> None:  # fmt: skip
        self.store, self.watch, self.site, self.run, self.parallel = store, watch, site, run, parallel
        self.cluster = watch.cluster
        self.resources, self.kubernetes, self.start_timeout = resources, kubernetes, start_timeout
        self.owner, self.room, self.wake, self.look, self.used = owner, room, wake, look, used
        self.full = ""
        """Why the last step was not started for want of room, in words."""
        self._here: dict[str, _Held] = {}
        self._keys: dict[str, str] = {}
        self._replaced: set[str] = set()
        self._judged: dict[str, str] = {}
        """Uids of the Jobs that failed here, by key."""
        self._deleted: set[str] = set()
        """Uids of Jobs that the mirror may still have."""
        self._ended: list[Ended] = []
        self._changes: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._refused = self._unheard = ""
        self._not_before = 0.0
        self._in_the_way: dict[str, tuple[float, float]] = {}
        """By key, since when an earlier Job of the step is going, and when to look again."""
        self._progress: dict[str, Progress] = {}
        self._next_look = 0.0
        self._stopping = threading.Event()

    def read_logs(self) -> None:
        """From now on ``running`` tells how far each step is."""
        threading.Thread(target=self._read_logs, daemon=True, name="logs of pods").start()

    def start(self, step: Step) -> Start:
        now = time.monotonic()
        if len(self._here) >= self.parallel:
            self._in_the_way.pop(step.key, None)  # nobody looks whether it is still there
            self.full = f"waits for one of {self.parallel} steps that may run at once (spec.parallel)"
            return "no room"
        if now < self._not_before or now < self._in_the_way.get(step.key, (0, 0))[1]:
            return "no room"
        if self.adopt(step):
            return "started"
        if self.room and not self.room.take(job_name(step)):
            self.full = f"waits for one of {self.room.most} Jobs that may be unfinished here at once (maxJobs)"
            return "no room"
        self.full = ""
        try:
            started = self._create(step)
        except ApiError as error:
            # A quota waits for room, like a queue.
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
            if self.room and step.key not in self._here:
                self.room.leave(job_name(step))
        self._refused = ""
        if started:
            self._in_the_way.pop(step.key, None)
        else:
            since = self._in_the_way.get(step.key, (now, 0.0))[0]
            self._in_the_way[step.key] = (since, now + AGAIN)
        return "started" if started else "no room"

    def adopt(self, step: Step) -> bool:
        known = self.watch.jobs.get(job_name(step))
        if known is None or not _is_at_work(known, step) or known["metadata"]["uid"] in self._deleted:
            return False
        if self.room:
            self.room.take(job_name(step), there=True)
        self._hold(step, known, seen=True)
        return True

    def due(self) -> float:
        now = time.monotonic()
        put_off = [self._not_before, *(again for _, again in self._in_the_way.values())]
        return min((then - now for then in put_off if then > now), default=math.inf)

    def busy(self) -> set[str]:
        return {*self._here, *(e.key for e in self._ended)}

    def running(self) -> dict[str, Progress]:
        return {key: self._how(held) for key, held in self._here.items()} | {e.key: {} for e in self._ended}

    def trouble(self) -> str:
        return self._silence() or self._does_not_go()

    def _silence(self) -> str:
        """Why nothing is heard of any Job."""
        return self._refused or self._unheard or self.watch.trouble

    def _does_not_go(self) -> str:
        now = time.monotonic()
        for key in [k for k, (since, _) in self._in_the_way.items() if now - since > LONG]:
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
                held = self._here.get(self._keys.get(name, ""))
                if held is not None:
                    self._look(held)
            if time.monotonic() >= self._next_look:
                self._next_look = time.monotonic() + self.look
                for held in list(self._here.values()):
                    self._look_at_clock(held)
        except (StoreError, ApiError) as error:
            for name in names:  # nothing that was seen is lost
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

    def settled(self, step: Step) -> None:
        """The failure is recorded. If its Job has not ended by itself it goes; others stay for people to look at."""
        found = self.watch.jobs.get(job_name(step))
        if found is None or found["metadata"]["uid"] != self._judged.get(step.key):
            return
        if diagnosis.condition(found, "Failed", "Complete") is None:
            with contextlib.suppress(ApiError):  # it stays, and the next run meets it
                self._delete(found)

    def stop(self, grace: float) -> None:
        """End nothing: only stop to look."""
        self._stopping.set()
        for held in self._here.values():
            self._let_go(held)

    def _create(self, step: Step) -> bool:
        """Whether the step has a Job that can be waited for. One of an earlier run that failed makes room for ours."""
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
                    return False  # gone in between: next time
                raise
        found = diagnosis.trim_job(found)
        if found["metadata"]["annotations"].get(KEY) != step.key:
            raise _Refused(f"a Job {job_name(step)} is there already and is not ours: rename or delete it")
        if found["metadata"]["deletionTimestamp"]:
            return False
        if _is_at_work(found, step):
            self._hold(step, found)
            return True
        if is_done(self.store, step):
            self._ended.append(Ended(step.key, ok=True))
            return True
        self._delete(found)
        return False

    def _hold(self, step: Step, found: Object, seen: bool = False) -> None:
        wanted = fingerprint(self.site, requested(step, self.resources), self.kubernetes)
        foreign = found["metadata"]["annotations"].get(RESOURCES) != wanted
        self._in_the_way.pop(step.key, None)
        self._keys[job_name(step)] = step.key
        self._here[step.key] = _Held(step, found["metadata"]["uid"], foreign, time.monotonic(), seen)
        self.watch.follow(job_name(step), self._tell)
        self._tell(job_name(step))  # what happened before it was held

    def _tell(self, name: str) -> None:
        self._changes.put(name)
        self.wake()

    def _let_go(self, held: _Held) -> None:
        self.watch.leave(job_name(held.step), self._tell)
        if self.room:
            self.room.leave(job_name(held.step))

    def _delete(self, found: Object) -> None:
        meta = found["metadata"]
        self._deleted.add(meta["uid"])
        self.cluster.delete(jobs_path(self.site.namespace, meta["name"]), meta["uid"])

    def _take(self, held: _Held, ended: Ended) -> None:
        found, pods = self._find(held)
        if found is not None and found["metadata"]["run"] == self.run:
            self.used(held.step, diagnosis.seconds_run(pods))
        del self._here[held.step.key]
        self._let_go(held)
        if ended.final:
            self._judged[held.step.key] = held.uid
        self._progress.pop(held.step.key, None)
        self._ended.append(ended)

    def _find(self, held: _Held) -> tuple[Object | None, list[Object]]:
        """The Job as the mirror has it, and its pods."""
        name = job_name(held.step)
        found = self.watch.jobs.get(name)
        if found is not None and found["metadata"]["uid"] != held.uid:
            found = None  # an earlier one that is going, or a later one that somebody made
        if found is not None:
            held.seen = True
        return found, self.watch.pods.of(held.uid)

    def _look(self, held: _Held) -> None:
        """Something has changed about the Job or its pods."""
        found, pods = self._find(held)
        if pods and self.room:
            self.room.has_pod(job_name(held.step))
        ended = diagnosis.newest(p for p in pods if diagnosis.has_ended(p))
        final = diagnosis.condition(found, "Failed", "Complete") if found else None
        gone = found is None and held.seen
        what = f"{ended and ended['metadata']['uid']} {final and final['type']} {gone}"
        if (ended or final or gone) and what != held.looked:
            if is_done(self.store, held.step):
                self._take(held, Ended(held.step.key, ok=True))
                return
            held.looked = what
        if gone:
            self._take(held, Ended(held.step.key, ok=False, reason="its Job is gone", lost=True))
        elif found and (final or (ended and (diagnosis.out_of_memory(ended) or diagnosis.out_of_disk(ended)))):
            # A step that met its own limit meets it again: no need to wait for the Job's other tries.
            self._judge(held, found, pods)

    def _judge(self, held: _Held, found: Object, pods: list[Object]) -> None:
        """The Job has ended without an artifact."""
        step = held.step
        if self._replace(held, found):
            return
        if diagnosis.condition(found, "Complete"):
            reason = "completed without an artifact"
        else:
            asked = requested(step, self.resources)
            reason = diagnosis.failure_words(step.kind, asked, found, pods, self._said(held))
        self._take(held, Ended(step.key, ok=False, reason=reason, final=True, pod=diagnosis.last_words(pods)))

    def _replace(self, held: _Held, found: Object) -> bool:
        """Whether the Job, being another run's with another wish, made room for ours; once for each step."""
        if not held.foreign or held.step.key in self._replaced:
            return False
        self._replaced.add(held.step.key)
        self._delete(found)
        self._take(held, Ended(held.step.key, ok=False, reason="failed as another run asked for it", lost=True))
        return True

    def _said(self, held: _Held) -> str:
        """What the newest attempt of this very Job has written about its end."""
        step = held.step
        for record in reversed([r for r in attempts(self.store, step.ref) if r.job == held.uid]):
            try:
                data, _ = self.store.get(f"{folder(step.ref)}/attempts/{record.attempt}/end.json", SMALL)
            except NotFound:
                return ""
            return End.model_validate_json(data).reason
        return ""

    def _look_at_clock(self, held: _Held) -> None:
        """What only time tells, or what no change is sent for."""
        found, pods = self._find(held)
        age = time.monotonic() - held.since
        if found is None and not held.seen and age > UNSEEN:
            held.since, held.seen = time.monotonic(), self._is_gone(held)
            self._changes.put(job_name(held.step))
        if found is not None and not pods and not found["spec"]["suspend"] and age > LOOK:
            held.events = events_of(self.cluster, self.site.namespace, held.uid)
        now = datetime.now(UTC)
        for pod in pods:
            trouble, waited = diagnosis.start_trouble(pod), diagnosis.seconds_since_scheduled(pod, now)
            if trouble and found is not None and self._replace(held, found):
                return
            if trouble and not diagnosis.has_ended(pod) and waited > self.start_timeout:
                reason = f"could not start within {self.start_timeout:.0f} s: {trouble}"
                self._take(held, Ended(held.step.key, ok=False, reason=reason, final=True))
                return
            if found is not None and diagnosis.seconds_past_end(pod, now) > LOST:
                self._delete(found)  # its node is lost; a Job makes no new pod while the old one may still run
                return

    def _is_gone(self, held: _Held) -> bool:
        try:
            found = self.cluster.request("GET", jobs_path(self.site.namespace, job_name(held.step)))
        except ApiError as error:
            return error.status == 404
        return bool(found["metadata"]["uid"] != held.uid)

    def _how(self, held: _Held) -> Progress:
        found, pods = self._find(held)
        if silence := self._silence():
            return {"reason": silence}
        if found is None:
            return {}
        words = diagnosis.waiting_words(found, pods, held.events)
        return {"reason": words} if words else self._progress.get(held.step.key, {})

    def _read_logs(self) -> None:
        """Keeps the newest progress of every running pod, from the end of its log."""
        while not self._stopping.wait(LOOK):
            for key, held in list(self._here.items()):
                _, pods = self._find(held)
                pod = diagnosis.newest(p for p in pods if p["status"]["phase"] == "Running")
                if pod is not None:
                    # No log is no error: the pod may have ended, or its node may not answer. Its state says the rest.
                    with contextlib.suppress(ApiError):
                        newest = newest_progress(self.cluster, self.site.namespace, pod)
                        self._progress[key] = newest or self._progress.get(key, {})


def _is_at_work(found: Object, step: Step) -> bool:
    """Whether a Job is this step's, and neither finished nor going."""
    meta = found["metadata"]
    return (
        meta["annotations"].get(KEY) == step.key
        and not meta["deletionTimestamp"]
        and diagnosis.condition(found, "Failed", "Complete") is None
    )


class _Refused(Exception):
    """No Job can be made for a step, in words."""
