"""How long a cluster stands idle between two steps: from the end of the last predecessor's pod (seen Succeeded) to the
creation of the successor's pod (seen), by one observer for both; and API calls for each step.

On the tests' control plane, node and S3 server, at rest. The baseline is a bare client that creates a Job: until its
pod is seen. No controller can be faster than that.
"""

from __future__ import annotations

import contextlib
import json
import os
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import urllib3
from kubernetes import client, watch

from tests.support.control_plane import ControlPlane
from tests.support.emulated_node import Node
from tests.support.faults import FaultProxy
from tests.support.runs import TINY
from tests.support.s3server import CREDENTIALS, S3Server
from tests.support.testsite import Site, until

SETTINGS = 60


class Observer:
    """When each Job's pod was first seen, and seen Succeeded; in seconds of one clock."""

    def __init__(self, api: client.CoreV1Api, namespace: str) -> None:
        self.watch = watch.Watch()
        self.made: dict[str, float] = {}
        self.ended: dict[str, float] = {}
        threading.Thread(target=self._watch, args=(api, namespace), daemon=True).start()

    def _watch(self, api: client.CoreV1Api, namespace: str) -> None:
        with contextlib.suppress(urllib3.exceptions.HTTPError):  # the server ends before the watch
            self._listen(api, namespace)

    def _listen(self, api: client.CoreV1Api, namespace: str) -> None:
        for event in self.watch.stream(api.list_namespaced_pod, namespace):
            now, pod = time.monotonic(), event["raw_object"]
            job = pod["metadata"]["labels"]["batch.kubernetes.io/job-name"]
            self.made.setdefault(job, now)
            if pod["status"].get("phase") == "Succeeded":
                self.ended.setdefault(job, now)


def bare(site: Site, api: client.BatchV1Api, observer: Observer) -> list[float]:
    """Creation of a Job to its pod, by a loop that does nothing else."""
    container = {"name": "c", "image": "registry.test/missing", "command": ["true"]}
    out = []
    for number in range(SETTINGS):
        job = {
            "metadata": {"name": f"bare-{number}"},
            "spec": {"template": {"spec": {"restartPolicy": "Never", "containers": [container]}}},
        }
        start = time.monotonic()
        api.create_namespaced_job(site.namespace, job)
        until(lambda n=number: f"bare-{n}" in observer.made)  # type: ignore[misc]
        out.append(observer.made[f"bare-{number}"] - start)
    return out


def gaps_of(site: Site, observer: Observer, words: tuple[str, ...], start: float) -> dict[str, float]:
    """The gap before each step that had to wait for others of the run that began at ``start``."""
    plan: dict[str, Any] = json.loads(site.command("plan", "-o", "json", *words).stdout)
    name = {s["key"]: f"expunge-{s['kind']}-{s['key'][:16]}" for s in plan["steps"]}
    out = {}
    for step in plan["steps"]:
        last = max((observer.ended[name[n]] for n in step["needs"]), default=0.0)
        if last > start:
            out[name[step["key"]]] = observer.made[name[step["key"]]] - last
    return out


def main() -> None:
    os.environ.update(CREDENTIALS)
    os.environ["OMP_NUM_THREADS"] = "1"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        plane, server = ControlPlane(folder / "plane"), S3Server(folder / "s3")
        plane.start()
        node = Node(plane.kubeconfig, folder / "node")
        node.start()
        proxy = FaultProxy(plane.url, plane.context)
        (folder / "tiny.yaml").write_text(TINY)
        try:
            plane.kubectl("create", "namespace", "bench")
            site = Site(plane, node, "bench", server, folder / "tiny.yaml")
            observer = Observer(client.CoreV1Api(node.api.api_client), "bench")
            floor = bare(site, client.BatchV1Api(node.api.api_client), observer)
            site.environment["KUBECONFIG"] = str(plane.kubeconfig_by(proxy.url))
            gaps: dict[str, float] = {}
            for number in range(SETTINGS):
                words = ("--set", f"merge.density={0.3 + number / 100}")
                start = time.monotonic()
                run = site.fork("run", *words)
                run.join()
                assert run.exitcode == 0, site.said.read_text()
                gaps |= gaps_of(site, observer, words, start)
            values = sorted(gaps.values())
            p50, p99 = statistics.median(values), statistics.quantiles(values, n=100, method="inclusive")[98]
            base = statistics.median(floor)
            print(
                f"{len(values)} gaps: p50 {p50:.3f} s, p99 {p99:.3f} s, largest {values[-1]:.3f} s (aims: .1 and .25)"
            )
            print(f"a bare client's Job to its pod: {base:.3f} s; ratio {p50 / base:.1f}")
            print(f"API calls for each step: {len(proxy.seen) / len(observer.ended):.1f}")
        finally:
            proxy.close()
            observer.watch.stop()
            node.stop()
            server.stop()
            plane.stop()


if __name__ == "__main__":
    main()
