"""Experiments as custom resources: applied with kubectl, run by the shipped operator before a real control plane."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from cluster import ControlPlane
from operating import Operating, apply, events, experiment, install_definition, status, wait_until
from testsite import Site


@pytest.fixture(scope="module", autouse=True)
def definition(plane: ControlPlane) -> None:
    install_definition(plane)


@pytest.fixture
def operator(site: Site) -> Iterator[Operating]:
    operating = Operating(site)
    operating.begin()
    yield operating
    operating.close()


def test_applied_it_runs_to_its_end(site: Site, operator: Operating) -> None:
    apply(site, experiment(site))
    site.plane.kubectl("wait", "--for=condition=Complete", "experiment/tiny", "-n", site.namespace, "--timeout=120s")
    found = status(site)
    assert found["phase"] == "Complete"
    assert found["steps"] == "10/10"
    assert found["trials"] == "1/1"
    assert found["observedGeneration"] == 1
    assert {c["type"]: c["status"] for c in found["conditions"]} == {
        "Complete": "True", "Failed": "False", "Progressing": "False",
    }  # fmt: skip
    said = dict(events(site))
    assert {"Planned", "Started", "Finished", "Complete"} <= said.keys()
    assert said["Complete"] == "every model is evaluated"
    owners = {j["metadata"]["ownerReferences"][0]["name"] for j in site.get("jobs")}
    assert owners == {"tiny"}
    assert json.loads(operator.said.read_text().splitlines()[0])["message"] == "watching"


def test_what_a_file_may_not_say_is_a_condition(site: Site, operator: Operating) -> None:
    wrong = experiment(site)
    wrong["spec"]["specialists"]["over"]["objective"] = {"nop": 1.0}
    apply(site, wrong)
    found = wait_until(site, "Invalid")
    failed = next(c for c in found["conditions"] if c["type"] == "Failed")
    assert failed["status"] == "True"
    assert "nop" in failed["message"]
    assert "npo" in failed["message"]
