"""The shipped command before a real control plane and a real S3 server; pods' commands run as processes (see
node.py).
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from multiprocessing.process import BaseProcess
from multiprocessing.reduction import DupFd
from pathlib import Path
from typing import Any

import pytest

from tests.support.control_plane import ControlPlane
from tests.support.emulated_node import CONTEXT, Node, Pod
from tests.support.kwok_nodes import Fleet
from tests.support.s3server import BUCKET, CREDENTIALS, S3Server

CORES = len(os.sched_getaffinity(0))
# As many threads as the local executor takes: bits depend on them.
THREADS = (
    f"resources={{memorize: {{cpu: {CORES}}}, finetune: {{cpu: {max(1, CORES // 2)}}}, merge: {{cpu: 1}}, "
    f"evaluate: {{cpu: {max(1, CORES // 2)}}}}}"
)


class Site:
    """The shipped command, before one namespace and one prefix of the store."""

    def __init__(self, plane: ControlPlane, node: Node | Fleet, namespace: str, server: S3Server, file: Path) -> None:
        self.plane, self.node, self.namespace, self.server, self.file = plane, node, namespace, server, file
        self.image = "registry.test/expunge-jobs:1"
        self.store = f"s3://{BUCKET}/{namespace}"
        self.environment = {"KUBECONFIG": str(plane.kubeconfig), "AWS_ENDPOINT_URL_S3": server.url}
        """Of the command; pods have theirs from a Secret."""
        self.objects = server.folder / "objects" / BUCKET / namespace
        self.said = node.folder / f"{namespace}.said"
        self._begun: list[subprocess.Popen[str]] = []
        values = CREDENTIALS | {"AWS_ENDPOINT_URL_S3": server.url}
        secret = [f"--from-literal={k}={v}" for k, v in values.items()]
        plane.kubectl("create", "secret", "generic", "credentials", "-n", namespace, *secret)

    def give_pods(self, values: dict[str, str]) -> None:
        """Change what the Secret of the pods says."""
        self.plane.kubectl(
            "patch", "secret", "credentials", "-n", self.namespace, "-p", json.dumps({"stringData": values})
        )

    def words(self, verb: str, *more: str) -> list[str]:
        """The command line of a verb."""
        where = ["--store", self.store, "--namespace", self.namespace]
        if verb in ("run", "retry", "doctor"):
            where += ["--image", self.image, "--secret", "credentials"]
        if verb == "doctor":
            return [verb, *where, *more]
        return [verb, str(self.file), *where, "--executor", "kubernetes", "--set", THREADS, *more]

    def begin(self, verb: str, *more: str) -> subprocess.Popen[str]:
        return self._begin(self.words(verb, *more))

    def begin_elsewhere(self, *words: str) -> subprocess.Popen[str]:
        """The command with words of its own."""
        return self._begin(list(words))

    def begin_on_cluster(self, verb: str, *more: str) -> subprocess.Popen[str]:
        """A verb on what the operator runs, begun."""
        return self._begin([verb, *more, "--namespace", self.namespace])

    def on_cluster(self, verb: str, *more: str) -> subprocess.CompletedProcess[str]:
        """The same to its end."""
        process = self.begin_on_cluster(verb, *more)
        out, err = process.communicate(timeout=900)
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    def _begin(self, words: list[str]) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-m", "expunge_controller", *words],
            env=os.environ | self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._begun.append(process)
        return process

    def fork(self, verb: str, *more: str) -> BaseProcess:
        """The same from a process that has imported everything: a second instead of five. Its talk is in ``said``."""
        return forked("cli.main", self.words(verb, *more), self.environment, self.said)

    def close(self) -> None:
        """End what a test has left running."""
        for process in self._begun:
            process.kill()
            process.communicate()
        self.plane.kubectl("delete", "jobs", "--all", "-n", self.namespace)

    def command(self, verb: str, *words: str) -> subprocess.CompletedProcess[str]:
        process = self.begin(verb, *words)
        out, err = process.communicate(timeout=900)
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    def job(self, step: str) -> dict[str, Any]:
        """The Job of the step of this name."""
        return next(j for j in self.get("jobs") if j["metadata"]["annotations"]["expunge.dev/step"] == step)

    def training(self, step: str, seconds: float = 60) -> Pod:
        """The pod of this step, once it is in the middle of its work."""
        until(lambda: any(j["metadata"]["annotations"]["expunge.dev/step"] == step for j in self.get("jobs")))
        uid = self.job(step)["metadata"]["uid"]
        found: list[Pod] = []

        def works() -> bool:
            found[:] = [p for p in self.node.pods.values() if p.job == uid and not p.done.is_set()]
            return bool(found) and '"progress"' in found[0].log.read_text()

        until(works, seconds)
        return found[0]

    def resumed(self, step: str) -> list[int]:
        """The steps from which attempts of this one went on."""
        key = self.job(step)["metadata"]["annotations"]["expunge.dev/key"]
        out = []
        for part in sorted(self.objects.glob(f"artifacts/*/{key}/attempts/*/log/*.jsonl")):
            out += [e["step"] for e in map(json.loads, part.read_text().splitlines()) if e["event"] == "resumed"]
        return out

    def get(self, kind: str) -> list[dict[str, Any]]:
        return list(self.plane.get(kind, "-n", self.namespace)["items"])


@pytest.fixture
def site(plane: ControlPlane, node: Node, namespace: str, server: S3Server, tiny: Path) -> Iterator[Site]:
    site = Site(plane, node, namespace, server, tiny)
    yield site
    site.close()


def forked(program: str, words: list[str], environment: dict[str, str], said: Path) -> BaseProcess:
    """``main`` of a module of the controller in a process that has imported everything."""
    with said.open("ab") as file:
        process: BaseProcess = CONTEXT.Process(
            target=_main, args=(program, words, dict(os.environ) | environment, DupFd(file.fileno()))
        )
        process.start()
    return process


def _main(program: str, words: list[str], environment: dict[str, str], output: Any) -> None:
    file = output.detach()
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.environ.clear()
    os.environ.update(environment)
    sys.exit(importlib.import_module(f"expunge_controller.{program}").main(words))


def until(what: Callable[[], bool], seconds: float = 60) -> None:
    """Wait for it."""
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "it never came to pass"
        time.sleep(0.1)
