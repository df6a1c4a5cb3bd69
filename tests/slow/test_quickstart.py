"""The quickstart shows what the method is for, on seeds that it was not tuned on (0 to 4): no seed picked by hand."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

QUICKSTART = Path(__file__).parents[2] / "examples" / "quickstart.yaml"


def _figures(seed: int, store: Path) -> dict[str, dict[str, Any]]:
    words = [str(QUICKSTART), "--store", str(store)]
    for field in ("data.seed", "memorize.seed", "seed"):
        words += ["--set", f"{field}={seed}"]
    for verb in (["run"], ["results", "-o", "json"]):
        done = subprocess.run(
            [sys.executable, "-m", "expunge_controller", verb[0], *words, *verb[1:]],
            capture_output=True, text=True, check=False, env={**os.environ},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
    return {m["model"]: m["metrics"] for m in json.loads(done.stdout)["models"]}


@pytest.mark.slow
def test_the_merge_is_above_both_specialists_on_most_seeds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    above = 0
    for seed in range(5):
        figures = _figures(seed, tmp_path / "store")
        base = figures["base"]
        cells = [v for k, v in base.items() if k.count("/") == 2 and k.split("/")[0] in ("regurgitation", "knowledge")]
        assert len(cells) == 12
        assert min(cells) >= 0.95, "the base knows what it is to forget and to keep"
        scores = {name: f["task_aggregate"] for name, f in figures.items()}
        with capsys.disabled():
            print(f"\nseed {seed}: " + ", ".join(f"{k} {v:.3f}" for k, v in scores.items()))
        assert scores["under"] >= 0.3, "no straw man"
        above += scores["merged"] > max(scores["over"], scores["under"])
    assert above >= 4
