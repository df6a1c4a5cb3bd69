"""The reconcile loop: (plan, observed state) -> steps to start.

The loop is level-triggered and keeps no state that a restart could lose.
A run can be killed at any point and restarted, because finished steps are read from the store's manifests.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Protocol

from expunge_jobs.artifacts.damage import give_up_damaged
from expunge_jobs.store import Store, Unavailable

from expunge_controller.execution.executor import Ended, Executor, Start
from expunge_controller.execution.step_log import Progress
from expunge_controller.planning import records
from expunge_controller.planning.plan import Plan, Step
from expunge_controller.planning.resolve import Resolved
from expunge_controller.planning.step_states import done_keys, is_done, wanted_keys

MOST_TRIES = 3
RETRY_SECONDS = (1.0, 4.0)
STORE_RETRY_SECONDS = 5.0
"""Delay before retrying an unreachable store, in seconds."""
TICK_SECONDS = 0.25
"""Interval between two checks of other runners' steps, and between two progress reports, in seconds."""


class Observer(Protocol):
    """A listener for the progress of a run."""

    def started(self, step: Step) -> None: ...
    def progress(self, running: dict[str, Progress]) -> None: ...
    def finished(self, step: Step, seconds: float) -> None: ...
    def failed(self, step: Step, reason: str, again: bool) -> None: ...
    def running_elsewhere(self, step: Step) -> None: ...
    def notice(self, text: str) -> None: ...


@dataclass
class Outcome:
    """The outcome of a run.

    ``failed``: reasons of failures, by step key.
    ``stopped``: whether the run stopped before its end, by a stop request or a cancellation.
    ``cancelled``: whether the run was cancelled.
    ``started``: the number of starts.
    """

    failed: dict[str, str] = field(default_factory=dict)
    stopped: bool = False
    cancelled: bool = False
    started: int = 0


def ready(plan: Plan, done: Collection[str], busy: Collection[str], failed: Collection[str]) -> list[Step]:
    """Return the steps to start now, in the plan's order. Pure.

    A ready step is wanted, neither running nor failed, and everything that the step needs is done.
    """
    wanted = wanted_keys(plan, set(done))
    return [
        s
        for s in plan.steps
        if s.key in wanted and s.key not in busy and s.key not in failed and all(n in done for n in s.needs)
    ]


