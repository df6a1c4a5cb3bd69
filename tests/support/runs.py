"""A whole experiment whose steps take a second, run by the shipped command; a conftest.py imports the fixtures it
wants.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

TINY = """\
apiVersion: expunge.dev/v1alpha1
kind: Experiment
metadata: {name: tiny}
spec:
  memorize:
    architecture: {hidden_size: 32, layers: 1, heads: 2, intermediate_size: 64, vocab_size: 300}
    epochs: 2
  data:
    forget: builtin://people/forget
    retain: builtin://people/retain
    probe: builtin://people/probe
    nonmembers: builtin://people/nonmembers
    documents: 2
  specialists:
    over: {preset: over_code, learning_rate: 1.0e-2, epochs: 2, rank: 4, alpha: 4}
    under: {preset: under_code, learning_rate: 1.0e-2, epochs: 2, rank: 4, alpha: 4}
  merge: {method: ties, density: 0.8}
  evaluate: {max_new_tokens: 4}
"""
SLOWER = ("--set", "memorize.epochs=40", "--set", "specialists.over.epochs=40", "--set", "specialists.under.epochs=40")
"""Steps of a few seconds, so that a signal meets them at work."""


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("experiment") / "tiny.yaml"
    file.write_text(TINY)
    return file


def begin(*words: str, store: Path) -> subprocess.Popen[str]:
    """The command, started; stderr is its plain lines."""
    environment = os.environ | {"EXPUNGE_STORE": str(store)}
    return subprocess.Popen(
        [sys.executable, "-m", "expunge_controller", *words],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def command(*words: str, store: Path) -> subprocess.CompletedProcess[str]:
    """The command, run to its end."""
    process = begin(*words, store=store)
    out, err = process.communicate(timeout=900)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def wait_for(process: subprocess.Popen[str], text: str, seconds: float = 300) -> str:
    """Reads stderr up to the line that holds this text; all of it so far."""
    assert process.stderr is not None
    seen = ""
    end = threading.Timer(seconds, process.kill)
    end.start()
    try:
        for line in process.stderr:
            seen += line
            if text in line:
                return seen
    finally:
        end.cancel()
    raise AssertionError(f"'{text}' never came:\n{seen}")


def weights(store: Path) -> dict[str, str]:
    """SHA-256 by kind, key and file, as the manifests have them.

    A report's key holds the namespace and the file's words. In its place stands what it says.
    """
    out = {}
    for file in store.glob("artifacts/*/*/manifest.json"):
        manifest = json.loads(file.read_text())
        for part in manifest["files"]:
            key = part["sha256"] if manifest["kind"] == "report" else manifest["key"]
            out[f"{manifest['kind']}/{key}/{part['path']}"] = part["sha256"]
    return out


def attempts(store: Path) -> dict[str, int]:
    """Attempt records by the step's folder."""
    counts: dict[str, int] = {}
    for record in store.glob("artifacts/*/*/attempts/*.json"):
        folder = record.parent.parent.relative_to(store).as_posix()
        counts[folder] = counts.get(folder, 0) + 1
    return counts


def resumed_at(log: Path) -> int | None:
    """The step from which the attempt of this log went on, if it did not begin at the start."""
    events = [json.loads(line) for line in log.read_text().splitlines() if line.startswith("{") and line.endswith("}")]
    return next((e["step"] for e in events if e["event"] == "resumed"), None)


def finished_steps(store: Path) -> set[str]:
    """Folders of steps whose artifact is whole."""
    return {f.parent.relative_to(store).as_posix() for f in store.glob("artifacts/*/*/manifest.json")}


@pytest.fixture(scope="session")
def finished(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The store of an undisturbed run."""
    store = tmp_path_factory.mktemp("run") / "store"
    done = command("run", str(tiny), store=store)
    assert done.returncode == 0, done.stderr
    return store


@pytest.fixture(scope="session")
def finished_slower(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with ``SLOWER``."""
    store = tmp_path_factory.mktemp("slower") / "store"
    done = command("run", str(tiny), *SLOWER, store=store)
    assert done.returncode == 0, done.stderr
    return store
