"""Hundreds of experiments at once before the shipped operator, with the chart's own defaults: gaps between steps and
the time in all beside a loop that does nothing but create each Job in its turn; calls, memory, recovery after a kill;
and Jobs a second beside a loop that creates the same Jobs and waits for nothing.

usage: scale.py [EXPERIMENTS [SECONDS]]     default: 200 experiments, steps of 10 seconds

A real control plane and a real S3 server; nodes by kwok (tests/support/fleet.py says which steps are left to each
experiment). A gap: from the last predecessor's pod seen Succeeded to the successor's pod seen, by one observer for
both.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import signal
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from expunge_controller.execution.kubernetes.job_informer import jobs_path, pods_path
from expunge_controller.execution.kubernetes.jobspec import job, job_name
from expunge_controller.execution.kubernetes.pod_config import PodConfig
from expunge_controller.experiment.loading import load_resource
from expunge_controller.experiment.scheduling import Kubernetes, ResourcesByKind
from expunge_controller.kube_client.config import connect
from expunge_controller.operator.job_slots import MOST_PODLESS_JOBS
from expunge_jobs.store import open_store

from tests.support.chart import identity, of_kind, rendered
from tests.support.control_plane import ControlPlane
from tests.support.kwok_nodes import Crowd, Fleet
from tests.support.operating import Operating, install_definition
from tests.support.s3server import BUCKET, CREDENTIALS, S3Server
from tests.support.testsite import Site as Place
from tests.support.testsite import until

NAMESPACE, BARE = "scale", "bare"


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 200
    seconds = float(sys.argv[2]) if len(sys.argv) > 2 else 10.0
    os.environ.update(CREDENTIALS)
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as ends:
        folder = Path(name)
        plane, server = ControlPlane(folder / "plane"), S3Server(folder / "s3")
        ends.callback(server.stop)
        ends.callback(plane.stop)
        plane.start()
        plane.kubectl("create", "namespace", NAMESPACE)
        install_definition(plane)
        os.environ |= {"KUBECONFIG": str(plane.kubeconfig), "AWS_ENDPOINT_URL_S3": server.url}
        cluster = connect(None, NAMESPACE)
        fleet = Fleet(plane, cluster, folder / "fleet", open_store(f"s3://{BUCKET}/{NAMESPACE}"), seconds)
        ends.callback(fleet.stop)
        fleet.start()
        place = Place(plane, fleet, NAMESPACE, server, folder / "none.yaml")
        limits, environment = defaults()
        place.environment |= environment
        operating = Operating(place, *limits, kubeconfig=identity(plane, NAMESPACE))
        ends.callback(operating.close)
        edges = (0, 1, 1 + count, 1 + 2 * count, 1 + 3 * count)
        one, first, second, third = (Crowd(fleet, cluster, range(n, m)) for n, m in itertools.pairwise(edges))
        for crowd in (one, first, second, third):
            crowd.prepare()
        floor = alone(place, third)
        operating.begin()
        one.apply()  # so that what is read once, by whichever experiment is the first, is counted to none
        until(lambda: one.phases() == {"Complete": 1}, 300)
        run(operating, first, floor)
        recover(operating, second)
        compare(operating, second)


def defaults() -> tuple[list[str], dict[str, str]]:
    """The operator's limits and environment as the chart has them."""
    (deployment,) = of_kind(rendered(NAMESPACE), "Deployment")
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    limits = [word for word in container["args"] if word.startswith(("--max-jobs", "--workers"))]
    return limits, {e["name"]: e["value"] for e in container["env"] if e["name"] != "HOME"}


def alone(place: Place, crowd: Crowd) -> float:
    """Seconds for the same Jobs by a loop that has nothing else to do: each is created when its predecessors' pods
    have ended, a first one only while fewer of them lack a pod than the operator lets lack one.
    """
    fleet = crowd.fleet
    steps = {job_name(s): s for plan in crowd.plans for s in plan.steps if job_name(s) in fleet.steps}
    names = {s.key: name for name, s in steps.items()}
    site = PodConfig(namespace=NAMESPACE, image=place.image, store=fleet.store.uri, secret="credentials")
    kubernetes = load_resource(crowd.resources[0]).experiment.spec.kubernetes
    jobs = {name: job(s, site, ResourcesByKind(), kubernetes, "alone") for name, s in steps.items()}
    left = {name: {names[k] for k in s.needs if k in names} for name, s in steps.items()}
    after: dict[str, list[str]] = {}
    for name, needs in left.items():
        for need in needs:
            after.setdefault(need, []).append(name)
    first = [name for name, needs in left.items() if not needs]
    podless, room = set(first), threading.Semaphore(MOST_PODLESS_JOBS)
    with ThreadPoolExecutor(8) as pool:

        def create(name: str) -> None:
            crowd.cluster.request("POST", jobs_path(NAMESPACE), jobs[name])

        def told(name: str) -> None:
            if name in podless:
                podless.discard(name)
                room.release()
            if name in fleet.ended:
                for successor in after.pop(name, ()):
                    left[successor].discard(name)
                    if not left[successor]:
                        pool.submit(create, successor)

        fleet.told = told
        start = time.monotonic()
        for name in first:
            room.acquire()
            pool.submit(create, name)
        until(crowd.has_reported, 1800)
        took = time.monotonic() - start
    print(f"by a loop that does nothing else: {took:.0f} s; {words(crowd.gaps())}")
    crowd.cluster.request("DELETE", jobs_path(NAMESPACE), {"propagationPolicy": "Background"})
    until(lambda: not place.get("jobs") and not place.get("pods"), 300)
    return took


