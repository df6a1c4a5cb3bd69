"""What a step does about its own deadline, its disk, disturbances without end, and where its words are kept; by
processes of the shipped program.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from expunge_jobs.artifacts.attempts import Attempt, attempts, checkpoints_of, count_disruptions, read_log
from expunge_jobs.artifacts.manifests import read_manifest
from expunge_jobs.core.errors import ExitCode
from expunge_jobs.runtime import limits, shutdown
from expunge_jobs.runtime.log_upload import LogParts
from expunge_jobs.store import Store, StoreError, open_store
from expunge_jobs.store.schemes.file import FileStore
from expunge_jobs.tasks.references import ArtifactRef
from expunge_jobs.tasks.settings import Architecture, MemorizeSettings
from expunge_jobs.tasks.tasks import MemorizeTask

from tests.jobs import tiny_models as tiny


class Step:
    """One training step of half a minute and more, and the store that it writes into."""

    def __init__(self, folder: Path) -> None:
        architecture = Architecture(vocab_size=320, hidden_size=32, layers=1, heads=2, intermediate_size=64)
        learn = MemorizeSettings(epochs=4000, batch_size=5, learning_rate=1e-3, stop_at=None)
        self.task = MemorizeTask(data=tiny.task_data(folder), settings=learn, architecture=architecture)
        self.ref = ArtifactRef(kind=self.task.kind, key=self.task.key())
        self.store = open_store(str(folder / "store"))
        self._begun: list[subprocess.Popen[str]] = []

    def begin(
        self, attempt: str, *, program: tuple[str, ...] = ("-m", "expunge_jobs"), **limits: str
    ) -> subprocess.Popen[str]:
        environment = os.environ | {
            "EXPUNGE_TASK": self.task.to_json(),
            "EXPUNGE_STORE": self.store.uri,
            "EXPUNGE_ATTEMPT": attempt,
            "EXPUNGE_THREADS": "1",
            **limits,
        }
        process = subprocess.Popen([sys.executable, *program], env=environment, stdout=subprocess.PIPE, text=True)
        self._begun.append(process)
        return process

    def close(self) -> None:
        for process in self._begun:
            process.kill()
            process.communicate()


@pytest.fixture
def step(tmp_path: Path) -> Iterator[Step]:
    step = Step(tmp_path)
    yield step
    step.close()


def until_it_trains(process: subprocess.Popen[str]) -> None:
    assert process.stdout is not None
    assert any('"progress"' in line for line in process.stdout)


def last(process: subprocess.Popen[str]) -> dict[str, object]:
    out, _ = process.communicate(timeout=60)
    event: dict[str, object] = json.loads(out.splitlines()[-1])
    return event


def test_its_deadline_ends_it_for_good(step: Step) -> None:
    process = step.begin("one", EXPUNGE_DEADLINE="0.5")
    said = last(process)
    assert process.returncode == ExitCode.LIMIT_EXCEEDED == said["exit_code"]
    assert said["reason"] == "took longer than 0.5 s: raise resources.memorize.deadline"


TORN = """
import signal, sys
from expunge_jobs.__main__ import main

class Tears:
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            try:
                signal.raise_signal(signal.SIGALRM)
            except BaseException:
                raise ImportError("half loaded") from None

