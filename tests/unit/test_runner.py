"""The loop by itself, with an executor and a store that behave as a test wishes."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path

import pytest
from expunge_controller.execution import runner
from expunge_controller.execution.executor import Ended, Progress, Start
from expunge_controller.execution.runner import Runner
from expunge_controller.experiment.loading import load_experiment
from expunge_controller.planning.plan import Step
from expunge_controller.planning.records import mark_cancelled
from expunge_controller.planning.resolve import Resolved, resolve
from expunge_jobs.store import Unavailable
from expunge_jobs.store.schemes.file import FileStore

QUICKSTART = Path(__file__).parents[2] / "examples" / "quickstart.yaml"


class Fails:
    """Every step that it starts fails at once."""

    detached = False

    def __init__(self) -> None:
        self.started: list[str] = []
        self.cancelled = False
        self._ended: list[Ended] = []

    def start(self, step: Step) -> Start:
        self.started.append(step.name)
        self._ended.append(Ended(step.key, ok=False, reason="as the test wishes", final=True))
        return "started"

    def adopt(self, step: Step) -> bool:
        return False

    def next_retry_in(self) -> float:
        return math.inf

    def active_keys(self) -> set[str]:
        return {e.key for e in self._ended}

    def running(self) -> dict[str, Progress]:
        return {e.key: {} for e in self._ended}

    def wait(self, seconds: float) -> list[Ended]:
        ended, self._ended = self._ended, []
        return ended

    def problem(self) -> str:
        return ""

    def cancel(self) -> None:
        self.cancelled = True

    def failure_recorded(self, step: Step) -> None:
        pass

    def stop(self, grace: float) -> None:
        pass


class Told:
    """An observer that keeps its notices."""

    def __init__(self) -> None:
        self.notices: list[str] = []

    def notice(self, text: str) -> None:
        self.notices.append(text)

    def started(self, step: Step) -> None: ...
    def progress(self, running: dict[str, Progress]) -> None: ...
    def finished(self, step: Step, seconds: float) -> None: ...
    def failed(self, step: Step, reason: str, again: bool) -> None: ...
    def running_elsewhere(self, step: Step) -> None: ...


class Away(FileStore):
    """Gives no answer to some questions about manifests."""

    questions = 0

    def present(self, paths: Iterable[str]) -> set[str]:
        self.questions += 1
        if self.questions in (2, 3):
            raise Unavailable("the store is away")
        return super().present(paths)


def test_what_ended_while_the_store_was_away_is_not_started_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "STORE_RETRY_SECONDS", 0.0)
    executor, told = Fails(), Told()
    outcome = Runner(Away(tmp_path), executor, resolve(load_experiment(QUICKSTART)), told).run()
    assert executor.started == ["memorize"]
    assert list(outcome.failed.values()) == ["as the test wishes"]
    assert told.notices == ["the store is away; trying again", "answered again"]


class CancelledMeanwhile(Fails):
    """Somebody says that the run is over just as a step starts: what he ended did not hold that step yet."""

    detached = True

    def __init__(self, store: FileStore, resolved: Resolved) -> None:
        super().__init__()
        self.store, self.resolved = store, resolved

    def start(self, step: Step) -> Start:
        mark_cancelled(self.store, self.resolved)
        return super().start(step)


@pytest.mark.parametrize("kind", [FileStore, Away])
def test_a_step_that_starts_while_the_run_is_cancelled_ends_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: type[FileStore]
) -> None:
    monkeypatch.setattr(runner, "STORE_RETRY_SECONDS", 0.0)
    store, resolved = kind(tmp_path), resolve(load_experiment(QUICKSTART))
    executor = CancelledMeanwhile(store, resolved)
    outcome = Runner(store, executor, resolved, Told()).run()
    assert outcome.cancelled
    assert executor.cancelled
    assert executor.started == ["memorize"]