def words(gaps: list[float]) -> str:
    """How long they are."""
    p99 = statistics.quantiles(gaps, n=100)[98]
    return f"{len(gaps)} gaps: p50 {statistics.median(gaps):.3f} s, p99 {p99:.3f} s, largest {max(gaps):.3f} s"


def run(operating: Operating, crowd: Crowd, floor: float) -> None:
    """All of them from their creation to their end. ``floor``: seconds that a loop takes for them."""
    plane, count, seconds = operating.site.plane, len(crowd.resources), crowd.fleet.seconds
    assert operating.process is not None
    pid = operating.process.pid
    empty, before, asked = memory(pid, "VmRSS"), cpu(pid), calls_of(plane)
    start = time.monotonic()
    crowd.apply()
    until(crowd.has_reported, 1800)
    until(lambda: crowd.phases() == {"Complete": count}, 60)
    took, used, peak = time.monotonic() - start, cpu(pid) - before, memory(pid, "VmHWM")
    asked = calls_of(plane) - asked
    print(f"{count} experiments of 5 steps of {seconds:.0f} s: {took:.0f} s, the steps alone {4 * seconds:.0f}")
    print(f"{words(crowd.gaps())}; time beside the loop's: {took / floor:.2f}")
    print(f"API calls for each experiment: {asked / count:.1f}")
    print(f"the operator: {used:.0f} CPU seconds; {empty:.0f} MiB empty, {peak - empty:.0f} MiB more at most")


def recover(operating: Operating, crowd: Crowd) -> None:
    """The operator is killed while every fine-tune is at work, and begins again."""
    crowd.fleet.hold()
    wanted = {job_name(s) for s in crowd.first()}
    crowd.apply()
    until(lambda: wanted <= crowd.fleet.running, 900)
    operating.end(signal.SIGKILL)
    start = time.monotonic()
    operating.begin()
    until(lambda: operating.metrics().get('expunge_steps{state="running"}', 0) >= len(wanted), 120)
    took = time.monotonic() - start
    print(f"killed with {len(wanted)} Jobs at work and begun again: all are followed after {took:.1f} s")


def compare(operating: Operating, crowd: Crowd) -> None:
    """Jobs a second, and Jobs with a pod, beside a loop that does nothing else."""
    operating.end()
    count = len(crowd.first())
    bare(operating.site, crowd)
    for what, resource in (("Jobs", "jobs"), ("Jobs that have their pods", "pods")):
        own, floor = (rate(operating.site.plane, resource, namespace, count) for namespace in (NAMESPACE, BARE))
        print(f"{what} a second: {own:.0f}; a bare loop's {floor:.0f}; ratio {own / floor:.2f}")


def bare(place: Place, crowd: Crowd) -> None:
    """The same Jobs, by a loop that creates one after the other."""
    place.plane.kubectl("create", "namespace", BARE)
    site = PodConfig(namespace=BARE, image=place.image, store=crowd.fleet.store.uri, secret="credentials")
    jobs = [job(s, site, ResourcesByKind(), Kubernetes(), BARE) for s in crowd.first()]
    for each in jobs:
        crowd.cluster.request("POST", jobs_path(BARE), each)

    def pods() -> int:
        page = crowd.cluster.request("GET", pods_path(BARE), query={"limit": 1})
        return len(page["items"]) + int(page["metadata"].get("remainingItemCount", 0))

    until(lambda: pods() == len(jobs), 300)


def rate(plane: ControlPlane, resource: str, namespace: str, count: int) -> float:
    """How many were created a second, of the last ``count``, by the API server's own log."""
    times = sorted(
        datetime.fromisoformat(e["requestReceivedTimestamp"]).timestamp()
        for e in calls(plane)
        if e["verb"] == "create"
        and e["responseStatus"]["code"] == 201
        and "subresource" not in e["objectRef"]
        and (e["objectRef"]["resource"], e["objectRef"].get("namespace")) == (resource, namespace)
    )[-count:]
    return (count - 1) / (times[-1] - times[0])


def calls(plane: ControlPlane) -> Iterator[dict[str, Any]]:
    """The API server's log of finished requests."""
    with (plane.folder / "audit.log").open() as log:
        for line in log:
            yield json.loads(line)


def calls_of(plane: ControlPlane) -> int:
    """How many the operator has made, watches that are still open apart."""
    return sum(e["user"]["username"].startswith(f"system:serviceaccount:{NAMESPACE}:") for e in calls(plane))


def memory(pid: int, which: str) -> float:
    """MiB of a process: VmRSS (now) or VmHWM (at most)."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(x.split()[1]) for x in lines if x.startswith(which)) / 1024


def cpu(pid: int) -> float:
    """Seconds of a processor that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    main()
