"""SIGKILL at twenty random moments: the run ends as an undisturbed one, and no finished step runs again."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from tests.support.runs import SLOWER, attempts, begin, command, finished_steps, resumed_at, wait_for, weights

# The step whose start is waited for, how often, and the longest wait after it in seconds ("publish": until it
# publishes).
TARGETS: list[tuple[str, float | str]] = [
    *[("memorize", 2.0)] * 4,
    ("memorize", "publish"),
    *[("finetune over", 2.0)] * 3,
    *[("finetune under", 2.0)] * 2,
    ("finetune over", "publish"),
    ("finetune under", "publish"),
    *[("merge", 0.1)] * 3,
    ("merge", "publish"),
    *[("evaluate base", 1.0)],
    *[("evaluate over", 1.0)],
    ("evaluate merged", 1.0),
    ("evaluate merged", "publish"),
]


def _last_event(store: Path, kind: str) -> str:
    logs = sorted(store.glob(f"artifacts/{kind}/*/attempts/*/log.jsonl"), key=lambda f: f.stat().st_mtime)
    text = logs[-1].read_text() if logs else ""
    lines = text[: text.rfind("\n") + 1].splitlines()  # the last may be half written
    event = json.loads(lines[-1]) if lines else {"event": "nothing yet"}
    return f"{event['event']} {event.get('step', '')}".strip()


def _kill(
    process: subprocess.Popen[str], store: Path, step: str, moment: float | str, dice: random.Random
) -> str | None:
    """Where the kill fell: the step's last event; None if the step was done before this run."""
    try:
        wait_for(process, f"started   {step}")
    except AssertionError:
        process.communicate()
        return None
    kind = step.split()[0]
    if moment == "publish":
        until = time.monotonic() + 60
        while _last_event(store, kind) != "publish" and time.monotonic() < until and process.poll() is None:
            time.sleep(0.001)
    else:
        time.sleep(dice.uniform(0, float(moment)))
    process.kill()
    process.communicate()
    return _last_event(store, kind)


@pytest.mark.timeout(3000)  # twenty runs and more
def test_twenty_kills(
    tiny: Path,
    finished_slower: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert len(TARGETS) == 20
    monkeypatch.setenv("EXPUNGE_CHECKPOINT_SECONDS", "0.2")
    seed = random.randrange(10**6)
    dice = random.Random(seed)
    store = tmp_path / "store"
    told = [f"kills with seed {seed}:"]
    for number, (step, moment) in enumerate(TARGETS, 1):
        where = None
        while where is None:
            process = begin("run", str(tiny), *SLOWER, store=store)
            done = finished_steps(store)
            before = attempts(store)
            where = _kill(process, store, step, moment, dice)
            after = attempts(store)
            assert {d: before[d] for d in done} == {d: after[d] for d in done}, "a finished step ran again"
            if where is None:
                # The kill before fell between the step's publishing and its end, so this run went through: begin anew.
                assert weights(store) == weights(finished_slower)
                _forget(store, step)
        told.append(f"  {number}: {step}, {moment}: at {where}")
    assert command("run", str(tiny), *SLOWER, store=store).returncode == 0
    resumed = [r for f in store.glob("artifacts/*/*/attempts/*/log.jsonl") if (r := resumed_at(f)) is not None]
    with capsys.disabled():
        print("\n" + "\n".join(told), f"\n  attempts that went on from a checkpoint, and their step: {resumed}")
    assert resumed and min(resumed) > 0
    assert weights(store) == weights(finished_slower)
    assert not list(store.glob("work/*")), "a killed step's work folder stayed"


def _forget(store: Path, step: str) -> None:
    """Removes the artifacts of this kind and of those after it."""
    kinds = ["memorize", "finetune", "merge", "evaluate"]
    for kind in kinds[kinds.index(step.split()[0]) :]:
        shutil.rmtree(store / "artifacts" / kind)
