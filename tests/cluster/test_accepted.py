"""Our Jobs before a real API server: accepted whole, and their pods where pod security is ``restricted``."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.control_plane import ControlPlane

QUICKSTART = Path(__file__).parents[2] / "examples" / "quickstart.yaml"
EVERYTHING = (
    "kubernetes={queue: research, priority: low, priorityClassName: batch, nodeSelector: {gpu: a100}, "
    "tolerations: [{key: nvidia.com/gpu, operator: Exists, effect: NoSchedule}], "
    "affinity: {nodeAffinity: {requiredDuringSchedulingIgnoredDuringExecution: {nodeSelectorTerms: "
    "[{matchExpressions: [{key: zone, operator: In, values: [a]}]}]}}}, "
    "volumes: [{mount: /mnt/models, claim: models, read_only: true}, {mount: /mnt/cache, size: 50Gi}]}"
)


def render(namespace: str, *words: str) -> list[dict[str, Any]]:
    """What the shipped command prints."""
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "expunge_controller",
            "render",
            str(QUICKSTART),
            "--store",
            "s3://bucket/expunge",
            "--image",
            "registry.test/expunge-jobs:1",
            "--namespace",
            namespace,
            "--secret",
            "credentials",
            *words,
        ],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return list(yaml.safe_load_all(done.stdout))


@pytest.mark.parametrize("words", [(), ("--set", EVERYTHING)], ids=["plain", "everything"])
def test_every_job_is_accepted_as_it_is(plane: ControlPlane, namespace: str, words: tuple[str, ...]) -> None:
    jobs = render(namespace, *words)
    kinds = {job["metadata"]["labels"]["expunge.dev/kind"] for job in jobs}
    assert kinds == {"memorize", "finetune", "merge", "evaluate", "report"}
    for job in jobs:
        said = plane.kubectl(
            "create", "--dry-run=server", "--validate=strict", "-f", "-", "-o", "json", give=json.dumps(job)
        )
        stored = json.loads(said)
        assert differences(job, stored) == []


@pytest.mark.parametrize("words", [(), ("--set", EVERYTHING)], ids=["plain", "everything"])
def test_their_pods_are_restricted(plane: ControlPlane, namespace: str, words: tuple[str, ...]) -> None:
    """Pod security is enforced on pods alone: a Job whose pods it refuses is accepted."""
    if not any(p["metadata"]["name"] == "batch" for p in plane.get("priorityclasses")["items"]):
        plane.kubectl("create", "priorityclass", "batch", "--value=5")
    for job in render(namespace, *words):
        template = job["spec"]["template"]
        pod = {
            "apiVersion": "v1",
            "kind": "Pod",
            "spec": template["spec"],
            "metadata": {**template["metadata"], "name": "template", "namespace": namespace},
        }
        plane.kubectl("create", "--dry-run=server", "--validate=strict", "-f", "-", give=json.dumps(pod))
    template["spec"]["containers"][0]["securityContext"]["capabilities"] = {}
    with pytest.raises(AssertionError, match="violates PodSecurity"):
        plane.kubectl("create", "--dry-run=server", "-f", "-", give=json.dumps(pod))


def differences(ours: Any, theirs: Any, path: str = "") -> list[str]:
    """What the API server has dropped or changed of ours; what it adds is its own."""
    if isinstance(ours, dict):
        return [
            d
            for k, v in ours.items()
            for d in (differences(v, theirs[k], f"{path}.{k}") if k in theirs else [f"{path}.{k} dropped"])
        ]
    if isinstance(ours, list):
        if len(ours) > len(theirs):
            return [f"{path}: {len(ours)} given, {len(theirs)} kept"]
        return [d for n, v in enumerate(ours) for d in differences(v, theirs[n], f"{path}[{n}]")]
    return [] if ours == theirs else [f"{path}: {ours!r} became {theirs!r}"]


def test_a_job_runs_as_far_as_a_scheduler_can_say(plane: ControlPlane, namespace: str) -> None:
    """No such node is here: the pod is made, and says why it waits."""
    job = next(j for j in render(namespace) if j["metadata"]["labels"]["expunge.dev/kind"] == "memorize")
    job["spec"]["template"]["spec"]["nodeSelector"] = {"of": "another-cluster"}
    plane.kubectl("create", "-f", "-", give=json.dumps(job))
    plane.kubectl(
        "wait",
        "-n",
        namespace,
        "--for=condition=PodScheduled=False",
        "pod",
        "-l",
        "app.kubernetes.io/name=expunge",
        "--timeout=60s",
    )
    (pod,) = plane.get("pods", "-n", namespace)["items"]
    (scheduled,) = [c for c in pod["status"]["conditions"] if c["type"] == "PodScheduled"]
    assert re.search(r"no nodes available|0/\d+ nodes are available", scheduled["message"])
    plane.kubectl("delete", "job", "-n", namespace, job["metadata"]["name"])
