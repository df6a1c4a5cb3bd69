"""`expunge plan` of 1,000 trials (100 seeds x 10 densities) against one of a single trial, whole processes."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

QUICKSTART = Path(__file__).parents[1] / "examples" / "quickstart.yaml"
SWEEP = [f"sweep.seed={list(range(100))}", f"sweep.merge.density={[n / 10 for n in range(1, 11)]}"]
RUNS = 3


def plan(store: str, *sets: str) -> tuple[float, int]:
    """Seconds, and the number of steps."""
    words = [w for s in sets for w in ("--set", s)]
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "expunge_controller", "plan", str(QUICKSTART), "--store", store, "-o", "json", *words],
        check=True,
        capture_output=True,
        text=True,
    )
    return time.perf_counter() - start, len(json.loads(done.stdout)["steps"])


def main() -> None:
    with tempfile.TemporaryDirectory() as store:
        one = statistics.median(plan(store)[0] for _ in range(RUNS))
        many, steps = zip(*(plan(store, *SWEEP) for _ in range(RUNS)), strict=True)
    thousand = statistics.median(many)
    print(
        f"1 trial {one:.2f} s; 1,000 trials ({steps[0]:,} steps) {thousand:.2f} s: ratio {thousand / one:.1f}, "
        f"{(thousand - one):.2f} ms a trial more"
    )


if __name__ == "__main__":
    main()
