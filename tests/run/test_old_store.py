"""A store that release 0.1 wrote is read by this code: no name, key or layout has changed without being noticed.

``of-0.1/`` has the store of a tiny experiment, the experiment's file, and what `results` and `status` printed of it
then.
"""

from __future__ import annotations

import tarfile
from pathlib import Path

import pytest

from tests.support.runs import attempts, command

THEN = Path(__file__).parent / "of-0.1"
FILE = str(THEN / "experiment.yaml")


@pytest.fixture
def store(tmp_path: Path) -> Path:
    with tarfile.open(THEN / "store.tar.gz") as archive:
        archive.extractall(tmp_path, filter="data")
    return tmp_path / "store"


@pytest.mark.parametrize("verb", ["results", "status"])
def test_it_says_what_it_said_then(store: Path, verb: str) -> None:
    done = command(verb, FILE, store=store)
    assert done.returncode == 0, done.stderr
    assert scores(done.stdout) == scores((THEN / f"{verb}.txt").read_text())


def test_nothing_of_it_runs_again_and_it_gets_a_report(store: Path) -> None:
    before = attempts(store)
    files = kept(store)
    done = command("run", FILE, store=store)
    assert done.returncode == 0, done.stderr
    assert scores(done.stdout) == scores((THEN / "results.txt").read_text())
    assert {k: n for k, n in attempts(store).items() if not k.startswith("artifacts/report/")} == before
    assert kept(store) == files
    assert "One seed cannot tell" in done.stdout


def kept(store: Path) -> list[Path]:
    """Every file of an artifact; release 0.1 made no report on one machine."""
    return sorted(f for f in store.glob("artifacts/**/*") if f.is_file() and "report" not in f.parts)


def scores(text: str) -> list[list[str]]:
    """The table's cells. The mark of the best single run, the legend and the words below it are each release's own."""
    table = text.partition("\n\n")[0]
    cells = [[cell for cell in line.split() if cell != "*"] for line in table.splitlines()]
    return [line for line in cells if "report" not in line]


def test_its_merge_is_pulled(store: Path, tmp_path: Path) -> None:
    given = ("--trial", "merge.density=0.5", "--to", str(tmp_path / "adapter"))
    assert command("pull", FILE, *given, store=store).returncode == 0
    assert sorted(f.name for f in (tmp_path / "adapter").iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    full = ("--trial", "merge.density=0.5", "--to", str(tmp_path / "model"), "--full")
    done = command("pull", FILE, *full, store=store)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "model" / "model.safetensors").is_file()
