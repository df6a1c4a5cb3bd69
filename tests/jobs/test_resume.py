"""Training that is ended and gone on with, however often: the same files, to the byte, and no more steps than were
lost.
"""

from __future__ import annotations

import itertools
import json
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from expunge_jobs.artifacts.attempts import Attempt, checkpoints_of
from expunge_jobs.artifacts.manifests import fetch
from expunge_jobs.core.errors import BadTask, ExitCode, StepError
from expunge_jobs.runtime import shutdown
from expunge_jobs.runtime.checkpoints import Checkpoints
from expunge_jobs.runtime.context import StepContext
from expunge_jobs.runtime.distributed import WorkerGroup
from expunge_jobs.steps import finetune, memorize
from expunge_jobs.store import Store, StoreError, open_store
from expunge_jobs.tasks.references import ArtifactRef
from expunge_jobs.tasks.settings import Architecture, MemorizeSettings
from expunge_jobs.tasks.tasks import FinetuneTask, MemorizeTask, Task
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.jobs import tiny_models as tiny

ALWAYS, NEVER = 0.0, 1e9
"""Seconds between checkpoints."""
_names = itertools.count()


class Killed(BaseException):
    """In place of SIGKILL: nothing after it is run but what ends threads."""


@dataclass
class Ran:
    """What one attempt did."""

    attempt: Attempt
    out: Path
    first: int = 0
    steps: int = 0
    notices: list[str] = field(default_factory=list)


class Lab:
    """Runs attempts at one training task against one store."""

    def __init__(self, folder: Path, program: ModuleType, task: Task) -> None:
        self.folder, self.program, self.task = folder, program, task
        self.store: Store = open_store(str(folder / f"store-{next(_names)}"))
        self.ref = ArtifactRef(kind=task.kind, key=task.key())

    def run(
        self,
        monkeypatch: pytest.MonkeyPatch,
        end_at: int | None = None,
        by: str = "TERM",
        seconds: float = ALWAYS,
        task: Task | None = None,
    ) -> Ran:
        """One attempt; ends after its step ``end_at`` (counted from the task's first)."""
        attempt = Attempt(self.store, self.ref, f"attempt-{next(_names)}")
        attempt.begin("host", 1)
        place = self.folder / attempt.id
        for name in ("out", "scratch"):
            (place / name).mkdir(parents=True)
        ran = Ran(attempt, place / "out")
        work = StepContext(self.store, place / "out", place / "scratch", 1, attempt, seconds)

        def progress(step: int, steps: int, tokens: int = 0, phase: str = "", **figures: float) -> None:
            if phase:  # before the first step
                return
            ran.first = ran.first or step
            ran.steps += 1
            if by == "KILL" and step == end_at:
                raise Killed

        def came() -> bool:
            return by == "TERM" and end_at is not None and ran.first + ran.steps > end_at

        with monkeypatch.context() as patch:
            patch.setattr(work, "progress", progress)
            patch.setattr(work, "notice", ran.notices.append)
            patch.setattr(shutdown, "requested", came)
            try:
                self.program.run(task or self.task, work)
            except shutdown.Terminated:
                attempt.end("stopped by SIGTERM", ExitCode.PREEMPTED)
            except Killed:
                pass
        return ran

    def checkpoints(self) -> list[int]:
        """Steps of all whole checkpoints."""
        return sorted(
            int(Path(p).stem) for p in checkpoints_of(self.store, self.ref) if p.endswith(".json") and "files" not in p
        )


