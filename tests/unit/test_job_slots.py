"""Who is next: by threads of the test, no cluster."""

from __future__ import annotations

import threading
import time

import pytest
from expunge_controller.operator.job_slots import MOST_PODLESS_JOBS, JobSlots
from expunge_controller.operator.work_queue import NamespacedName, WorkQueue

A, B, C = ("ns", "a"), ("ns", "b"), ("ns", "c")


def test_what_is_asked_for_twice_is_handed_out_once() -> None:
    queue = WorkQueue()
    queue.add(A)
    queue.add(A)
    queue.add(B)
    assert [queue.get(0), queue.get(0), queue.get(0)] == [A, B, None]


def test_what_changes_while_it_is_looked_at_is_looked_at_again_and_not_by_two() -> None:
    queue = WorkQueue()
    queue.add(A)
    assert queue.get(0) == A
    queue.add(A)
    assert queue.get(0) is None, "one worker has it"
    queue.done(A)
    assert queue.get(0) == A
    queue.done(A)
    assert queue.get(0) is None


def test_later_comes_in_its_time() -> None:
    queue = WorkQueue()
    queue.add_after(B, 0.2)
    queue.add_after(A, 0.1)
    begun = time.monotonic()
    assert queue.get(0) is None
    assert [queue.get(5), queue.get(5)] == [A, B]
    assert 0.2 <= time.monotonic() - begun < 4


def test_what_is_urgent_comes_first() -> None:
    queue = WorkQueue()
    for who in (A, B, C):
        queue.add(who)
    for who in (C, B, C):
        queue.add(who, urgent=True)
    assert [queue.get(0) for _ in range(4)] == [C, B, A, None]
    queue.add(A)
    queue.add(B, urgent=True)
    queue.add(A, urgent=True)
    assert queue.get(0) is None, "all are in somebody's hands"
    for who in (A, B, C):
        queue.done(who)
    assert {queue.get(0), queue.get(0)} == {A, B}


def test_of_many_times_the_first_counts_and_once() -> None:
    queue = WorkQueue()
    for seconds in (0.3, 0.1, 0.2, 0.1):
        queue.add_after(A, seconds)
    assert queue.get(5) == A
    queue.done(A)
    assert queue.get(0.4) is None, "the later ones are forgotten: whoever looks asks anew"


def test_a_worker_that_waits_is_woken() -> None:
    queue = WorkQueue()
    got: list[NamespacedName | None] = []
    thread = threading.Thread(target=lambda: got.append(queue.get(20)))
    thread.start()
    queue.add(A)
    thread.join(10)
    assert got == [A]


def places(most: int) -> tuple[JobSlots, list[NamespacedName]]:
    woken: list[NamespacedName] = []
    return JobSlots(most, woken.append, most_beginning=6), woken


def test_no_more_jobs_than_places_and_the_refused_one_is_woken() -> None:
    room, woken = places(1)
    assert room.acquire(A, "1", "job-1", there=False)
    assert not room.acquire(B, "2", "job-2", there=False)
    assert woken == []
    room.release(A, "job-1")
    assert woken == [B]
    assert room.acquire(B, "2", "job-2", there=False)
    assert room.held() == 1


def test_a_job_that_two_wait_for_has_one_place() -> None:
    room, _ = places(1)
    assert room.acquire(A, "1", "job-1", there=False)
    assert room.acquire(B, "2", "job-1", there=False)
    room.release(A, "job-1")
    assert room.held() == 1
    room.release(B, "job-1")
    assert room.held() == 0


def test_a_free_place_goes_to_whoever_has_the_fewest_then_to_the_oldest() -> None:
    room, woken = places(3)
    assert room.acquire(A, "1", "a-1", there=False)
    assert room.acquire(A, "1", "a-2", there=False)
    assert room.acquire(C, "3", "c-1", there=False)
    for who, since in ((A, "1"), (C, "3"), (B, "2")):
        assert not room.acquire(who, since, f"{who[1]}-more", there=False)
    room.release(A, "a-1")
    assert woken == [B], "it has none"
    assert not room.acquire(A, "1", "a-more", there=False), "the place is not its own"
    assert room.acquire(B, "2", "b-more", there=False)
    room.release(C, "c-1")
    assert woken[-1] == C, "it has none now, and the other has one"


def test_who_needs_nothing_any_more_is_not_waited_for() -> None:
    room, woken = places(1)
    assert room.acquire(A, "1", "a-1", there=False)
    assert not room.acquire(B, "2", "b-1", there=False)
    assert not room.acquire(C, "3", "c-1", there=False)
    room.release(A, "a-1")
    assert woken == [B]
    room.withdraw_request(B)  # looked at, and asks for nothing
    room.wake_next()
    assert woken == [B, C]
    assert room.acquire(C, "3", "c-1", there=False)


def test_jobs_that_are_there_after_a_restart_have_their_places() -> None:
    room, _ = places(1)
    assert room.acquire(A, "1", "a-1", there=True)
    assert room.acquire(B, "2", "b-1", there=True), "more than it may be, but they run"
    assert not room.acquire(C, "3", "c-1", there=False)


def test_nobody_begins_while_jobs_wait_for_their_pods() -> None:
    room, woken = places(100)
    assert room.try_admit(A, "1")
    for number in range(MOST_PODLESS_JOBS):
        assert room.acquire(A, "1", f"job-{number}", there=False), "whoever has begun goes on"
    assert not room.try_admit(C, "3")
    assert not room.try_admit(B, "2")
    assert woken == []
    room.has_pod("job-0")
    assert woken == [B], "the oldest"
    assert room.try_admit(B, "2")
    room.acquire(B, "2", "job-b", there=False)
    room.release(A, "job-1")
    assert woken == [B, C]


def test_so_many_begin_at_once_and_then_the_oldest() -> None:
    woken: list[NamespacedName] = []
    room = JobSlots(100, woken.append, most_beginning=1)
    assert room.try_admit(A, "1")
    assert not room.try_admit(C, "3")
    assert not room.try_admit(B, "2")
    assert woken == []
    room.admitted(A)
    assert woken == [B]


def test_jobs_that_were_there_or_wait_for_a_quota_are_no_backlog(monkeypatch: pytest.MonkeyPatch) -> None:
    room, _ = places(100)
    for number in range(MOST_PODLESS_JOBS):
        room.acquire(A, "1", f"job-{number}", there=True)
    assert room.try_admit(B, "2")
    for number in range(MOST_PODLESS_JOBS):
        room.acquire(B, "2", f"stuck-{number}", there=False)
    assert not room.try_admit(C, "3")
    monkeypatch.setattr("expunge_controller.operator.job_slots.STUCK_SECONDS", -1.0)
    assert room.try_admit(C, "3")
