"""`expunge doctor` before a real cluster: what is there, and what is not."""

from __future__ import annotations

import subprocess

import pytest

from tests.support.control_plane import ControlPlane
from tests.support.emulated_node import Node
from tests.support.testsite import Site, until


def examined(done: subprocess.CompletedProcess[str]) -> dict[str, tuple[str, str]]:
    """State and words by what was looked at."""
    out = {}
    for line in done.stdout.splitlines()[1:]:
        state, _, rest = line.strip().partition(" ")
        what, _, words = rest.strip().partition("  ")
        out[what] = (state, words.strip())
    return out


def test_all_is_well(site: Site, node: Node) -> None:
    done = site.command("doctor")
    found = examined(done)
    assert done.returncode == 0, done.stdout
    assert list(found) == ["API server", "permissions", "GPUs", "operator", "store", "Secret", "image"]
    known, words = found.pop("operator")  # another test may have installed the chart's definition
    assert (known == "ok") == ("knows Experiments" in words)
    assert (known == "note") == ("`kubectl apply` needs the chart" in words)
    assert {state for state, _ in found.values()} == {"ok"}
    assert "conditional writes hold; checksums=when_required" in found["store"][1]
    assert f"{node.gpus} nvidia.com/gpu on 1 of 1 nodes" in found["GPUs"][1]
    assert "AWS_SECRET_ACCESS_KEY" in found["Secret"][1]
    assert "test-secret-key" not in done.stdout
    until(lambda: not site.get("pods"))
    assert site.get("jobs") == [], "nothing is left"


def test_each_thing_that_is_missing_is_named(site: Site) -> None:
    done = site.command("doctor", "--secret", "none", "--image", "registry.test/missing:1", "--store", "s3://nowhere/x")
    found = examined(done)
    assert done.returncode == 1
    assert found["store"][0] == "FAIL"
    assert "no such bucket" in found["store"][1]
    assert found["Secret"] == ("FAIL", 'secrets "none" not found')
    assert found["image"][0] == "FAIL"
    assert "ImagePullBackOff" in found["image"][1]


def test_a_user_who_may_not(site: Site, plane: ControlPlane) -> None:
    site.environment["KUBECONFIG"] = str(plane.kubeconfig_of("somebody"))
    done = site.command("doctor")
    found = examined(done)
    assert done.returncode == 1
    assert found["permissions"][0] == "FAIL"
    assert "may not create jobs, get jobs" in found["permissions"][1]
    assert found["GPUs"][0] == "note"
    run = site.command("run")
    assert run.returncode == 2
    assert 'User "somebody" cannot list resource "jobs"' in run.stderr


@pytest.mark.parametrize("words", [["--context", "nowhere"], []])
def test_no_cluster(site: Site, words: list[str]) -> None:
    site.environment["KUBECONFIG"] = "/nonexistent"
    site.environment["HOME"] = "/nonexistent"
    done = site.command("doctor", *words)
    assert done.returncode == 2
    assert done.stderr.startswith("error: no ")
    assert "Traceback" not in done.stderr
