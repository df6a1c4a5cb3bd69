"""Ctrl-C, two runners at once, and steps that are killed under the runner."""

from __future__ import annotations

import os
import shlex
import signal
import time
from collections.abc import Callable
from pathlib import Path

from tests.support.runs import SLOWER, attempts, begin, command, finished_steps, resumed_at, wait_for, weights


def _processes_of(store: Path) -> list[int]:
    """Pids of steps that work in this store, by their environment."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                environment = (folder / "environ").read_bytes()
                state = (folder / "stat").read_text().rsplit(")", 1)[1].split()[0]
                files = [str(f.readlink()) for f in (folder / "fd").iterdir()]
            except OSError:
                continue
            if state != "Z" and os.fsencode(store) in environment and any(str(store / "locks") in f for f in files):
                found.append(int(folder.name))
    return found


def _until(true: Callable[[], object], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it never came true"
        time.sleep(0.05)


def test_ctrl_c_stops_in_order_and_says_how_to_go_on(tiny: Path, finished_slower: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    process = begin("run", str(tiny), *SLOWER, "--store", str(store), store=tmp_path / "unused")
    wait_for(process, "started   finetune under")
    _until(
        lambda: sum('"progress"' in f.read_text() for f in store.glob("artifacts/finetune/*/attempts/*/log.jsonl")) == 2
    )
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    program, *again = shlex.split(err.rpartition("To go on: ")[2])
    assert program == "expunge"
    assert not _processes_of(store)
    done = finished_steps(store)
    stopped = [f for f in store.glob("artifacts/finetune/*") if f.relative_to(store).as_posix() not in done]
    assert stopped, "the signal met no fine-tune at work"
    for folder in stopped:
        (end,) = folder.glob("attempts/*/end.json")
        assert '"exit_code":143' in end.read_text()
    counts = attempts(store)
    assert command(*again, store=tmp_path / "unused").returncode == 0
    assert {d: attempts(store)[d] for d in done} == {d: counts[d] for d in done}
    assert weights(store) == weights(finished_slower)
    for folder in stopped:
        resumed = [r for f in folder.glob("attempts/*/log.jsonl") if (r := resumed_at(f)) is not None]
        assert len(resumed) == 1 and resumed[0] > 0, "it went on from the checkpoint that SIGTERM made"
    assert not list(store.glob("artifacts/*/*/attempts/*/checkpoints")), "checkpoints go when the step is done"


def test_ctrl_c_twice_stops_at_once(tiny: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    process = begin("run", str(tiny), *SLOWER, "--set", "memorize.epochs=4000", store=store)
    wait_for(process, "started   memorize")
    process.send_signal(signal.SIGINT)
    wait_for(process, "stopping")  # two signals that are both pending are one
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=10)
    assert process.returncode == 130
    _until(lambda: not _processes_of(store))  # steps die with their runner


def test_two_runners_on_one_store_share_the_work(tiny: Path, finished: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    runs = [begin("run", str(tiny), store=store) for _ in range(2)]
    outputs = [r.communicate() for r in runs]
    assert [r.returncode for r in runs] == [0, 0], outputs
    assert set(attempts(store).values()) == {1}, "no step twice"
    assert weights(store) == weights(finished)


def test_a_step_that_is_killed_is_tried_again(tiny: Path, finished_slower: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    process = begin("run", str(tiny), *SLOWER, store=store)
    wait_for(process, "started   memorize")
    _until(lambda: list(store.glob("artifacts/memorize/*/attempts/*.json")))
    (pid,) = _step_pids(store)
    os.killpg(pid, signal.SIGKILL)
    err = wait_for(process, "retrying")
    assert "killed by SIGKILL" in err
    assert "lower memorize.batch_size" in err
    process.communicate()
    assert process.returncode == 0
    (end,) = store.glob("artifacts/memorize/*/attempts/*/end.json")
    assert '"signal":"SIGKILL"' in end.read_text()
    assert weights(store) == weights(finished_slower)


def _step_pids(store: Path) -> list[int]:
    """The pids that the newest attempts wrote into their records."""
    import json

    return [json.loads(f.read_text())["pid"] for f in store.glob("artifacts/memorize/*/attempts/*.json")]
