"""A whole experiment whose steps take a second, run by the shipped command."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
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

Command = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("experiment") / "tiny.yaml"
    file.write_text(TINY)
    return file


def command(*words: str, store: Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"EXPUNGE_STORE": str(store)}
    return subprocess.run(
        [sys.executable, "-m", "expunge_controller", *words],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="session")
def finished(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The store of an undisturbed run."""
    store = tmp_path_factory.mktemp("run") / "store"
    done = command("run", str(tiny), store=store)
    assert done.returncode == 0, done.stderr
    return store
