"""`expunge --help` against `python -c pass`: median of 15 runs each, taken in turn."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

RUNS = 15


def seconds(*words: str) -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, *words], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def main() -> None:
    bare, helped = [], []
    for _ in range(RUNS):
        bare.append(seconds("-c", "pass"))
        helped.append(seconds("-m", "expunge_controller", "--help"))
    a, b = statistics.median(bare), statistics.median(helped)
    print(f"python -c pass {a * 1000:.0f} ms, expunge --help {b * 1000:.0f} ms: ratio {b / a:.1f} (aim: under 10)")


if __name__ == "__main__":
    main()
