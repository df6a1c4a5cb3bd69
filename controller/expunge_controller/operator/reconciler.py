"""Experiments as custom resources, run by the same runner as the command's: watch, plan, start Jobs, say how it goes.

Nothing is kept that a restart could lose: what is done is read from the store, what runs from the cluster, what was promised
(the generation and its image) from the status. What is in memory saves reading it again.
"""

from __future__ import annotations

import contextlib
import json
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from expunge_jobs.artifacts.manifests import read_manifest
from expunge_jobs.inputs.hub import public_hub
from expunge_jobs.store import Store, StoreError, Unavailable, check_conditional_writes, open_store

from expunge_controller.errors import ExperimentError
from expunge_controller.execution.kubernetes.diagnosis import cut
from expunge_controller.execution.kubernetes.executor import KubernetesExecutor
from expunge_controller.execution.kubernetes.jobspec import requested
from expunge_controller.execution.kubernetes.observe import cancel
from expunge_controller.execution.kubernetes.site import Site
from expunge_controller.execution.kubernetes.watch import Watch
from expunge_controller.execution.runner import Runner
from expunge_controller.execution.step_log import progress_words
from expunge_controller.experiment.loading import load_resource
from expunge_controller.experiment.resource import FINAL, RETRY, Phase, resources_path
from expunge_controller.experiment.scheduling import ResourcesByKind
from expunge_controller.experiment.schema import API_VERSION
from expunge_controller.kube_client.client import METADATA, ApiError, Cluster, Object
from expunge_controller.kube_client.informer import Mirror
from expunge_controller.operator.beginnings import DEATHS, Beginnings
from expunge_controller.operator.conditions import summary
from expunge_controller.operator.config import Settings, own_part
from expunge_controller.operator.job_slots import STUCK, Places, Room
from expunge_controller.operator.metrics import Metrics
from expunge_controller.operator.reporting import Speaker, Teller
from expunge_controller.operator.work_queue import Who, WorkQueue
from expunge_controller.planning.plan import Step
from expunge_controller.planning.resolve import Resolved, recall, resolve, write_record
from expunge_controller.planning.step_states import statuses

LOOK = 30.0
"""Seconds between two looks at an experiment of which nothing is heard."""
BACKOFF = (1.0, 60.0)
"""Seconds until an experiment is looked at again whose store or cluster gave no answer: at first, and at most."""
TELL = 0.5
"""Seconds after which what has happened is told, with what has happened since."""
POLL = 1.0


LARGEST_SPEC = 1 << 18
"""Bytes of a spec that is kept; each Experiment's is, whether it is at work or not."""
PAGE = 20
"""Experiments in a page of their list: each may have the size of what the API server takes, a megabyte and a half."""
UNREADABLE = "unreadable"
"""In place of a spec: why it is not read."""


def trim(resource: Object) -> Object:
    """Those fields of an Experiment that are read; its spec as text, which takes a fifth of the memory."""
    meta = resource["metadata"]
    kept = ("name", "namespace", "uid", "resourceVersion", "generation", "creationTimestamp", "deletionTimestamp")
    spec = json.dumps(resource.get("spec"), separators=(",", ":"))
    if resource.get("unreadable"):
        spec = json.dumps({UNREADABLE: "nested too deep"})
    if len(spec) > LARGEST_SPEC:
        spec = json.dumps({UNREADABLE: f"{len(spec):,} bytes; at most {LARGEST_SPEC:,} are read"})
    return {
        "metadata": {k: meta.get(k) for k in kept} | {"retry": (meta.get("annotations") or {}).get(RETRY, "")},
        "spec": spec,
        "status": resource.get("status") or {},
    }


@dataclass
class _Active:
    """A generation of an Experiment that is at work."""

    uid: str
    generation: int
    retry: str
    resolved: Resolved
    executor: KubernetesExecutor
    runner: Runner
    teller: Teller
    image: str
    woken: float | None = None
    """Since when something is to be looked at, in seconds of the monotonic clock."""
    untold: float | None = None
    """Since when something is to be told."""


