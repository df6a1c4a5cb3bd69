"""The example package of plugins: installed as others are, run by the command, its own tests passed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.runs import command

EXAMPLE = Path(__file__).parents[2] / "examples" / "plugin"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Holds the package, installed."""
    folder = tmp_path_factory.mktemp("site")
    uv = Path(sys.executable).parent / "uv"
    words = ["pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--target", str(folder), str(EXAMPLE)]
    subprocess.run([uv, *words, "--python", sys.executable], check=True)
    return folder


@pytest.fixture
def installed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The package is found by every process that a test starts."""
    monkeypatch.setenv("PYTHONPATH", str(folder), prepend=os.pathsep)


def test_its_own_tests_pass(installed: None) -> None:
    words = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(EXAMPLE / "tests")]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert "6 passed" in done.stdout


def test_an_experiment_of_its_plugins_runs_to_its_table(installed: None, tmp_path: Path) -> None:
    store = tmp_path / "store"
    done = command("run", str(EXAMPLE / "experiment.yaml"), store=store)
    assert done.returncode == 0, done.stderr
    assert "length F  length R" in done.stdout.splitlines()[0]
    told = json.loads(command("results", str(EXAMPLE / "experiment.yaml"), "-o", "json", store=store).stdout)
    merged = next(m for m in told["models"] if m["model"] == "merged")
    assert merged["metrics"]["answer_length/forget"] > 0
    (merge,) = store.glob("artifacts/merge/*/manifest.json")
    receipt = json.loads(merge.read_text())
    assert receipt["task"]["plugins"] == {"merge_methods/expunge-example:delta_mean": 1}
    assert receipt["task"]["parameters"] == {"largest": 0.5}
    assert 0 <= receipt["figures"]["svd_error"] < 1e-5, "a mean of ranks 8 and 4 has rank 12 at most"
    for file in store.glob("artifacts/evaluate/*/attempts/*/rows.jsonl"):
        assert not any("reference" in json.loads(line) for line in file.read_text().splitlines())


def test_without_the_package_its_name_is_unknown(tmp_path: Path) -> None:
    done = command("plan", str(EXAMPLE / "experiment.yaml"), store=tmp_path / "store")
    assert done.returncode == 2
    assert "unknown objective 'simnpo'; one of: " in done.stderr