sys.meta_path.insert(0, Tears())
sys.exit(main())
"""


def test_torn_out_of_an_import_it_says_the_deadline_all_the_same(step: Step) -> None:
    process = step.begin("one", program=("-c", TORN), EXPUNGE_DEADLINE="1000")
    said = last(process)
    assert process.returncode == ExitCode.LIMIT_EXCEEDED, said
    assert said["reason"] == "took longer than 1000 s: raise resources.memorize.deadline"


def test_a_swallowed_deadline_comes_again(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("REPEAT_SECONDS", 0.05), ("_requested", False), ("_limit_reason", "")):
        monkeypatch.setattr(shutdown, name, value)  # as they are now is how they are found again
    before = signal.getsignal(signal.SIGALRM)
    try:
        shutdown.exceed_after(0.05, "over")
        for _ in range(2):
            with pytest.raises(shutdown.Terminated):
                time.sleep(60)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_with_more_time_it_goes_on(step: Step) -> None:
    process = step.begin("one", EXPUNGE_DEADLINE="1000", EXPUNGE_CHECKPOINT_SECONDS="1000")
    until_it_trains(process)
    process.send_signal(signal.SIGALRM)  # what the timer sends
    assert last(process)["exit_code"] == ExitCode.LIMIT_EXCEEDED
    assert checkpoints_of(step.store, step.ref)


def test_more_disk_than_its_own_ends_it_for_good(step: Step, tmp_path: Path) -> None:
    for attempt, limit, code in (("one", 2**30, ExitCode.PREEMPTED), ("two", 1, ExitCode.LIMIT_EXCEEDED)):
        process = step.begin(attempt, EXPUNGE_DISK=str(limit), TMPDIR=str(tmp_path))
        if code == ExitCode.PREEMPTED:
            until_it_trains(process)
            process.send_signal(signal.SIGTERM)
        said = last(process)
        assert process.returncode == code, said
    assert str(said["reason"]).startswith("used ")
    assert str(said["reason"]).endswith(" bytes of disk, more than 1: raise resources.memorize.disk")


def test_disk_is_counted_as_du_counts_it(tmp_path: Path) -> None:
    (tmp_path / "some").mkdir()
    (tmp_path / "some" / "file").write_bytes(b"x" * 100_000)
    os.link(tmp_path / "some" / "file", tmp_path / "again")
    (tmp_path / "sign").symlink_to("/usr")
    du = subprocess.run(
        ["du", "--summarize", "--block-size=1", str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert limits.used(tmp_path) == int(du.stdout.split()[0]) > 100_000


def test_disturbed_ten_times_without_getting_on_it_gives_up(step: Step) -> None:
    for number in range(10):
        Attempt(step.store, step.ref, f"earlier-{number}").begin("host", 1, "job-a")
        time.sleep(0.002)  # records are ordered by their time
    assert count_disruptions(step.store, step.ref, "job-a") == 10
    process = step.begin("last", EXPUNGE_JOB="job-a")
    said = last(process)
    assert process.returncode == ExitCode.LIMIT_EXCEEDED
    assert "Interrupted 10 times without progress" in str(said["reason"])
    other = step.begin("other", EXPUNGE_JOB="job-b")
    until_it_trains(other)


def test_a_checkpoint_is_getting_on(step: Step) -> None:
    for number in range(5):
        attempt = Attempt(step.store, step.ref, f"earlier-{number}")
        attempt.begin("host", 1, "job-a")
        time.sleep(0.002)
        if number == 2:
            step.store.put(f"{attempt.folder}/checkpoints/00000007.json", b"{}")
    assert count_disruptions(step.store, step.ref, "job-a") == 2
    assert count_disruptions(step.store, step.ref, "job-b") == 0


def test_what_it_says_is_in_the_store_while_it_says_it(step: Step) -> None:
    process = step.begin("one", EXPUNGE_LOG_SECONDS="0.2")
    until_it_trains(process)
    until = time.monotonic() + 30
    while b'"progress"' not in (read_log(step.store, step.ref, "one") or b""):
        assert time.monotonic() < until
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    log = (read_log(step.store, step.ref, "one") or b"").decode().splitlines()
    assert json.loads(log[0])["event"] == "start"
    assert json.loads(log[-1]) == {"event": "failed", "reason": "stopped by SIGTERM", "exit_code": 143}
    assert [r.attempt for r in attempts(step.store, step.ref)] == ["one"]
    assert read_manifest(step.store, step.ref) is None


def test_lines_wait_for_a_store_that_comes_back(tmp_path: Path) -> None:
    class Moody(FileStore):
        broken = True

        def put(self, path: str, data: bytes, *, if_absent: bool = False, if_match: str | None = None) -> None:
            if self.broken:
                raise StoreError("away")
            super().put(path, data, if_absent=if_absent, if_match=if_match)

    store = Moody(tmp_path)
    plain: Store = store
    ref = ArtifactRef(kind="merge", key="ab" * 32)
    with LogParts(Attempt(plain, ref, "one"), 0.01) as parts:
        parts.take("first")
        time.sleep(0.1)
        assert read_log(plain, ref, "one") is None
        store.broken = False
        parts.take("second")
    assert read_log(plain, ref, "one") == b"first\nsecond\n"