class Runner:
    """A run of a plan on an executor.

    ``run`` executes the plan to its end.
    Alternatively, call ``begin`` once, and ``tick`` whenever something may have changed.
    ``cancelled``: called after each start of a step that would outlive this process, and when an attempt vanishes.
    """

    def __init__(
        self,
        store: Store,
        executor: Executor,
        resolved: Resolved,
        observer: Observer,
        cancelled: Callable[[], bool] | None = None,
    ) -> None:
        self.store, self.executor, self.observer = store, executor, observer
        self.resolved, self.plan = resolved, resolved.plan
        self.outcome = Outcome()
        self.done: set[str] = set()
        self.paused = False
        """Whether the runner starts no new step and only waits for steps that run already."""
        self._cancelled = cancelled or (lambda: records.is_cancelled(store, resolved))
        self._tries: dict[str, int] = {}
        self._not_before: dict[str, float] = {}
        self._began: dict[str, float] = {}
        self._elsewhere: set[str] = set()
        self._untaken: list[Ended] = []
        self._trouble = ""
        self._unasked = False
        """Whether a detached step was started and the check for a cancellation is still to come."""

    def request_stop(self) -> None:
        """Ask the loop to stop; safe in a signal handler."""
        self.outcome.stopped = True

    def run(self) -> Outcome:
        """Run the plan until every wanted step is done, failed or blocked.

        A blocked step needs a failed or blocked step. A stop request ends the run earlier.
        """
        self.begin(retry_failed=True)
        while not self.outcome.stopped:
            try:
                trouble = ""
                if not self.tick(TICK_SECONDS):
                    break
                self.observer.progress(self.executor.running())
                trouble = self.executor.problem()
            except Unavailable as error:
                # Ended attempts are still untaken, and finished steps are in the store; therefore nothing is lost.
                trouble = str(error)
                time.sleep(STORE_RETRY_SECONDS)
            finally:
                self._report_problem(trouble)
        if self.outcome.cancelled:
            self.executor.cancel()
        return self.outcome

    def begin(self, retry_failed: bool) -> None:
        """Read the finished steps from the store.

        ``retry_failed``: failed steps are retried, and artifacts that they found damaged are created again.
        A cancellation mark is deleted, too.
        """
        if retry_failed:
            self._forget_failures()
        else:
            self.outcome.failed = records.read_failures(self.store, self.resolved)
        self.done = done_keys(self.store, self.plan.steps)

    def tick(self, seconds: float = 0.0) -> bool:
        """Start the ready steps, and process attempts that end in ``seconds``.

        Returns False if nothing is left to wait for.

        Raises:
            Unavailable: the store does not answer. Nothing is lost, and the next tick continues.
        """
        if not self._act():
            return False
        self._untaken += self.executor.wait(seconds)
        ended = bool(self._untaken)
        while self._untaken:
            self._take(self._untaken[0])
            del self._untaken[0]
        self._look_elsewhere()
        return not ended or self.outcome.stopped or self._act()

    def next_retry_in(self) -> float:
        """Return the seconds until the next tick is due without any event.

        The result is infinite if no retry is planned.
        """
        now = time.monotonic()
        own = [then - now for then in self._not_before.values() if then > now]
        return min([*own, self.executor.next_retry_in()])

    def active_keys(self) -> set[str]:
        """Return the keys of steps that run, or whose end is not processed yet."""
        return {*self.executor.active_keys(), *(ended.key for ended in self._untaken)}

    def _report_problem(self, trouble: str) -> None:
        """Report a problem once when it begins, and once when it is over."""
        if trouble != self._trouble:
            self.observer.notice(f"{trouble}; trying again" if trouble else "answered again")
            self._trouble = trouble

    def _act(self) -> bool:
        """Start the ready steps.

        Returns False if no step is ready and none runs.
        """
        if self._is_over():
            return True
        busy = self.active_keys()
        pending = ready(self.plan, self.done, busy, self.outcome.failed)
        for step in pending:
            if self._not_before.get(step.key, 0.0) > time.monotonic():
                continue
            if self.paused:
                became: Start = "started" if self.executor.adopt(step) else "no room"
            else:
                became = self.executor.start(step)
            if became == "started":
                self._elsewhere.discard(step.key)
                self._began[step.key] = time.monotonic()
                self.outcome.started += 1
                self.observer.started(step)
                self._unasked = self.executor.detached
                if self._is_over():
                    return True
            elif became == "elsewhere" and step.key not in self._elsewhere:
                self._elsewhere.add(step.key)
                self.observer.running_elsewhere(step)
        return bool(pending or busy or self.executor.active_keys())

    def _is_over(self) -> bool:
        """Check for a cancellation after each start.

        ``cancel`` writes its mark and then deletes Jobs. The runner creates a Job and then reads the mark.
        Whatever the order, either the Job is deleted or the runner sees the mark.
        """
        if self._unasked and self._cancelled():
            self.outcome.stopped = self.outcome.cancelled = True
        self._unasked = False
        return self.outcome.cancelled

    def _take(self, ended: Ended) -> None:
        step = self.plan.by_key[ended.key]
        # The manifest is the verdict, whatever the exit code says.
        if ended.ok or is_done(self.store, step):
            self.done.add(ended.key)
            self.observer.finished(step, time.monotonic() - self._began[ended.key])
            return
        if self.outcome.stopped:
            return
        if ended.vanished:
            self._vanished(step, ended.reason)
            return
        reason = ended.reason or "ended well, but without an artifact"
        tries = self._tries[ended.key] = self._tries.get(ended.key, 0) + 1
        again = not ended.final and tries < MOST_TRIES
        if again:
            self._not_before[ended.key] = time.monotonic() + RETRY_SECONDS[tries - 1]
        else:
            records.write_failure(self.store, self.resolved, ended.key, reason, ended.pod)
            self.outcome.failed[ended.key] = reason
            self.executor.failure_recorded(step)
        self.observer.failed(step, reason, again)

    def _vanished(self, step: Step, reason: str) -> None:
        """Report a vanished attempt, whose step starts again.

        If the run was cancelled, the runner stops instead.
        """
        if self._cancelled():
            self.observer.notice(f"{step.name}: {reason}; this run was cancelled")
            self.outcome.stopped = self.outcome.cancelled = True
        else:
            self.observer.notice(f"{step.name}: {reason}; starting it again")

    def _look_elsewhere(self) -> None:
        """Mark other runners' steps as done once their manifests exist."""
        for key in [k for k in self._elsewhere if is_done(self.store, self.plan.by_key[k])]:
            self._elsewhere.discard(key)
            self.done.add(key)
            self.observer.finished(self.plan.by_key[key], 0.0)

    def _forget_failures(self) -> None:
        """Delete the recorded failures, damaged artifacts and cancellation mark.

        A failure belongs to the run that met the failure; therefore a new run retries the step.
        """
        paths, failed = records.left_by_last_run(self.store, self.resolved)
        for key in {k: None for s in failed for k in s.needs}:
            if why := give_up_damaged(self.store, self.plan.by_key[key].ref):
                self.observer.notice(f"{self.plan.by_key[key].name} is made again: {why}")
        # Last: killed before, the next run finds the failures and looks at the same artifacts.
        self.store.delete(paths)
