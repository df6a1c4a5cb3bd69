"""The reconcile of an Experiment, whose outcome is one ``Update``.

The ``Update`` collects all observations and actions, and is written once.

Nothing is kept that a restart could lose. Finished steps are read from the store, and running steps from the cluster.
Promises (the generation and its image) are read from the status. The state in memory only saves reading all this
again.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import NamedTuple

from expunge_controller.errors import ExperimentError
from expunge_controller.execution.kubernetes.observe import cancel
from expunge_controller.experiment.resource import FINAL, Phase
from expunge_controller.kube_client.client import Object
from expunge_controller.kube_client.informer import Informer
from expunge_controller.operator.active_experiment import REPORT_SECONDS, ActiveExperiment
from expunge_controller.operator.beginnings import DEATHS_UNTIL_HELD, Beginnings
from expunge_controller.operator.events import Event
from expunge_controller.operator.experiments import is_asked, is_observed, read_spec
from expunge_controller.operator.generations import LOOK_SECONDS, Generations
from expunge_controller.operator.job_slots import STUCK_SECONDS, JobSlots
from expunge_controller.operator.metrics import Metrics
from expunge_controller.operator.reporting import StatusReporter, Update
from expunge_controller.operator.work_queue import NamespacedName


class Look(NamedTuple):
    """What a look at an Experiment came to."""

    again: float | None
    """Seconds until the next look if nothing changes before; None: no further look."""
    refused: bool = False
    """The Experiment had to wait for its turn, so this look proves nothing."""


class Reconciler:
    """The Experiments at work, and the next action for each."""

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
        """Held by the Experiment that retries its start after its inputs or store gave no answer."""

    def close(self) -> None:
        """Forget the beginnings under way, because an orderly end is no crash."""
        self.beginnings.close()

    def count_steps(self) -> dict[str, int]:
        """Count the steps of the Experiments at work, by state."""
        total = dict.fromkeys(("done", "running", "failed", "waiting"), 0)
        for active in list(self._active.values()):
            here = active.counts()
            total = {state: count + here[state] for state, count in total.items()}
        return total

    def reconcile(self, name: NamespacedName, retrying: bool) -> Look:
        """Reconcile an Experiment once.

        ``retrying`` says that the last reconcile failed.

        Raises:
            Unavailable, StoreError, ApiError: it is to be tried again later.
        """
        found = self.experiments[name[0]].get(name[1])
        if found is None or found["metadata"]["deletionTimestamp"]:
            self._drop(name)
            self.reporter.forget(name)
            return Look(None)
        update = self._look(name, found, retrying)
        written = self.reporter.report(name, found, update, len(self._active))
        if not written:
            if update.starts is not None:
                update.starts.executor.stop(0)
            return Look(None)  # The Experiment was edited or deleted; that change triggers a reconcile.
        if update.starts is not None:
            # A restart finds this generation at work only from here on; therefore register it only now.
            self._active[name] = update.starts
            return self.reconcile(name, retrying=False)
        if update.ends:
            self._drop(name)
        return Look(update.again, update.refused)

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
            # What follows may raise, and the buffer is gone by then; therefore record these events first.
            self.reporter.record_events(name, found, self._drop(name))
            meta = found["metadata"]
            mark = f"{meta['generation']} {meta['retry']}"
            deaths = self.beginnings.deaths(meta["uid"], mark)
            if deaths >= DEATHS_UNTIL_HELD:
                return self._hold(name, deaths)
            try:
                with (
                    self._turn_to_start(name, found, retrying) as now,
                    self.beginnings.turn(meta["uid"], mark) as alone,
                ):
                    if not (now and alone):
                        return Update(again=STUCK_SECONDS, refused=True)
                    active = self.generations.take_up(name, found, spec)
            except ExperimentError as error:
                return _invalid("; ".join(error.problems))
            if not observed:
                return _planned(active)
            self._active[name] = active
        return self._go_on(name, active, is_asked(spec, "suspend"))

    @contextlib.contextmanager
    def _turn_to_start(self, name: NamespacedName, found: Object, retrying: bool) -> Iterator[bool]:
        """Yield whether this experiment may start now.

        Experiments that timed out on their inputs or store retry one at a time, because each retry blocks a worker
        until its timeout.
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
            # A step that waits for its start comes first; therefore report later.
            return Update(again=min(REPORT_SECONDS, runner.next_retry_in()))
        if not going:
            return _ended(active)
        problem = active.executor.problem()
        events = active.events.take()  # last: whatever raises before leaves the events in the buffer
        if suspended and not active.executor.active_keys():
            message = "nothing runs; spec.suspend: false goes on"
            return Update("Suspended", message, status=active.status, events=events)
        phase: Phase = "Suspended" if suspended else "Running"
        reason = "Unavailable" if problem else ""
        again = min(LOOK_SECONDS, runner.next_retry_in())
        return Update(phase, problem, reason=reason, status=active.status, events=events, again=again)

    def _hold(self, name: NamespacedName, deaths: int) -> Update:
        message = (
            f"the operator ended {deaths} times in a row while it began this experiment, perhaps for want of memory: "
            "make it smaller, or give the operator more memory and `expunge retry`"
        )
        self.log("error", name, message)
        return Update("Held", message, events=[Event("Warning", "Held", message)])

    def _cancel(self, name: NamespacedName, found: Object) -> Update:
        self.reporter.record_events(name, found, self._drop(name))
        count = cancel(self.generations.cluster, name[0], found["metadata"]["uid"])
        message = f"{count} Jobs ended; what is finished is kept"
        events = [Event("Normal", "Cancelled", message)]
        return Update("Cancelled", message, status=lambda: {"reasons": []}, events=events)

    def _drop(self, name: NamespacedName) -> list[Event]:
        """Drop an Experiment from those at work.

        Returns the events that have not been reported yet.
        """
        active = self._active.pop(name, None)
        if active is not None:
            active.executor.stop(0)
        self.slots.withdraw_request(name)
        self.slots.wake_next()
        return active.events.take() if active is not None else []


def _invalid(why: str) -> Update:
    events = [Event("Warning", "Invalid", why)]
    return Update("Invalid", why, status=lambda: {"counts": {}, "reasons": []}, events=events)


def _planned(active: ActiveExperiment) -> Update:
    plan, done = active.resolved.plan, len(active.runner.done)
    said = f"{len(plan.steps)} steps, {done} done already; {active.resolved.digest[:12]}"
    events = [Event("Normal", "Planned", said)]
    return Update("Running", "planned", status=active.status, events=events, starts=active)


def _ended(active: ActiveExperiment) -> Update:
    failed, plan = active.runner.outcome.failed, active.resolved.plan
    phase: Phase = "Failed" if failed else "Complete"
    words = [f"{plan.by_key[k].name}: {reason}" for k, reason in failed.items()]
    best = active.best()
    message = f"{len(failed)} failed: {'; '.join(words)}" if failed else f"every model is evaluated; best: {best}"
    # Last: whatever raises before leaves the events in the buffer.
    events = [*active.events.take(), Event("Warning" if failed else "Normal", phase, message)]
    return Update(phase, message, status=lambda: active.status() | {"best": best}, events=events, ends=True)