class Operator:
    """``start`` until ``stop``."""

    def __init__(self, cluster: Cluster, settings: Settings, log: Callable[..., None]) -> None:
        self.cluster, self.settings, self.log = cluster, settings, log
        self.queue = WorkQueue()
        beginning = max(1, settings.workers - 2)  # two are left to those at work
        self.places = Places(settings.max_jobs, self.queue.add, beginning)
        self._again = threading.Semaphore()
        """Held by the one that begins after a place did not answer it."""
        self.watches = {n: Watch(cluster, n) for n in settings.namespaces}
        self.experiments = {
            n: Mirror(cluster, resources_path(n), "", trim, lambda o: self.queue.add(_who(o)), page=PAGE)
            for n in settings.namespaces
        }
        self.beginnings = Beginnings(settings.state)
        self._stores: dict[str, Store] = {}
        self._opening = threading.Lock()
        self._active: dict[Who, _Active] = {}
        self.speaker = Speaker(cluster, self.experiments, self.queue, log, lambda: len(self._active))
        self._failures: dict[Who, int] = {}
        self._refused: dict[Who, tuple[str, int, str, str]] = {}
        """Which generation of an Experiment was said to be Invalid here, and why."""
        self.metrics = Metrics(self._steps, self._phases)
        cluster.counted = lambda method, status: self.metrics.calls.labels(method, str(status)).inc()
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._work, daemon=True, name=f"worker {n}") for n in range(settings.workers)
        ]

    def start(self) -> None:
        """Begin to watch and to work.

        Raises:
            ApiError: the cluster refuses, or does not answer.
        """
        refused: dict[str, ApiError] = {}
        for namespace in self.settings.namespaces:
            try:
                self.cluster.request("GET", resources_path(namespace), query={"limit": 1}, accept=METADATA)
                self.watches[namespace].check()
            except ApiError as error:  # deleted, perhaps, with its Roles: the others' experiments go on
                refused[namespace] = error
                self.log("warning", (namespace, ""), str(error))
        if len(refused) == len(self.settings.namespaces):
            raise next(iter(refused.values()))
        for namespace, watch in self.watches.items():
            watch.start()
            self.experiments[namespace].start()
        for namespace, watch in self.watches.items():
            if namespace not in refused:
                watch.wait()
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Jobs go on."""
        self._stop.set()
        for thread in self._threads:
            thread.join(5)
        self.beginnings.close()
        for mirror in self.experiments.values():
            mirror.stop()
        for watch in self.watches.values():
            watch.close()

    def ill(self) -> str:
        """Why only a restart would help; empty while all is well."""
        return "" if all(t.is_alive() for t in self._threads) else "a worker has ended"

    def unready(self) -> str:
        """Why nothing is known of the cluster just now; empty while all is well, or only some namespaces are refused."""
        troubles = []
        for namespace, watch in self.watches.items():
            mirrors = (self.experiments[namespace], watch.jobs, watch.pods)
            trouble = next((m.trouble for m in mirrors if m.trouble), "")
            if not trouble and not all(m.wait(0) for m in mirrors):
                return "not everything has been listed yet"
            troubles.append(trouble)
        return "" if "" in troubles else troubles[0]

    # --- one Experiment -------------------------------------------------------------------------------------------

    def _work(self) -> None:
        while not self._stop.is_set():
            who = self.queue.get(POLL)
            if who is None:
                continue
            try:
                self._look(who)
            except Exception:  # whatever it is, the other Experiments' worker goes on
                self.log("error", who, traceback.format_exc())
                self.queue.add_after(who, BACKOFF[1])
            finally:
                self.queue.done(who)

    def _look(self, who: Who) -> None:
        try:
            again = self.reconcile(who)
            self.metrics.reconciles.labels("ok").inc()
        except (Unavailable, ApiError, StoreError) as error:
            again = self._back_off(who, "Unavailable", str(error))
        except Exception as error:  # one experiment's trouble, whatever it is, is not the others'
            self.log("error", who, traceback.format_exc())
            again = self._back_off(who, "InternalError", f"{type(error).__name__}: {error}")
        if again is not None:
            self.queue.add_after(who, again)

    def _back_off(self, who: Who, reason: str, message: str) -> float:
        self.metrics.reconciles.labels(reason).inc()
        turn = self._failures[who] = self._failures.get(who, 0) + 1
        self.log("warning", who, message)
        found = self.experiments[who[0]].get(who[1])
        if found is not None and (turn > 1 or not found["status"]):  # a single missing answer is no news of one at work
            try:
                self.speaker.write(who, found, "Running", message, dict, reason=reason, begun=False)
            except ApiError as error:
                self.log("warning", who, f"its status could not be written: {error}")
        return float(min(BACKOFF[0] * 2 ** min(turn - 1, 10), BACKOFF[1]))

    def reconcile(self, who: Who) -> float | None:
        """Do what can be done for an Experiment now; seconds until it is to be looked at again though nothing is heard.

        Raises:
            Unavailable, StoreError, ApiError: it is to be tried again later.
        """
        found = self.experiments[who[0]].get(who[1])
        if found is None or found["metadata"]["deletionTimestamp"]:
            self._forget(who)
            self.speaker.forget(who)
            self._failures.pop(who, None)
            self._refused.pop(who, None)
            return None
        status, meta = found["status"], found["metadata"]
        same = status.get("observedGeneration") == meta["generation"] and status.get("retried", "") == meta["retry"]
        if same and status.get("phase") in FINAL:
            self._forget(who)
            return None
        spec = json.loads(found["spec"])
        if isinstance(spec, dict) and UNREADABLE in spec:
            self._refuse(who, found, f"spec: {spec[UNREADABLE]}")
            return None
        if isinstance(spec, dict) and spec.get("cancel") is True:
            self._cancel(who, found)
            return None
        active = self._active.get(who)
        if active is None or (active.uid, active.generation, active.retry) != (
            meta["uid"],
            meta["generation"],
            meta["retry"],
        ):
            self._forget(who, found)
            mark = f"{meta['generation']} {meta['retry']}"
            deaths = self.beginnings.deaths(meta["uid"], mark)
            if deaths >= DEATHS:
                self._hold(who, found, deaths)
                return None
            try:
                with self._turn_to_begin(who, found) as now, self.beginnings.turn(meta["uid"], mark) as alone:
                    if not (now and alone):
                        return STUCK
                    active = self._begin(who, found, spec, same)
            except ExperimentError as error:
                self._failures.pop(who, None)
                self._refuse(who, found, "; ".join(error.problems))
                return None
        again = self._go_on(who, found, active, bool(spec.get("suspend"))) if active else None
        self._failures.pop(who, None)
        return again

    @contextlib.contextmanager
    def _turn_to_begin(self, who: Who, found: Object) -> Iterator[bool]:
        """Yield whether it may begin now.

        Experiments whose inputs or store gave no answer retry one at a time: each holds a worker until it gives up.
        """
        failed = who in self._failures
        if failed and not self._again.acquire(blocking=False):
            yield False
            return
        try:
            new = not found["status"].get("observedGeneration")
            yield not new or self.places.may_begin(who, found["metadata"]["creationTimestamp"])
        finally:
            if failed:
                self._again.release()
            self.places.begun(who)

    def _begin(self, who: Who, found: Object, spec: Any, same: bool) -> _Active | None:
        """Plan this generation. ``same``: it is at work already, and this program has only lost sight of it. None: it is to be
        looked at again."""
        meta, namespace = found["metadata"], who[0]
        limits = self.settings.limits
        resource = {"apiVersion": API_VERSION, "kind": "Experiment", "metadata": meta, "spec": spec}
        loaded = load_resource(resource, limits.trials)
        self.settings.check_inputs(loaded, namespace)
        store = self._store(namespace)
        # A generation at work goes on as it began, though a newer operator would plan it otherwise by now.
        known = str(found["status"].get("digest", "")) if same else ""
        recalled = recall(store, loaded, known, namespace) if known else None
        resolved = recalled or resolve(
            loaded, stage=True, namespace=namespace, report=True, hub=public_hub(), input_bytes=limits.input_bytes
        )
        if recalled is None:
            write_record(store, resolved)
        if known and recalled is None:
            self.speaker.say(
                who,
                found,
                "Warning",
                "PlannedAnew",
                "this generation's record has changed, or would give other steps by now",
            )
        # What was for the record alone is not kept: it is a fifth of what each of hundreds at work takes.
        resolved = replace(resolved, record={}, plan=replace(resolved.plan, models=()))
        image = (found["status"].get("image") if recalled else "") or self.settings.site.image
        site = Site(**{
            **vars(self.settings.site), "namespace": namespace, "store": store.uri, "image": image,
        })  # fmt: skip
        owner = {
            "apiVersion": API_VERSION, "kind": "Experiment", "name": meta["name"], "uid": meta["uid"], "controller": True,
        }  # fmt: skip
        room = Room(self.places, who, meta["creationTimestamp"])
        own = loaded.experiment.spec
        executor = KubernetesExecutor(
            store, self.watches[namespace], site, own.resources, own.kubernetes, meta["uid"], own.parallel,
            owner=owner, room=room, wake=lambda: self._wake(who), look=LOOK,
            used=partial(self._count, own.resources),  # no lambda: it would keep the whole spec
        )  # fmt: skip
        teller = Teller(lambda reason, step, text: self.log("info", who, text, reason=reason, step=step))
        runner = Runner(store, executor, resolved, teller, cancelled=lambda: False)
        if recalled is None and found["status"].get("observedGeneration"):  # what only an earlier plan needs
            cancel(self.cluster, namespace, meta["uid"], {s.key for s in resolved.plan.steps})
        runner.begin(anew=not same)
        for key, reason in runner.outcome.failed.items():  # said again: its Event has the same name
            teller.failed(resolved.plan.by_key[key], reason, again=False)
        active = _Active(meta["uid"], meta["generation"], meta["retry"], resolved, executor, runner, teller, site.image)
        if not same:
            # Before anything starts: from here on a restart finds this generation at work.
            if not self.speaker.write(who, found, "Running", "planned", lambda: self._figures(active)):
                return None
            count, done = len(resolved.plan.steps), len(runner.done)
            self.speaker.say(
                who, found, "Normal", "Planned", f"{count} steps, {done} done already; {resolved.digest[:12]}"
            )
        self._active[who] = active
        return active

    def _go_on(self, who: Who, found: Object, active: _Active, suspended: bool) -> float | None:
        active.runner.paused = suspended
        self.places.turn(who)
        woken, active.woken = active.woken, None
        before = len(active.teller.news)
        going = active.runner.tick()
        self.places.offer()
        happened = {reason for reason, _ in active.teller.news[before:]}
        if {"Finished", "Started"} <= happened and woken is not None:
            self.metrics.gaps.observe(time.monotonic() - woken)
        if going and not self._is_time_to_tell(active):
            return min(TELL, active.runner.due())  # whoever else waits for a step's successor comes first
        self.speaker.tell(who, found, active.teller.take())
        if going and not (suspended and not active.executor.busy()):
            trouble = active.executor.trouble()
            phase: Phase = "Suspended" if suspended else "Running"
            self.speaker.write(
                who, found, phase, trouble, lambda: self._figures(active), reason="Unavailable" if trouble else ""
            )
            return min(LOOK, active.runner.due())
        if going:
            self.speaker.write(
                who, found, "Suspended", "nothing runs; spec.suspend: false goes on", lambda: self._figures(active)
            )
            return None
        failed = active.runner.outcome.failed
        phase = "Failed" if failed else "Complete"
        plan = active.resolved.plan
        words = [f"{plan.by_key[k].name}: {reason}" for k, reason in failed.items()]
        best = _best(active)
        message = f"{len(failed)} failed: {'; '.join(words)}" if failed else f"every model is evaluated; best: {best}"
        self.speaker.say(who, found, "Warning" if failed else "Normal", phase, message)
        self.speaker.write(who, found, phase, message, lambda: self._figures(active) | {"best": best})
        self._forget(who)
        return None

    def _is_time_to_tell(self, active: _Active) -> bool:
        """Whether nothing has happened just now, or nothing has been told for a while."""
        now = time.monotonic()
        if active.untold is None and active.teller.news:
            active.untold = now
        if active.untold is not None and now - active.untold < TELL:
            return False
        active.untold = None
        return True

    def _wake(self, who: Who) -> None:
        active = self._active.get(who)
        if active is not None and active.woken is None:
            active.woken = time.monotonic()
        self.queue.add(who, urgent=True)

    def _count(self, resources: ResourcesByKind, step: Step, seconds: float) -> None:
        self.metrics.gpu_seconds.labels(step.kind).inc((requested(step, resources).gpu or 0) * seconds)

    def _steps(self) -> dict[str, int]:
        """Of the experiments at work, by state."""
        counts = dict.fromkeys(("done", "running", "failed", "waiting"), 0)
        for active in list(self._active.values()):
            here = {"done": len(active.runner.done), "running": len(active.executor.busy()),
                    "failed": len(active.runner.outcome.failed)}  # fmt: skip
            here["waiting"] = len(active.resolved.plan.steps) - sum(here.values())
            counts = {k: n + here[k] for k, n in counts.items()}
        return counts

    def _phases(self) -> dict[str, int]:
        counts: dict[str, int] = {}
        for mirror in self.experiments.values():
            for found in mirror.all():
                phase = found["status"].get("phase", "Pending")
                counts[phase] = counts.get(phase, 0) + 1
        return counts

    def _refuse(self, who: Who, found: Object, why: str) -> None:
        """Say that this generation is Invalid; once, since of what is too deep to be read the status is not known."""
        meta = found["metadata"]
        said = (meta["uid"], meta["generation"], meta["retry"], why)
        if self._refused.get(who) != said:
            self.speaker.say(who, found, "Warning", "Invalid", why)
            if self.speaker.write(who, found, "Invalid", why, lambda: {"counts": {}, "reasons": []}):
                self._refused[who] = said

    def _hold(self, who: Who, found: Object, deaths: int) -> None:
        message = (
            f"the operator ended {deaths} times in a row while it began this experiment, perhaps for want of memory: "
            "make it smaller, or give the operator more memory and `expunge retry`"
        )
        self.log("error", who, message)
        self.speaker.say(who, found, "Warning", "Held", message)
        self.speaker.write(who, found, "Held", message, dict)

    def _cancel(self, who: Who, found: Object) -> None:
        self._forget(who, found)
        count = cancel(self.cluster, who[0], found["metadata"]["uid"])
        message = f"{count} Jobs ended; what is finished is kept"
        self.speaker.say(who, found, "Normal", "Cancelled", message)
        self.speaker.write(who, found, "Cancelled", message, lambda: {"reasons": []})

    def _forget(self, who: Who, found: Object | None = None) -> None:
        """Look after it no longer. What was not told yet is told of ``found``."""
        active = self._active.pop(who, None)
        if active is not None:
            active.executor.stop(0)
            if found is not None:
                self.speaker.tell(who, found, active.teller.take())
        self.places.turn(who)
        self.places.offer()

    def _store(self, namespace: str) -> Store:
        with self._opening:  # once, whoever asks first: a client of S3 takes ten megabytes
            if namespace not in self._stores:
                place, query = own_part(self.settings.store, namespace)
                store = open_store(place + query, largest=self.settings.limits.object_bytes)
                store.check()
                check_conditional_writes(store)
                self._stores[namespace] = store
            return self._stores[namespace]

    def _figures(self, active: _Active) -> Object:
        running = {k: progress_words(p) if p else "running" for k, p in active.executor.running().items()}
        idle = "suspended (spec.suspend)" if active.runner.paused else active.executor.full or "begins soon"
        states = statuses(active.resolved.plan, active.runner.done, running, active.runner.outcome.failed, idle)
        return summary(active.resolved.plan, states) | {
            "digest": active.resolved.digest, "image": active.image, "store": active.runner.store.uri,
        }  # fmt: skip


def _best(active: _Active) -> str:
    """The model of the highest task aggregate, as the report's manifest has it."""
    report = active.resolved.plan.steps[-1]
    manifest = read_manifest(active.runner.store, report.ref)
    best = manifest.figures["best"] if manifest else None
    return cut(f"{best['group']} {best['model']} {best['task_aggregate']:.3f}".strip()) if best else "-"


def _who(found: Object) -> Who:
    return found["metadata"]["namespace"], found["metadata"]["name"]
