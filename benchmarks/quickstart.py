"""The quickstart for several seeds (data, memorize and unlearning alike), with single fine-tunes as rivals.

    python benchmarks/quickstart.py 0 1 2 3 4 [--store DIR]

Prints, as Markdown, every model's task aggregate by seed with its mean, how often the merge was above both specialists,
and the seconds of each step with its share of the whole (imports included).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml

QUICKSTART = Path(__file__).parents[1] / "examples" / "quickstart.yaml"


def rivals() -> str:
    """As baselines: over's fine-tune at three learning rates between the specialists', at a gentler one, and with a
    beta and rate between over's and under's, the best that is known here.
    """
    specialists = yaml.safe_load(QUICKSTART.read_text())["spec"]["specialists"]
    low, high = sorted(float(s["learning_rate"]) for s in specialists.values())
    over = specialists["over"]
    between = {**over["objective"], "npo": {**over["objective"]["npo"], "beta": 1.0}}
    models = {
        f"single-{rate * 1e5:.0f}e-5": {**over, "learning_rate": rate}
        for rate in (6.5e-4, *(low + (high - low) * share for share in (0.25, 0.5, 0.75)))
    }
    models["single-beta-1"] = {**over, "objective": between, "learning_rate": 8e-4}
    return "baselines=" + json.dumps(models)


def run(seed: int, store: str) -> tuple[dict[str, dict[str, float]], dict[str, float], float]:
    """Figures by model, seconds by step, seconds in all."""
    words = [f"data.seed={seed}", f"memorize.seed={seed}", f"seed={seed}", rivals()]
    given = [str(QUICKSTART), "--store", store, *(w for s in words for w in ("--set", s))]
    start = time.perf_counter()
    subprocess.run([sys.executable, "-m", "expunge_controller", "run", *given], check=True, stdout=subprocess.DEVNULL)
    whole = time.perf_counter() - start

    def ask(verb: str) -> Any:
        done = subprocess.run(
            [sys.executable, "-m", "expunge_controller", verb, *given, "-o", "json"], check=True, capture_output=True
        )
        return json.loads(done.stdout)

    seconds = {}
    for step in ask("plan")["steps"]:
        manifest = json.loads(Path(store, "artifacts", step["kind"], step["key"], "manifest.json").read_text())
        took = datetime.fromisoformat(manifest["ended"]) - datetime.fromisoformat(manifest["started"])
        seconds[step["name"]] = took.total_seconds()
    return {m["model"]: m["metrics"] for m in ask("results")["models"]}, seconds, whole


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("seeds", type=int, nargs="+")
    parser.add_argument("--store", default=None)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        results = {s: run(s, arguments.store or folder) for s in arguments.seeds}
    models = list(results[arguments.seeds[0]][0])
    print(f"| task aggregate | {' | '.join(f'seed {s}' for s in results)} | mean |")
    print("|---" * (len(results) + 2) + "|")
    for model in models:
        values = [results[s][0][model]["task_aggregate"] for s in results]
        print(f"| {model} | {' | '.join(f'{v:.3f}' for v in values)} | {statistics.mean(values):.3f} |")
    above = sum(
        figures["merged"]["task_aggregate"] > max(figures[m]["task_aggregate"] for m in ("over", "under"))
        for figures, _, _ in results.values()
    )
    print(f"\nThe merge is above both specialists on {above} of {len(results)} seeds.\n")
    by_kind: dict[str, float] = defaultdict(float)
    for _, seconds, _ in results.values():
        for name, value in seconds.items():
            by_kind[name.split()[0]] += value / len(results)
    whole = statistics.mean(w for _, _, w in results.values())
    print(
        f"| step | seconds in all (mean over seeds; {os.cpu_count()} cores, rivals included) | to the whole run |\n|---|---|---|"
    )
    for kind, value in by_kind.items():
        print(f"| {kind} | {value:.1f} | {value / whole:.2f} |")
    print(f"| the whole run | {whole:.1f} | 1.00 |")


if __name__ == "__main__":
    main()
