"""A store that release 0.1 wrote is read by this code: no name, key or layout has changed without being noticed.

``of-0.1/`` has the store of a tiny experiment, the experiment's file, and what `results` printed of it then.
"""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import pytest

from tests.support.runs import command

THEN = Path(__file__).parent / "of-0.1"
FILE = str(THEN / "experiment.yaml")


@pytest.fixture
def store(tmp_path: Path) -> Path:
    with tarfile.open(THEN / "store.tar.gz") as archive:
        archive.extractall(tmp_path, filter="data")
    return tmp_path / "store"


DIGEST = "86d7deec7224"


def test_it_says_what_it_said_then(store: Path) -> None:
    done = command("results", FILE, "--digest", DIGEST, store=store)
    assert done.returncode == 0, done.stderr
    assert scores(done.stdout) == scores((THEN / "results.txt").read_text())
    done = command("results", FILE, "--digest", "abc", store=store)
    assert done.returncode == 2
    (record,) = (store / "experiments" / "local" / "tiny").glob("*.json")
    (record.parent / ("86" + "0" * 62 + ".json")).write_text("[1]")  # no record of ours
    assert scores(command("results", FILE, "--digest", "86", store=store).stdout) == scores(
        (THEN / "results.txt").read_text()
    )
    assert "--digest abc: " in done.stderr and f"has no such record of this file; its records: {DIGEST}" in done.stderr


def test_what_this_code_makes_otherwise_is_made_anew_beside_it(store: Path) -> None:
    """memorize, finetune and evaluate have other versions; nothing of the old artifacts is touched."""
    before = kept(store)
    planned = json.loads(command("plan", FILE, "-o", "json", store=store).stdout)
    assert {s["kind"] for s in planned["steps"] if s["state"] == "done"} == set()
    done = command("run", FILE, store=store)
    assert done.returncode == 0, done.stderr
    assert set(before) < set(kept(store))
    assert scores(command("results", FILE, "--digest", DIGEST, store=store).stdout) == scores(
        (THEN / "results.txt").read_text()
    )


def kept(store: Path) -> list[Path]:
    """Every file of an artifact."""
    return sorted(f for f in store.glob("artifacts/**/*") if f.is_file())


def scores(text: str) -> list[list[str]]:
    """The table's cells. The mark of the best single run, the legend and the words below it are each release's own.

    A model that never saw forget has a block of its own today. Its cells are the same.
    """
    table = text.partition("\nF: forget")[0]
    cells = [[cell for cell in line.split() if cell != "*"] for line in table.splitlines()]
    return sorted(
        line for line in cells if len(line) > 10 and line[-1][0].isdigit() and line[1:4] != ["is", "off", "by"]
    )


def test_its_merge_is_pulled(store: Path, tmp_path: Path) -> None:
    given = ("--digest", DIGEST, "--trial", "merge.density=0.5", "--to", str(tmp_path / "adapter"))
    assert command("pull", FILE, *given, store=store).returncode == 0
    assert sorted(f.name for f in (tmp_path / "adapter").iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    full = ("--digest", DIGEST, "--trial", "merge.density=0.5", "--to", str(tmp_path / "model"), "--full")
    done = command("pull", FILE, *full, store=store)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "model" / "model.safetensors").is_file()
