"""The quickstart shows what the method is for, on seeds that it was not tuned on (0 to 4); killed, it comes out the
same.
"""

from __future__ import annotations

import json
import random
import time
from pathlib import Path
from typing import Any

import pytest

from tests.support.runs import attempts, begin, command, finished_steps, wait_for, weights

QUICKSTART = str(Path(__file__).parents[2] / "examples" / "quickstart.yaml")
SEEDS = range(5)


def _words(seed: int) -> list[str]:
    return [w for f in ("data.seed", "memorize.seed", "seed") for w in ("--set", f"{f}={seed}")]


def _figures(seed: int, store: Path) -> dict[str, dict[str, Any]]:
    done = command("results", QUICKSTART, *_words(seed), "-o", "json", store=store)
    assert done.returncode == 0, done.stderr
    return {m["model"]: m["metrics"] for m in json.loads(done.stdout)["models"]}


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """A store for each seed, with the finished quickstart in it."""
    folder = tmp_path_factory.mktemp("quickstart")
    for seed in SEEDS:
        done = command("run", QUICKSTART, *_words(seed), store=folder / str(seed))
        assert done.returncode == 0, done.stderr
    return {seed: folder / str(seed) for seed in SEEDS}


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_the_merge_is_above_both_specialists_on_most_seeds(
    stores: dict[int, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    scores = {}
    for seed, store in stores.items():
        figures = _figures(seed, store)
        base = figures["base"]
        cells = [v for k, v in base.items() if k.count("/") == 2 and k.split("/")[0] in ("regurgitation", "knowledge")]
        assert len(cells) == 12
        assert min(cells) >= 0.95, "the base knows all that it is to forget and to keep"
        scores[seed] = {name: f["task_aggregate"] for name, f in figures.items()}
        with capsys.disabled():
            print(f"\nseed {seed}: " + ", ".join(f"{k} {v:.3f}" for k, v in scores[seed].items()))
    assert all(s["under"] >= 0.3 for s in scores.values()), "no straw man"
    assert sum(s["merged"] > max(s["over"], s["under"]) for s in scores.values()) >= 4


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_killed_three_times_it_ends_with_the_same_weights_and_scores(
    stores: dict[int, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = tmp_path / "store"
    seed = random.randrange(10**6)
    dice = random.Random(seed)
    for step in ("memorize", "finetune under", "evaluate base"):
        process = begin("run", QUICKSTART, *_words(0), store=store)
        done, before = finished_steps(store), attempts(store)
        wait_for(process, f"started   {step}")
        moment = dice.uniform(0, 5)
        time.sleep(moment)
        process.kill()
        process.communicate()
        after = attempts(store)
        assert {d: before[d] for d in done} == {d: after[d] for d in done}, "a finished step ran again"
        with capsys.disabled():
            print(f"\nkilled {moment:.1f} s after the start of {step} (seed {seed})")
    assert command("run", QUICKSTART, *_words(0), store=store).returncode == 0
    assert weights(store) == weights(stores[0])
    assert _figures(0, store) == _figures(0, stores[0])
