"""The reconcile loop: (plan, what is observed) -> what to start. Level-triggered; keeps nothing a restart could lose.

Kill it anywhere and start it again: what is done is read from the store's manifests, never remembered.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from typing import Protocol

from expunge_jobs.artifacts.damage import find_damaged, give_up_damaged, mark_damaged
from expunge_jobs.artifacts.manifests import now
from expunge_jobs.store import SMALL, Store, Unavailable

from expunge_controller.execution.executor import Ended, Executor, Start
from expunge_controller.execution.step_log import Progress
from expunge_controller.planning.plan import Plan, Step
from expunge_controller.planning.resolve import Resolved, folder
from expunge_controller.planning.step_states import done_keys, is_done, wanted_keys

ATTEMPTS = 3
RETRY_SECONDS = (1.0, 4.0)
STORE_RETRY_SECONDS = 5.0
"""Seconds until a store that gave no answer is asked again."""
TICK_SECONDS = 0.25
"""Seconds between looks at steps that another runner has, and between two pictures of the progress."""


REASON_CHARACTERS = 4000
"""Characters of a recorded failure that are kept: whoever writes into the store decides its length."""


class Observer(Protocol):
    """Who is told how a run goes."""

    def started(self, step: Step) -> None: ...
    def progress(self, running: dict[str, Progress]) -> None: ...
    def finished(self, step: Step, seconds: float) -> None: ...
    def failed(self, step: Step, reason: str, again: bool) -> None: ...
    def running_elsewhere(self, step: Step) -> None: ...
    def notice(self, text: str) -> None: ...


@dataclass
class Outcome:
    """How a run ended: failures by key, and whether the user stopped it, or somebody cancelled it."""

    failed: dict[str, str] = field(default_factory=dict)
    stopped: bool = False
    cancelled: bool = False
    started: int = 0


def ready(plan: Plan, done: Collection[str], busy: Collection[str], failed: Collection[str]) -> list[Step]:
    """Steps to start now, in order: wanted, everything they need done, neither running nor failed. Pure."""
    wanted = wanted_keys(plan, set(done))
    return [
        s
        for s in plan.steps
        if s.key in wanted and s.key not in busy and s.key not in failed and all(n in done for n in s.needs)
    ]


class Runner:
    """Runs a plan to its end on an executor: ``run`` by itself, or ``begin`` and then ``tick`` as often as something may
    have changed. ``cancelled`` is asked after each start of what would outlive this process."""

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
        """Start nothing; wait for what is at work."""
        self._cancelled = cancelled or (lambda: is_cancelled(store, resolved))
        self._tries: dict[str, int] = {}
        self._not_before: dict[str, float] = {}
        self._began: dict[str, float] = {}
        self._elsewhere: set[str] = set()
        self._untaken: list[Ended] = []
        self._trouble = ""
        self._unasked = False
        """Something was started, and whether the run was cancelled meanwhile is not known."""

    def request_stop(self) -> None:
        """Ask the loop to stop; safe in a signal handler."""
        self.outcome.stopped = True

    def run(self) -> Outcome:
        """Until everything wanted is done, has failed, or is blocked by what failed; or until a stop is asked for."""
        self.begin(retry_failed=True)
        while not self.outcome.stopped:
            try:
                trouble = ""
                if not self.tick(TICK_SECONDS):
                    break
                self.observer.progress(self.executor.running())
                trouble = self.executor.problem()
            except Unavailable as error:
                # Nothing is lost: what ended is still untaken, and what is done is in the store.
                trouble = str(error)
                time.sleep(STORE_RETRY_SECONDS)
            finally:
                self._report_problem(trouble)
        if self.outcome.cancelled:
            self.executor.cancel()
        return self.outcome

    def begin(self, retry_failed: bool) -> None:
        """See what is done.

        ``retry_failed``: failed steps are tried again, artifacts that they found damaged are made again, and a cancellation is
        over.
        """
        if retry_failed:
            self._forget_failures()
        else:
            self.outcome.failed = read_failures(self.store, self.resolved)
        self.done = done_keys(self.store, self.plan.steps)

    def tick(self, seconds: float = 0.0) -> bool:
        """Start what can be started, and take what has ended within so many seconds. False: nothing is left to wait for.

        Raises:
            Unavailable: the store does not answer; nothing is lost, and the next tick goes on.
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
        """Seconds until the next tick has something to do though nobody says so; infinite where it has not."""
        now = time.monotonic()
        own = [then - now for then in self._not_before.values() if then > now]
        return min([*own, self.executor.next_retry_in()])

    def active_keys(self) -> set[str]:
        """Keys of steps that run, or have ended and are not judged yet."""
        return {*self.executor.active_keys(), *(ended.key for ended in self._untaken)}

    def _report_problem(self, trouble: str) -> None:
        """Once, when it begins; and once when it is over."""
        if trouble != self._trouble:
            self.observer.notice(f"{trouble}; trying again" if trouble else "answered again")
            self._trouble = trouble

    def _act(self) -> bool:
        """Start what can be started. False: nothing is left that could be, and nothing runs."""
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
        """Asked after each start: a cancel marks first and then ends what it finds, so one of the two sees the other."""
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
        again = not ended.final and tries < ATTEMPTS
        if again:
            self._not_before[ended.key] = time.monotonic() + RETRY_SECONDS[tries - 1]
        else:
            self._record_failure(ended, reason)
            self.outcome.failed[ended.key] = reason
            self.executor.failure_recorded(step)
        self.observer.failed(step, reason, again)

    def _vanished(self, step: Step, reason: str) -> None:
        """Begin again, unless somebody has said that the run is over."""
        if self._cancelled():
            self.observer.notice(f"{step.name}: {reason}; this run was cancelled")
            self.outcome.stopped = self.outcome.cancelled = True
        else:
            self.observer.notice(f"{step.name}: {reason}; starting it again")

    def _look_elsewhere(self) -> None:
        """Steps that another runner has: their manifests tell when they are done."""
        for key in [k for k in self._elsewhere if is_done(self.store, self.plan.by_key[k])]:
            self._elsewhere.discard(key)
            self.done.add(key)
            self.observer.finished(self.plan.by_key[key], 0.0)

    def _record_failure(self, ended: Ended, reason: str) -> None:
        record = {"key": ended.key, "reason": reason, "failed": now(), **({"pod": ended.pod} if ended.pod else {})}
        self.store.put(_failure(self.resolved, ended.key), json.dumps(record).encode())

    def _forget_failures(self) -> None:
        """A failure belongs to the run that met it: a new run tries again."""
        paths = [e.path for e in self.store.list(folder(self.resolved))]
        failed = [s for s in self.plan.steps if _failure(self.resolved, s.key) in paths]
        for key in {k: None for s in failed for k in s.needs}:
            if why := give_up_damaged(self.store, self.plan.by_key[key].ref):
                self.observer.notice(f"{self.plan.by_key[key].name} is made again: {why}")
        self.store.delete(paths)


