"""The quickstart over several seeds (data, memorize and unlearning alike), with a gentler fine-tune as one more rival.

    python benchmarks/quickstart.py 0 1 2 3 4 [--store DIR]

Prints, as Markdown, every model's task aggregate by seed with its mean, how often the merge was above both specialists,
the merge beside each rival at its best, and the seconds of each kind of step with their share of the whole.
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


def gentler() -> str:
    """over's fine-tune at a gentler rate, as a baseline."""
    over = yaml.safe_load(QUICKSTART.read_text())["spec"]["specialists"]["over"]
    return "baselines.gentler=" + json.dumps({**over, "learning_rate": 6.5e-4})


def run(seeds: list[int], store: str) -> tuple[Any, dict[str, float], float]:
    """Results, seconds by kind of step, and seconds in all."""
    swept = f"sweep.seed & data.seed & memorize.seed={seeds}"
    given = [str(QUICKSTART), "--store", store, "--set", swept, "--set", gentler()]
    start = time.perf_counter()
    subprocess.run([sys.executable, "-m", "expunge_controller", "run", *given], check=True, stdout=subprocess.DEVNULL)
    whole = time.perf_counter() - start

    def ask(verb: str) -> Any:
        done = subprocess.run(
            [sys.executable, "-m", "expunge_controller", verb, *given, "-o", "json"], check=True, capture_output=True
        )
        return json.loads(done.stdout)

    seconds: dict[str, float] = defaultdict(float)
    for step in ask("plan")["steps"]:
        manifest = json.loads(Path(store, "artifacts", step["kind"], step["key"], "manifest.json").read_text())
        took = datetime.fromisoformat(manifest["ended"]) - datetime.fromisoformat(manifest["started"])
        seconds[step["kind"]] += took.total_seconds()
    return ask("results"), seconds, whole


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("seeds", type=int, nargs="+")
    parser.add_argument("--store", default=None)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        results, seconds, whole = run(arguments.seeds, arguments.store or folder)
    by_model: dict[str, dict[int, float]] = defaultdict(dict)
    for found in results["models"]:
        by_model[found["model"]][found["seed"]] = found["metrics"]["task_aggregate"]
    print(f"| | {' | '.join(map(str, arguments.seeds))} | mean |")
    print("|---" * (len(arguments.seeds) + 2) + "|")
    for model, by_seed in by_model.items():
        values = [by_seed[s] for s in arguments.seeds]
        print(f"| {model} | {' | '.join(f'{v:.3f}' for v in values)} | {statistics.mean(values):.3f} |")
    above = sum(by_model["merged"][s] > max(by_model[m][s] for m in ("over", "under")) for s in arguments.seeds)
    print(f"\nThe merge is above both specialists on {above} of {len(arguments.seeds)} seeds.\n")
    print("| rival | chosen | its aggregate | merge minus rival | over seeds | over documents | outcome |")
    print("|---" * 7 + "|")
    for c in results["comparisons"]:
        shown = [
            f"[{c[k]['low']:+.3f}, {c[k]['high']:+.3f}]" if c[k]["low"] is not None else "-"
            for k in ("seeds", "documents")
        ]
        print(
            f"| {c['rival']} | {', '.join(c['chosen'])} | {c['best']:.3f} | {c['seeds']['mean']:+.3f} | "
            f"{' | '.join(shown)} | {c['outcome']} |"
        )
    each = whole / len(arguments.seeds)
    print(f"\n| step | seconds a seed ({os.cpu_count()} cores) | to the whole run |\n|---|---|---|")
    for kind, value in seconds.items():
        print(f"| {kind} | {value / len(arguments.seeds):.1f} | {value / whole:.2f} |")
    print(f"| the whole run | {each:.1f} | 1.00 |")


if __name__ == "__main__":
    main()
