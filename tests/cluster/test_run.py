"""Whole runs on a real control plane and a real S3 server; pods' commands run as processes (see node.py)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from cluster import ControlPlane
from node import Node
from runs import attempts, weights
from s3server import BUCKET, CREDENTIALS, S3Server

CORES = len(os.sched_getaffinity(0))
# As many threads as the local executor takes: bits depend on them.
THREADS = (
    f"resources={{memorize: {{cpu: {CORES}}}, finetune: {{cpu: {max(1, CORES // 2)}}}, merge: {{cpu: 1}}, "
    f"evaluate: {{cpu: {max(1, CORES // 2)}}}}}"
)


class Site:
    """The shipped command, before one namespace and one prefix of the store."""

    def __init__(self, plane: ControlPlane, namespace: str, server: S3Server, file: Path) -> None:
        self.plane, self.namespace, self.file = plane, namespace, file
        self.store = f"s3://{BUCKET}/{namespace}?endpoint_url={server.url}"
        self.objects = server.folder / "objects" / BUCKET / namespace
        secret = [f"--from-literal={k}={v}" for k, v in CREDENTIALS.items()]
        plane.kubectl("create", "secret", "generic", "credentials", "-n", namespace, *secret)

    def begin(self, verb: str, *words: str) -> subprocess.Popen[str]:
        where = ["--store", self.store]
        if verb in ("run", "plan", "results", "status", "logs", "cancel", "retry"):
            where += ["--executor", "kubernetes", "--namespace", self.namespace]
        if verb in ("run", "retry"):
            where += ["--image", "registry.test/expunge-jobs:1", "--secret", "credentials"]
        return subprocess.Popen(
            [sys.executable, "-m", "expunge_controller", verb, str(self.file), *where, "--set", THREADS, *words],
            env=os.environ | {"KUBECONFIG": str(self.plane.kubeconfig)}, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            text=True,
        )  # fmt: skip

    def command(self, verb: str, *words: str) -> subprocess.CompletedProcess[str]:
        process = self.begin(verb, *words)
        out, err = process.communicate()
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    def get(self, kind: str) -> list[dict[str, Any]]:
        return list(self.plane.get(kind, "-n", self.namespace)["items"])


@pytest.fixture
def site(plane: ControlPlane, node: Node, namespace: str, server: S3Server, tiny: Path) -> Site:
    return Site(plane, namespace, server, tiny)


def test_a_run_on_a_cluster_is_the_same_run(site: Site, finished: Path) -> None:
    done = site.command("run")
    assert done.returncode == 0, done.stderr
    assert weights(site.objects) == weights(finished)
    assert set(attempts(site.objects).values()) == {1}
    jobs = site.get("jobs")
    assert len(jobs) == 10
    again = site.command("run")
    assert again.returncode == 0
    assert again.stdout == done.stdout
    assert {j["metadata"]["uid"] for j in site.get("jobs")} == {j["metadata"]["uid"] for j in jobs}, "nothing ran again"
    states = json.loads(site.command("plan", "-o", "json").stdout)
    assert {s["state"] for s in states["steps"]} == {"done"}
    logs = site.command("logs", "finetune over").stdout
    assert "done" in logs