def _failure(resolved: Resolved, key: str) -> str:
    return f"{folder(resolved)}/failed/{key}.json"


def _cancelled(resolved: Resolved) -> str:
    return f"{folder(resolved)}/cancelled.json"


def mark_cancelled(store: Store, resolved: Resolved) -> None:
    """Whoever is at this run now is to end when its steps vanish; the next run takes the mark away."""
    store.put(_cancelled(resolved), json.dumps({"cancelled": now()}).encode())


def is_cancelled(store: Store, resolved: Resolved) -> bool:
    """Whether the mark is there."""
    return bool(store.present([_cancelled(resolved)]))


def read_failures(store: Store, resolved: Resolved) -> dict[str, str]:
    """Reasons by key, as the last run of this generation recorded them."""
    out: dict[str, str] = {}
    paths = {_failure(resolved, key) for key in resolved.plan.by_key}  # no other object there is read
    for entry in list(store.list(f"{folder(resolved)}/failed")):
        if entry.path in paths:
            record = json.loads(store.get(entry.path, SMALL)[0])
            out[str(record["key"])] = str(record["reason"])[:REASON_CHARACTERS]
    return out


def drop_damaged(store: Store, resolved: Resolved) -> Iterator[str]:
    """Give up finished steps whose bytes are not what their manifests say, so that the next run makes them anew: all are read,
    unless steps have failed, which said themselves what they found. A line on each."""
    if not read_failures(store, resolved):
        done = done_keys(store, resolved.plan.steps)
        for step in [s for s in resolved.plan.steps if s.key in done]:
            for error in find_damaged(store, [step.ref]):
                mark_damaged(store, error)
                yield f"{step.name} is made again: {give_up_damaged(store, step.ref)}"
