"""The operator as a process, before a real control plane; Experiments are applied with kubectl."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import urllib.request
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import yaml
from expunge_controller.experiment.crd import resource_definition

from tests.support.chart import identity
from tests.support.control_plane import ControlPlane
from tests.support.s3server import BUCKET, free_port
from tests.support.testsite import CORES, Site, forked, until

FEW = {
    "memorize": {"cpu": CORES},
    "finetune": {"cpu": max(1, CORES // 2)},
    "merge": {"cpu": 1},
    "evaluate": {"cpu": max(1, CORES // 2)},
}
"""As many threads as the local executor takes: bits depend on them."""
PROGRAM = ("-m", "expunge_controller.serve")


def install_definition(plane: ControlPlane, definition: dict[str, Any] | None = None) -> None:
    """The API server knows Experiments from here on: as they are, or as another ``definition`` has them."""
    wanted = definition or resource_definition()
    plane.kubectl("apply", "--server-side", "--force-conflicts", "-f", "-", give=yaml.safe_dump(wanted))
    plane.kubectl("wait", "--for=condition=Established", "crd/experiments.expunge.dev", "--timeout=30s")


def slim_python() -> str:
    """The Python of docker/controller.Dockerfile's environment: what is tested is what is shipped."""
    found = Path(sys.prefix, "slim", "bin", "python")
    assert found.exists(), f"{found} is not there: make slim"
    return str(found)


class Operating:
    """An operator for one namespace, begun and ended as often as a test wants: in the environment of its image, as
    the chart's own account, with its Roles.
    """

    def __init__(
        self, site: Site, *options: str, kubeconfig: Path | None = None, program: tuple[str, ...] = PROGRAM
    ) -> None:
        self.site, self.options, self.program = site, options, program
        self.kubeconfig = kubeconfig or identity(site.plane, site.namespace)
        self.port = free_port()
        self.said = site.node.folder / f"{site.namespace}.operator"
        self.process: subprocess.Popen[bytes] | None = None

    def words(self) -> list[str]:
        return [
            "--store",
            f"s3://{BUCKET}",
            "--image",
            self.site.image,
            "--secret",
            "credentials",
            "--namespace",
            self.site.namespace,
            "--port",
            str(self.port),
            *self.options,
        ]

    def fork(self) -> BaseProcess:
        """Another one, from a process that has imported everything."""
        environment = self.site.environment | {"KUBECONFIG": str(self.kubeconfig)}
        return forked("serve", [*self.words(), "--port", "0"], environment, self.said)

    def begin(self) -> None:
        words = self.words()
        environment = os.environ | self.site.environment | {"KUBECONFIG": str(self.kubeconfig)}
        with self.said.open("ab") as log:
            self.process = subprocess.Popen(
                [slim_python(), *self.program, *words], env=environment, stdout=log, stderr=log
            )
        until(lambda: self.answers("/readyz"))

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        assert self.process is not None
        self.process.send_signal(number)
        code = self.process.wait(30)
        self.process = None
        return code

    def close(self) -> None:
        if self.process is not None:
            self.process.terminate()  # in order, so that what it covered is counted
            try:
                self.process.wait(30)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()

    def answers(self, path: str) -> bool:
        assert self.process is None or self.process.poll() is None, self.said.read_text()[-3000:]
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=2) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def metrics(self) -> dict[str, float]:
        """Its figures by name and labels."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/metrics", timeout=5) as answer:
            lines = [x.rsplit(" ", 1) for x in answer.read().decode().splitlines() if not x.startswith("#")]
        return {name: float(value) for name, value in lines}

    def lines(self) -> list[dict[str, Any]]:
        """What it has logged."""
        return [json.loads(line) for line in self.said.read_text().splitlines()]


def experiment(site: Site, name: str = "tiny", **spec: Any) -> dict[str, Any]:
    """The tiny experiment as a resource; ``spec`` replaces fields of its own."""
    found: dict[str, Any] = yaml.safe_load(site.file.read_text())
    found["metadata"] = {"name": name, "namespace": site.namespace}
    found["spec"] |= {"resources": FEW} | spec
    return found


def slower(site: Site, name: str = "tiny", **spec: Any) -> dict[str, Any]:
    """The same with steps of a few seconds."""
    found = experiment(site, name, **spec)
    for step in (found["spec"]["memorize"], *found["spec"]["specialists"].values()):
        step["epochs"] = 40
    return found


def apply(site: Site, resource: dict[str, Any]) -> None:
    site.plane.kubectl("apply", "-f", "-", give=yaml.safe_dump(resource))


def status(site: Site, name: str = "tiny") -> dict[str, Any]:
    found: dict[str, Any] = site.plane.get("experiment", name, "-n", site.namespace)
    return dict(found.get("status", {}))


def wait_until(site: Site, phase: str, name: str = "tiny", seconds: float = 120) -> dict[str, Any]:
    """The status, once it has this phase."""
    until(lambda: status(site, name).get("phase") == phase, seconds)
    return status(site, name)


def events(site: Site, name: str = "tiny") -> list[tuple[str, str]]:
    """Reasons and messages, in the order of their time."""
    found = site.get("events")
    mine = [e for e in found if e["involvedObject"]["kind"] == "Experiment" and e["involvedObject"]["name"] == name]
    return [(e["reason"], e["message"]) for e in sorted(mine, key=lambda e: str(e["firstTimestamp"]))]
