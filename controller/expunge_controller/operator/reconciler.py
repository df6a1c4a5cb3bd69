"""One look at an Experiment: what is seen and done is collected into one ``Update``, which is written once.

Nothing is kept that a restart could lose: what is done is read from the store, what runs from the cluster, what was promised
(the generation and its image) from the status. What is in memory saves reading it again.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

from expunge_controller.errors import ExperimentError
from expunge_controller.execution.kubernetes.observe import cancel
from expunge_controller.experiment.resource import FINAL, Phase
from expunge_controller.kube_client.client import Object
from expunge_controller.kube_client.informer import Informer
from expunge_controller.operator.active_experiment import REPORT_SECONDS, ActiveExperiment
from expunge_controller.operator.beginnings import DEATHS, Beginnings
from expunge_controller.operator.events import Event
from expunge_controller.operator.experiments import is_asked, is_observed, read_spec
from expunge_controller.operator.generations import LOOK_SECONDS, Generations
from expunge_controller.operator.job_slots import STUCK_SECONDS, JobSlots
from expunge_controller.operator.metrics import Metrics
from expunge_controller.operator.reporting import StatusReporter, Update
from expunge_controller.operator.work_queue import NamespacedName


class Reconciler:
    """Experiments at work, and the next thing to be done for each."""

    def __init__(
        self,
        experiments: Mapping[str, Informer],
        generations: Generations,
        slots: JobSlots,
        reporter: StatusReporter,
        metrics: Metrics,
        log: Callable[..., None],
    ) -> None:
        self.experiments, self.generations, self.slots = experiments, generations, slots
        self.reporter, self.metrics, self.log = reporter, metrics, log
        self.beginnings = Beginnings(generations.settings.state)
        self._active: dict[NamespacedName, ActiveExperiment] = {}
        self._retrying = threading.Semaphore()
        """Held by the Experiment that starts after its inputs or store gave no answer."""

    def close(self) -> None:
        """An orderly end: no Experiment was being begun by a program that died."""
        self.beginnings.close()

    def count_steps(self) -> dict[str, int]:
        """Steps of the experiments at work, by state."""
        total = dict.fromkeys(("done", "running", "failed", "waiting"), 0)
        for active in list(self._active.values()):
            here = active.counts()
            total = {state: count + here[state] for state, count in total.items()}
        return total

    def reconcile(self, name: NamespacedName, retrying: bool) -> float | None:
        """Do what can be done for an Experiment now. Returns the seconds until it is to be looked at again though nothing is
        heard. ``retrying``: the last look failed.

        Raises:
            Unavailable, StoreError, ApiError: it is to be tried again later.
        """
        found = self.experiments[name[0]].get(name[1])
        if found is None or found["metadata"]["deletionTimestamp"]:
            self._drop(name)
            self.reporter.forget(name)
            return None
        update = self._look(name, found, retrying)
        written = self.reporter.report(name, found, update, len(self._active))
        if not written:
            return None  # edited or deleted meanwhile: the change itself wakes us
        if update.starts is not None:
            # Only now: from here on a restart finds this generation at work.
            self._active[name] = update.starts
            return self.reconcile(name, retrying=False)
        if update.ends:
            self._drop(name)
        return update.again

    def _look(self, name: NamespacedName, found: Object, retrying: bool) -> Update:
        observed = is_observed(found)
        if observed and found["status"].get("phase") in FINAL:
            self._drop(name)
            return Update()
        spec, unreadable = read_spec(found)
        if unreadable:
            return replace(_invalid(f"spec: {unreadable}"), unseen=True)
        if is_asked(spec, "cancel"):
            return self._cancel(name, found)
        active = self._active.get(name)
        if active is None or not active.is_of(found):
            events = self._drop(name)
            meta = found["metadata"]
            mark = f"{meta['generation']} {meta['retry']}"
            deaths = self.beginnings.deaths(meta["uid"], mark)
            if deaths >= DEATHS:
                return self._hold(name, deaths, events)
            try:
                with (
                    self._turn_to_start(name, found, retrying) as now,
                    self.beginnings.turn(meta["uid"], mark) as alone,
                ):
                    if not (now and alone):
                        return Update(events=events, again=STUCK_SECONDS)
                    active = self.generations.take_up(name, found, spec)
            except ExperimentError as error:
                return _invalid("; ".join(error.problems), events)
            if not observed:
                return _planned(active, events)
            self._active[name] = active
        return self._go_on(name, active, is_asked(spec, "suspend"))

    @contextlib.contextmanager
    def _turn_to_start(self, name: NamespacedName, found: Object, retrying: bool) -> Iterator[bool]:
        """Yield whether this experiment may start now.

        Experiments that timed out on their inputs or store retry one at a time, because each retry blocks a worker until its
        timeout.
        """
        if retrying and not self._retrying.acquire(blocking=False):
            yield False
            return
        try:
            new = not found["status"].get("observedGeneration")
            yield not new or self.slots.try_admit(name, found["metadata"]["creationTimestamp"])
        finally:
            if retrying:
                self._retrying.release()
            self.slots.admitted(name)

    def _go_on(self, name: NamespacedName, active: ActiveExperiment, suspended: bool) -> Update:
        runner = active.runner
        runner.paused = suspended
        self.slots.withdraw_request(name)
        woken, active.woken = active.woken, None
        before = len(active.events.pending)
        going = runner.tick()
        self.slots.wake_next()
        happened = {reason for reason, _ in active.events.pending[before:]}
        if {"Finished", "Started"} <= happened and woken is not None:
            self.metrics.gaps.observe(time.monotonic() - woken)
        if going and not active.is_time_to_report():
            return Update(
                again=min(REPORT_SECONDS, runner.next_retry_in())
            )  # whoever waits for a successor comes first
        events = active.events.take()
        if not going:
            return _ended(active, events)
        if suspended and not active.executor.active_keys():
            message = "nothing runs; spec.suspend: false goes on"
            return Update("Suspended", message, status=active.status, events=events)
        problem = active.executor.problem()
        phase: Phase = "Suspended" if suspended else "Running"
        reason = "Unavailable" if problem else ""
        again = min(LOOK_SECONDS, runner.next_retry_in())
        return Update(phase, problem, reason=reason, status=active.status, events=events, again=again)

    def _hold(self, name: NamespacedName, deaths: int, events: list[Event]) -> Update:
        message = (
            f"the operator ended {deaths} times in a row while it began this experiment, perhaps for want of memory: "
            "make it smaller, or give the operator more memory and `expunge retry`"
        )
        self.log("error", name, message)
        return Update("Held", message, events=[*events, Event("Warning", "Held", message)])

    def _cancel(self, name: NamespacedName, found: Object) -> Update:
        events = self._drop(name)
        count = cancel(self.generations.cluster, name[0], found["metadata"]["uid"])
        message = f"{count} Jobs ended; what is finished is kept"
        events.append(Event("Normal", "Cancelled", message))
        return Update("Cancelled", message, status=lambda: {"reasons": []}, events=events)

    def _drop(self, name: NamespacedName) -> list[Event]:
        """Look after it no longer; what was not reported yet."""
        active = self._active.pop(name, None)
        if active is not None:
            active.executor.stop(0)
        self.slots.withdraw_request(name)
        self.slots.wake_next()
        return active.events.take() if active is not None else []


def _invalid(why: str, events: list[Event] | None = None) -> Update:
    told = [*(events or []), Event("Warning", "Invalid", why)]
    return Update("Invalid", why, status=lambda: {"counts": {}, "reasons": []}, events=told)


def _planned(active: ActiveExperiment, events: list[Event]) -> Update:
    plan, done = active.resolved.plan, len(active.runner.done)
    said = f"{len(plan.steps)} steps, {done} done already; {active.resolved.digest[:12]}"
    events = [*events, Event("Normal", "Planned", said)]
    return Update("Running", "planned", status=active.status, events=events, starts=active)


def _ended(active: ActiveExperiment, events: list[Event]) -> Update:
    failed, plan = active.runner.outcome.failed, active.resolved.plan
    phase: Phase = "Failed" if failed else "Complete"
    words = [f"{plan.by_key[k].name}: {reason}" for k, reason in failed.items()]
    best = active.best()
    message = f"{len(failed)} failed: {'; '.join(words)}" if failed else f"every model is evaluated; best: {best}"
    events = [*events, Event("Warning" if failed else "Normal", phase, message)]
    return Update(phase, message, status=lambda: active.status() | {"best": best}, events=events, ends=True)
