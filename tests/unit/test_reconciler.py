"""One look at an Experiment, with everything around it as a test wishes."""

from __future__ import annotations

from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any

import pytest
from expunge_controller.operator.events import Event, EventBuffer
from expunge_controller.operator.job_slots import STUCK_SECONDS, JobSlots
from expunge_controller.operator.metrics import Metrics
from expunge_controller.operator.reconciler import Look, Reconciler
from expunge_controller.operator.reporting import Update
from expunge_controller.operator.workers import Operator
from expunge_jobs.store import Unavailable

NAME = ("team", "tiny")
META = {"uid": "1", "generation": 2, "retry": "", "creationTimestamp": "2026", "deletionTimestamp": None}


class Reporter:
    """Keeps what it is given."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.updates: list[Update] = []
        self.written = True

    def record_events(self, name: Any, found: Any, events: Iterable[Event]) -> None:
        self.events += events

    def report(self, name: Any, found: Any, update: Update, active: int) -> bool:
        self.events += update.events
        self.updates.append(update)
        return self.written

    def forget(self, name: Any) -> None: ...


class Place:
    """A reconciler of one Experiment whose inputs do not answer."""

    def __init__(self, status: dict[str, Any] | None = None) -> None:
        self.found = {"metadata": META, "spec": "{}", "status": status or {}}
        self.taken_up = 0
        self.reporter = Reporter()
        informers: Any = {"team": SimpleNamespace(get=lambda _: self.found)}
        generations: Any = SimpleNamespace(settings=SimpleNamespace(state=None), take_up=self.take_up)
        slots = JobSlots(10, lambda name: None, 5)
        reporter: Any = self.reporter
        self.reconciler = Reconciler(
            informers, generations, slots, reporter, Metrics(dict, dict), lambda *_, **__: None
        )

    def take_up(self, name: Any, found: Any, spec: Any) -> Any:
        self.taken_up += 1
        raise Unavailable("the inputs do not answer")

    def put_to_work(self, **fields: Any) -> EventBuffer:
        """An earlier generation is at work, and has something to report."""
        events = EventBuffer(lambda *_: None)
        events.add("StepFailed", "merge", "merge: why")
        executor = SimpleNamespace(stop=lambda grace: None)
        own = {"is_of": lambda found: False, "executor": executor, "events": events}
        active: Any = SimpleNamespace(**{**own, **fields})
        self.reconciler._active[NAME] = active
        return events


def test_while_one_retries_another_is_refused_and_tries_nothing() -> None:
    place = Place()
    assert place.reconciler._retrying.acquire(blocking=False)
    assert place.reconciler.reconcile(NAME, retrying=True) == Look(STUCK_SECONDS, refused=True)
    assert place.taken_up == 0
    place.reconciler._retrying.release()
    with pytest.raises(Unavailable):
        place.reconciler.reconcile(NAME, retrying=True)
    assert place.taken_up == 1
    assert place.reconciler._retrying.acquire(blocking=False), "given back, whatever came of it"


@pytest.mark.parametrize(
    ("look", "left"), [(Look(STUCK_SECONDS, refused=True), {NAME: 3}), (Look(None), {}), (Look(30.0), {})]
)
def test_a_refused_look_leaves_the_count_of_failures(look: Look, left: dict[Any, int]) -> None:
    operator = Operator.__new__(Operator)
    operator.metrics, operator._failures = Metrics(dict, dict), {NAME: 3}
    operator.reconciler = SimpleNamespace(reconcile=lambda name, retrying: look)  # type: ignore[assignment]
    assert operator._reconcile(NAME) == look.again
    assert operator._failures == left


def test_what_an_earlier_generation_had_to_report_is_reported_though_the_next_one_cannot_be_planned() -> None:
    place = Place()
    place.put_to_work()
    with pytest.raises(Unavailable):
        place.reconciler.reconcile(NAME, retrying=False)
    assert place.reporter.events == [Event("Warning", "StepFailed", "merge: why")]


def test_the_last_events_wait_for_a_store_that_is_away_at_the_end() -> None:
    place = Place({"observedGeneration": 2, "phase": "Running"})

    def best() -> str:
        raise Unavailable("the store is away")

    outcome = SimpleNamespace(failed={})
    runner = SimpleNamespace(paused=False, tick=lambda: False, outcome=outcome)
    resolved = SimpleNamespace(plan=None)
    events = place.put_to_work(is_of=lambda found: True, runner=runner, woken=None, best=best, resolved=resolved)
    with pytest.raises(Unavailable):
        place.reconciler.reconcile(NAME, retrying=False)
    assert events.pending, "they are still to be reported"


def test_a_generation_whose_status_another_client_was_faster_to_write_is_let_go() -> None:
    place = Place()
    stopped: list[float] = []
    plan = SimpleNamespace(steps=())
    active = SimpleNamespace(
        resolved=SimpleNamespace(plan=plan, digest="d" * 64),
        runner=SimpleNamespace(done=set()),
        status=dict,
        executor=SimpleNamespace(stop=stopped.append),
    )
    place.reconciler.generations.take_up = lambda name, found, spec: active  # type: ignore[method-assign,assignment,return-value]
    place.reporter.written = False
    assert place.reconciler.reconcile(NAME, retrying=False) == Look(None)
    assert stopped == [0]
    assert not place.reconciler._active
