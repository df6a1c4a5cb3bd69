"""What one user of a cluster cannot take from it or break in it, before the shipped operator in its image's
environment.
"""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from expunge_jobs.store import open_store

from tests.support.control_plane import ControlPlane
from tests.support.faults import FaultProxy, silent
from tests.support.hub_server import COMMIT, Hub
from tests.support.operating import Operating, apply, events, experiment, install_definition, status, wait_until
from tests.support.s3server import BUCKET, S3Server
from tests.support.testsite import Site, until


@pytest.fixture(scope="module", autouse=True)
def definition(plane: ControlPlane) -> None:
    install_definition(plane)


@pytest.fixture
def proxy(server: S3Server) -> Iterator[FaultProxy]:
    proxy = FaultProxy(server.url)
    yield proxy
    proxy.close()


def begun(site: Site, request: pytest.FixtureRequest, *options: str) -> Operating:
    operating = Operating(site, *options)
    request.addfinalizer(operating.close)
    operating.begin()
    return operating


def condition(site: Site, name: str) -> str:
    """The message of an Experiment's first condition; empty before it has one."""
    return str(status(site, name).get("conditions", [{"message": ""}])[0]["message"])


def memory(operating: Operating) -> int:
    """The most that the operator has taken so far, in MiB."""
    assert operating.process is not None
    found = re.findall(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{operating.process.pid}/status").read_text())
    return int(found[0]) // 1024


def test_a_sweep_that_is_too_large_is_refused_before_it_is_built(site: Site, request: pytest.FixtureRequest) -> None:
    operating = begun(site, request)
    sweep = {"seed": list(range(1024)), "data.seed": list(range(1024))}
    apply(site, experiment(site, "bomb", sweep=sweep, suspend=True))
    found = wait_until(site, "Invalid", "bomb", 30)
    assert "1,048,576 trials (1024 x 1024); allowed: at most 5,000" in condition(site, "bomb")
    assert {c["type"]: c["status"] for c in found["conditions"]}["Failed"] == "True"
    controls = [round((n + 1) / 1001, 6) for n in range(1000)]
    spec: dict[str, Any] = {"sweep": {"seed": list(range(100))}, "evaluate": {"controls": controls}}
    apply(site, experiment(site, "models", suspend=True, **spec))
    wait_until(site, "Invalid", "models", 60)
    assert "models to judge, over all trials; allowed: at most 100,000" in condition(site, "models")
    assert memory(operating) < 300
    assert not site.get("jobs")


def test_rows_that_are_too_many_are_refused_before_they_are_read(
    site: Site, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    operating = begun(site, request, "--max-input", "64Mi")
    store = open_store(f"{site.store}?endpoint_url={site.server.url}")
    with (tmp_path / "big").open("wb") as file:
        file.truncate(250 * 2**20)
    store.put_file("big.jsonl", tmp_path / "big")
    data = experiment(site)["spec"]["data"]
    apply(site, experiment(site, "big", data=data | {"retain": f"{site.store}/big.jsonl"}))
    wait_until(site, "Invalid", "big", 30)
    said = condition(site, "big")
    assert "spec.data.retain" in said
    assert "262,144,000 bytes; at most" in said
    assert "limits.inputSize" in said
    assert memory(operating) < 300


def test_an_object_that_is_too_large_is_not_read_whole(site: Site, request: pytest.FixtureRequest) -> None:
    apply(site, experiment(site, suspend=True))
    operating = begun(site, request)
    wait_until(site, "Suspended")
    operating.close()
    store = open_store(f"{site.store}?endpoint_url={site.server.url}")
    store.put(f"experiments/{site.namespace}/tiny/{status(site)['digest']}.json", bytes(2**20))
    begun(site, request, "--max-object", "64Ki")
    until(lambda: "1,048,576 bytes; at most 65,536 are read here" in condition(site, "tiny"), 30)


def test_what_ended_the_operator_twice_is_held(
    site: Site, request: pytest.FixtureRequest, proxy: FaultProxy, tmp_path: Path
) -> None:
    """An input that is never answered keeps its beginning under way, so that a kill meets it there."""
    dead = f"s3://{BUCKET}/dead"
    proxy.inject(silent(600), lambda r: "/dead/" in r.path, times=10_000)
    site.environment["AWS_ENDPOINT_URL_S3"] = proxy.url
    state = tmp_path / "state"
    operating = begun(site, request, "--allow-input", "{store}", "--allow-input", dead, "--state", str(state))
    data = experiment(site)["spec"]["data"]
    hole = experiment(site, "hole", data=data | {"forget": f"{dead}/a.jsonl"})
    apply(site, hole)
    for count in (1, 2):
        until(lambda: any(f'"begun": {count}' in f.read_text() for f in state.glob("*.json")), 60)  # noqa: B023
        operating.end(signal.SIGKILL)
        operating.begin()
    found = wait_until(site, "Held", "hole", 60)
    assert "the operator ended 2 times in a row while it began this experiment" in condition(site, "hole")
    assert {c["type"]: c["status"] for c in found["conditions"]} == {
        "Complete": "False",
        "Failed": "True",
        "Progressing": "False",
    }
    assert "Held" in dict(events(site, "hole"))
    apply(site, experiment(site, "good", suspend=True))
    wait_until(site, "Suspended", "good", 60)
    operating.end(signal.SIGTERM)
    operating.begin()
    assert status(site, "hole")["phase"] == "Held"
    # What releases it: being asked once more, or being made another.
    done = site.on_cluster("retry", "experiment/hole")
    assert done.returncode == 0, done.stderr
    until(lambda: any('"begun": 1' in f.read_text() for f in state.glob("*.json")), 60)
    apply(site, experiment(site, "hole", suspend=True))
    wait_until(site, "Suspended", "hole", 60)
    until(lambda: not list(state.iterdir()), 60)


def deep(site: Site, name: str) -> str:
    """An Experiment that the API server takes, and Python's JSON does not read."""
    given = experiment(site, name, suspend=True, sweep={"data.seed": ["HERE"]})
    return json.dumps(given).replace('"HERE"', "[" * 1200 + "]" * 1200)


def told(site: Site, name: str) -> str:
    """Phase and message of one that this Python cannot read."""
    form = "jsonpath={.status.phase} {.status.conditions[0].message}"
    return site.plane.kubectl("get", "experiment", name, "-n", site.namespace, "-o", form).strip()


def test_one_that_cannot_be_read_blinds_nobody(site: Site, request: pytest.FixtureRequest) -> None:
    site.plane.kubectl("create", "-f", "-", give=deep(site, "deep"))
    operating = begun(site, request)
    until(lambda: told(site, "deep") == "Invalid spec: nested too deep", 30)
    site.plane.kubectl("create", "-f", "-", give=deep(site, "deeper"))  # told by the watch
    large = experiment(site, "large", suspend=True)
    large["spec"]["data"]["separator"] = "x" * 400_000
    site.plane.kubectl("create", "-f", "-", give=json.dumps(large))
    apply(site, experiment(site, "good", suspend=True))
    wait_until(site, "Suspended", "good", 60)
    until(lambda: told(site, "deeper") == "Invalid spec: nested too deep", 60)
    wait_until(site, "Invalid", "large", 60)
    assert "at most 262,144 are read" in condition(site, "large")
    done = site.on_cluster("list", "experiments")
    assert done.returncode == 0, done.stderr
    assert {line.split()[0] for line in done.stdout.splitlines()[1:]} == {"deep", "deeper", "good", "large"}
    done = site.on_cluster("status", "experiment/deep")
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert operating.answers("/healthz")


def test_the_command_reads_nothing_that_a_stranger_s_experiment_names(
    site: Site, request: pytest.FixtureRequest, tmp_path: Path, proxy: FaultProxy
) -> None:
    begun(site, request)
    (tmp_path / "mine").write_text("a secret")
    data = experiment(site)["spec"]["data"]
    for name, forget in (("file", f"file://{tmp_path}/mine"), ("server", f"s3://b/x?endpoint_url={proxy.url}")):
        apply(site, experiment(site, name, data=data | {"forget": forget}))
        wait_until(site, "Invalid", name, 30)
        done = site.on_cluster(
            "results", f"experiment/{name}", "--store", f"{site.store}?endpoint_url={site.server.url}"
        )
        assert done.returncode == 2
        assert "is not read by this command" in done.stderr, done.stderr
    assert not proxy.seen
    file = tmp_path / "experiment.yaml"
    file.write_text(yaml.safe_dump(experiment(site, "theirs", data=data | {"forget": str(tmp_path / "mine")})))
    done = site.on_cluster("submit", str(file), "--upload", "--store", f"{site.store}?endpoint_url={site.server.url}")
    assert done.returncode == 2
    assert "not JSON; allowed: one JSON object a line" in done.stderr
    assert not list(site.objects.glob("inputs/**/*"))


def test_a_hub_that_is_away_is_waited_for(site: Site, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    (tmp_path / "hub").mkdir()
    hub = Hub("org/tiny", tmp_path / "hub", private=False)
    request.addfinalizer(hub.stop)
    hub.away = 503
    site.environment["HF_ENDPOINT"] = hub.url
    begun(site, request)
    apply(site, model_of_the_hub(site, "waits", "hf://org/tiny"))
    until(lambda: "answers 503" in condition(site, "waits"), 30)
    assert status(site, "waits")["phase"] == "Running"
    apply(site, model_of_the_hub(site, "pinned", f"hf://org/tiny@{COMMIT}"))
    wait_until(site, "Suspended", "pinned", 30)
    hub.away = None
    wait_until(site, "Suspended", "waits", 60)
    hub.private = True
    apply(site, model_of_the_hub(site, "private", "hf://org/tiny"))
    wait_until(site, "Invalid", "private", 30)
    assert "name its commit" in condition(site, "private")
    assert not any(hub.tokens), "the operator has no token"


def model_of_the_hub(site: Site, name: str, model: str) -> dict[str, Any]:
    given = experiment(site, name, model=model, suspend=True)
    del given["spec"]["memorize"]
    return given
