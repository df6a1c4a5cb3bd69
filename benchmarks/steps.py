"""What the runner costs, on steps of a second.

The gap: from a step's manifest to the attempt record of the step that waited for it, both as the steps wrote them;
against the time in which this machine starts a bare Python. The overhead: `expunge run` against the same tasks by hand,
`python -m expunge_jobs` one after the other (fine-tunes and evaluations two at a time, as the runner has them).
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import datetime
from pathlib import Path

from expunge_controller.experiment.loading import load_experiment
from expunge_controller.planning.plan import Plan, Step
from expunge_controller.planning.resolve import resolve

TINY = [
    "memorize.architecture={hidden_size: 32, layers: 1, heads: 2, intermediate_size: 64, vocab_size: 300}",
    "memorize.epochs=3",
    "data.documents=3",
    "evaluate.max_new_tokens=8",
    "specialists.over.epochs=2",
    "specialists.under.epochs=2",
]
QUICKSTART = Path(__file__).parents[1] / "examples" / "quickstart.yaml"


def tiny_plan() -> Plan:
    return resolve(load_experiment(QUICKSTART, TINY)).plan


def with_runner(store: Path) -> float:
    words = [w for s in TINY for w in ("--set", s)]
    start = time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", "expunge_controller", "run", str(QUICKSTART), "--store", str(store), *words],
        check=True,
        capture_output=True,
    )
    return time.perf_counter() - start


def by_hand(store: Path, plan: Plan) -> float:
    start = time.perf_counter()
    waves = [[s for s in plan.steps if s.kind == kind] for kind in ("memorize", "finetune", "merge", "evaluate")]
    for wave in waves:
        for first in range(0, len(wave), 2):
            running = [begin(s, store) for s in wave[first : first + 2]]
            assert all(p.wait() == 0 for p in running)
    return time.perf_counter() - start


def begin(step: Step, store: Path) -> subprocess.Popen[bytes]:
    threads = str(os.cpu_count() if step.kind == "memorize" else 1)
    environment = os.environ | {
        "EXPUNGE_TASK": step.task.to_json(),
        "EXPUNGE_STORE": str(store),
        "EXPUNGE_THREADS": threads,
    }
    return subprocess.Popen([sys.executable, "-m", "expunge_jobs"], env=environment, stdout=subprocess.DEVNULL)


def gaps(store: Path, plan: Plan) -> list[float]:
    """Seconds, of every step that started when the last of its needs had ended (others waited for a free core)."""
    ended, started = {}, {}
    for step in plan.steps:
        folder = store / "artifacts" / step.kind / step.key
        manifest = json.loads((folder / "manifest.json").read_text())
        ended[step.key] = datetime.fromisoformat(manifest["ended"])
        started[step.key] = min(
            datetime.fromisoformat(json.loads(f.read_text())["started"]) for f in (folder / "attempts").glob("*.json")
        )
    out = []
    for step in plan.steps:
        if step.kind in ("finetune", "merge"):
            out.append((started[step.key] - max(ended[n] for n in step.needs)).total_seconds())
    return out


def main() -> None:
    plan = tiny_plan()
    with tempfile.TemporaryDirectory() as folder:
        runner = with_runner(Path(folder, "runner"))
        found = gaps(Path(folder, "runner"), plan)
        hand = by_hand(Path(folder, "hand"), plan)
    start = time.perf_counter()
    for _ in range(10):
        subprocess.run([sys.executable, "-c", "pass"], check=True)
    bare = (time.perf_counter() - start) / 10
    gap = statistics.median(found)
    print(
        f"gap between steps: median {gap * 1000:.0f} ms, largest {max(found) * 1000:.0f} ms; "
        f"a bare Python starts in {bare * 1000:.0f} ms: ratio {gap / bare:.1f} (aim: under 50 ms)"
    )
    print(f"{len(plan.steps)} steps: by the runner {runner:.1f} s, by hand {hand:.1f} s: ratio {runner / hand:.2f}")


if __name__ == "__main__":
    main()
