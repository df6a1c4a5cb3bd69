"""`make cluster-up` and `make cluster-down`, before any other cluster of this level is there."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import demo
from tests.support.toolchain import binary

ROOT = Path(__file__).parents[2]


def made(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tests.support.demo", *words]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)


@pytest.mark.timeout(2400)
def test_up_and_down_and_nothing_else_with_it() -> None:
    if demo.is_held():
        pytest.skip("a cluster of `make cluster-up` is there, and stays")
    other = subprocess.Popen(["sleep", "3000"])
    try:
        up = made("up")
        assert up.returncode == 0, up.stderr
        assert made("up").stdout == up.stdout, "it is there already"
        lines = [shlex.split(line)[1].partition("=") for line in up.stdout.splitlines()]
        environment = os.environ | {name: value for name, _, value in lines}
        kubectl = [str(binary("kubectl")), "get", "--request-timeout=5s"]
        said = subprocess.run(
            [*kubectl, "nodes,deployments"], env=environment, capture_output=True, text=True, check=True
        )
        assert " Ready " in said.stdout
        assert "1/1" in said.stdout, "the operator"
        folder = Path(environment["KUBECONFIG"]).parents[1]
        assert running_for(folder)
        down = made("down")
        assert down.returncode == 0, down.stderr
        assert subprocess.run([*kubectl, "nodes"], env=environment, capture_output=True, check=False).returncode != 0
        assert running_for(folder) == []
        assert not folder.exists()
        assert other.poll() is None
        assert "no cluster" in made("down").stderr
    finally:
        made("down")
        other.kill()
        other.wait()


def running_for(folder: Path) -> list[str]:
    """Command lines of processes that name this folder."""
    out = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            place = str((process / "cwd").readlink())
        except OSError:  # it has just ended
            continue
        if str(folder) in words or place.startswith(str(folder)):
            out.append(words)
    return out