def files(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture(params=["finetune", "memorize"])
def lab(request: pytest.FixtureRequest, base_folder: Path, tmp_path: Path) -> Lab:
    """A task of twelve optimizer steps."""
    if request.param == "finetune":
        # With dropout: its random numbers too must not depend on where an attempt began.
        settings = tiny.settings(epochs=6, dropout=0.2)
        task: Any = FinetuneTask(
            model=tiny.model_ref(base_folder), data=tiny.task_data(tmp_path), settings=settings, seed=5
        )
        return Lab(tmp_path, finetune, task)
    architecture = Architecture(vocab_size=320, hidden_size=32, layers=1, heads=2, intermediate_size=64)
    learn = MemorizeSettings(epochs=3, batch_size=5, learning_rate=1e-2, stop_at=None)
    return Lab(
        tmp_path, memorize, MemorizeTask(data=tiny.task_data(tmp_path), settings=learn, architecture=architecture)
    )


@pytest.fixture
def whole(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """The files of an undisturbed run in a store of its own."""
    ran = Lab(lab.folder, lab.program, lab.task).run(monkeypatch)
    assert ran.steps == 12
    return files(ran.out)


@pytest.mark.parametrize("end_at", [1, 2, 5, 11, 12])
def test_terminated_it_loses_nothing(
    lab: Lab, whole: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, end_at: int
) -> None:
    first = lab.run(monkeypatch, end_at, "TERM", NEVER)
    assert (first.first, first.steps) == (1, end_at)
    if lab.program is memorize and end_at == 12:  # its last step made, it is done
        assert lab.checkpoints() == []
        assert files(first.out) == whole
        return
    assert lab.checkpoints() == [end_at]
    second = lab.run(monkeypatch, seconds=NEVER)
    assert second.first == (end_at + 1 if end_at < 12 else 0)
    assert second.steps == 12 - end_at
    assert files(second.out) == whole
    assert not second.notices


@pytest.mark.parametrize("end_at", [2, 7, 12])
def test_killed_it_loses_the_steps_since_its_last_checkpoint(
    lab: Lab, whole: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, end_at: int
) -> None:
    lab.run(monkeypatch, end_at, "KILL")
    last = max(lab.checkpoints())
    assert 1 <= last < end_at
    second = lab.run(monkeypatch)
    assert second.first == last + 1
    assert files(second.out) == whole


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    ends=st.lists(
        st.tuples(st.integers(1, 12), st.sampled_from(["TERM", "KILL"]), st.sampled_from([ALWAYS, NEVER])), max_size=4
    )
)
def test_however_often_it_is_ended(
    lab: Lab, whole: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, ends: list[tuple[int, str, float]]
) -> None:
    lab = Lab(lab.folder, lab.program, lab.task)
    ran = 0
    lost = 0
    for end_at, by, seconds in ends:
        before = max(lab.checkpoints(), default=0)
        one = lab.run(monkeypatch, end_at, by, seconds)
        if one.steps:
            assert one.first == before + 1, "an attempt begins where the last checkpoint ended"
        ran += one.steps
        lost += before + one.steps - max(lab.checkpoints(), default=0)
    last = lab.run(monkeypatch)
    assert files(last.out) == whole
    assert ran + last.steps <= 12 + lost, "steps of all attempts together: those of one, and those that were lost"


def test_an_attempt_writes_only_in_its_own_folder(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    first = lab.run(monkeypatch, 6, "KILL")
    before = {e.path: e.modified for e in lab.store.list(first.attempt.folder)}
    assert before
    lab.run(monkeypatch, 9, "KILL")
    assert {e.path: e.modified for e in lab.store.list(first.attempt.folder)} == before


def test_checkpoints_are_few_and_go_when_the_step_is_done(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    lab.run(monkeypatch, 11, "KILL")
    assert 1 <= len(lab.checkpoints()) <= 2
    last = lab.run(monkeypatch)
    assert 1 <= len(lab.checkpoints()) <= 4
    assert last.attempt.publish(lab.task, last.out, {}, {}, "cpu", 1)
    assert checkpoints_of(lab.store, lab.ref) == []
    assert files(fetch(lab.store, lab.ref, lab.folder / "in")).keys() >= files(last.out).keys()


def test_one_that_was_slower_takes_its_checkpoints_with_it(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    slow = lab.run(monkeypatch, 11, "KILL")
    fast = lab.run(monkeypatch)
    assert fast.attempt.publish(lab.task, fast.out, {}, {}, "cpu", 1)
    lab.store.put(f"{slow.attempt.folder}/checkpoints/00000012.pt", b"woken up too late")
    assert slow.attempt.publish(lab.task, fast.out, {}, {}, "cpu", 1) is False
    assert checkpoints_of(lab.store, lab.ref) == []


def spoil_state(store: Store, path: str) -> None:
    store.put(path.replace(".json", ".pt"), b"torn")


def drop_state(store: Store, path: str) -> None:
    store.delete([path.replace(".json", ".pt")])


def spoil_list(store: Store, path: str) -> None:
    store.put(path, b'{"step": ')


@pytest.mark.parametrize("damage", [spoil_state, drop_state, spoil_list])
def test_a_damaged_checkpoint_is_passed_over(
    lab: Lab, whole: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, damage: Callable[[Store, str], None]
) -> None:
    lab.run(monkeypatch, 4, "TERM", NEVER)
    lab.run(monkeypatch, 8, "TERM", NEVER)
    newest = next(p for p in checkpoints_of(lab.store, lab.ref) if p.endswith("/00000008.json"))
    damage(lab.store, newest)
    last = lab.run(monkeypatch)
    assert last.first == 5
    assert "a checkpoint cannot be used" in last.notices[0]
    assert files(last.out) == whole


def test_a_store_that_takes_no_checkpoint_costs_no_training(
    lab: Lab, whole: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    put = type(lab.store).put_file

    def full(self: Store, path: str, source: Path) -> None:
        if "checkpoints" in path:
            raise StoreError("the store is full")
        put(self, path, source)  # type: ignore[arg-type]

    monkeypatch.setattr(type(lab.store), "put_file", full)
    ran = lab.run(monkeypatch)
    assert files(ran.out) == whole
    assert "a checkpoint could not be written: the store is full" in ran.notices
    assert lab.checkpoints() == []


def test_training_goes_on_while_a_checkpoint_is_written(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    put, all_steps_made = type(lab.store).put_file, threading.Event()
    waited: list[bool] = []

    def slow(self: Store, path: str, source: Path) -> None:
        waited.append(all_steps_made.wait(60))
        put(self, path, source)  # type: ignore[arg-type]

    monkeypatch.setattr(type(lab.store), "put_file", slow)
    monkeypatch.setattr(Checkpoints, "__exit__", set_before(all_steps_made, Checkpoints.__exit__))
    assert lab.run(monkeypatch).steps == 12
    assert waited and all(waited), "the first upload was not over before the last step"


def set_before(event: threading.Event, then: Callable[..., Any]) -> Callable[..., Any]:
    def both(*words: Any) -> Any:
        event.set()
        return then(*words)

    return both


def test_no_attempt_goes_on_from_what_cannot_succeed(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """The loss is not finite: the next attempt would meet the same."""
    ran = lab.run(monkeypatch, 5, "KILL")
    assert lab.checkpoints()
    ran.attempt.end("the loss is nan", ExitCode.BAD_TASK)
    assert checkpoints_of(lab.store, lab.ref) == []
    assert json.loads(lab.store.get(f"{ran.attempt.folder}/end.json")[0])["exit_code"] == BadTask.exit_code


def test_a_team_that_would_go_on_from_different_steps_does_not(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    lab.run(monkeypatch, end_at=5)
    heard: list[int] = []
    monkeypatch.setattr(WorkerGroup, "agrees", lambda self, value: bool(heard.append(value)))
    with pytest.raises(StepError, match="not every process could read the newest checkpoint"):
        lab.run(monkeypatch)
    assert heard == [5], "the step that it would go on from is what is compared"
