"""The executor by itself, before a real control plane: what takes minutes in a run is given seconds here."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator

import pytest
from expunge_controller.execution.executor import Ended
from expunge_controller.execution.kubernetes import executor as module
from expunge_controller.execution.kubernetes import tracked_job
from expunge_controller.execution.kubernetes.executor import KubernetesExecutor
from expunge_controller.execution.kubernetes.job_informer import JobInformer
from expunge_controller.execution.kubernetes.pod_config import PodConfig as Where
from expunge_controller.experiment.loading import load_experiment
from expunge_controller.experiment.scheduling import Resources
from expunge_controller.kube_client.config import connect
from expunge_controller.planning.plan import Step
from expunge_controller.planning.resolve import resolve
from expunge_jobs.store import open_store

from tests.support.runs import SLOWER
from tests.support.testsite import THREADS, Site, until

Make = Callable[..., KubernetesExecutor]


@pytest.fixture
def steps(site: Site) -> dict[str, Step]:
    """The experiment's steps by name."""
    sets = [s for s in SLOWER if s != "--set"]
    return {s.name: s for s in resolve(load_experiment(site.file, [THREADS, *sets])).plan.steps}


@pytest.fixture
def make(site: Site, monkeypatch: pytest.MonkeyPatch) -> Iterator[Make]:
    """Makes executors, and ends them."""
    for name, value in site.environment.items():
        monkeypatch.setenv(name, value)
    watch = JobInformer(connect(namespace=site.namespace), site.namespace)
    watch.open()
    made = []

    def make(
        image: str = "registry.test/jobs:1", memory: str = "16Gi", parallel: int = 8, start_timeout: float = 900
    ) -> KubernetesExecutor:
        where = Where(namespace=site.namespace, image=image, store=site.store, secret="credentials")
        spec = load_experiment(site.file, [THREADS]).experiment.spec
        resources = spec.resources.model_copy(update={"memorize": Resources(cpu=1, memory=memory)})
        executor = KubernetesExecutor(
            open_store(site.store),
            watch,
            where,
            resources,
            spec.kubernetes,
            "run-1",
            parallel,
            start_timeout=start_timeout,
        )
        made.append(executor)
        return executor

    yield make
    for executor in made:
        executor.stop(0)
    watch.close()


def start(executor: KubernetesExecutor, step: Step) -> None:
    until(lambda: executor.start(step) == "started", 30)


def first(executor: KubernetesExecutor, seconds: float = 60) -> Ended:
    """The first attempt that ends."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if ended := executor.wait(0.2):
            return ended[0]
    raise AssertionError("nothing ended")


def test_no_more_at_once_than_it_may(make: Make, steps: dict[str, Step]) -> None:
    executor = make(parallel=1)
    start(executor, steps["memorize"])
    assert executor.start(steps["evaluate base"]) == "no room"
    assert first(executor) == Ended(steps["memorize"].key, ok=True)
    assert executor.running() == {}
    assert executor.start(steps["evaluate base"]) == "started"


def test_a_pod_whose_node_is_lost_is_given_up(
    make: Make, steps: dict[str, Step], site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracked_job, "NODE_LOST_AFTER_SECONDS", 2.0)
    executor = make()
    start(executor, steps["memorize"])
    pod = site.training("memorize")
    pod.signal(signal.SIGSTOP)
    pod.lost = True
    site.node.api.delete_namespaced_pod(pod.name, pod.namespace, grace_period_seconds=1)
    ended = first(executor)
    assert ended.vanished
    assert ended.reason == "its Job is gone"
    start(executor, steps["memorize"])
    assert first(executor).ok
    (manifest,) = site.objects.glob("artifacts/memorize/*/manifest.json")
    before = manifest.read_text()
    pod.signal(signal.SIGCONT)  # it wakes up after its replacement has finished
    assert pod.done.wait(120)
    assert manifest.read_text() == before
    folder = manifest.parent / "attempts" / pod.uid
    left = {p.relative_to(folder).parts[0] for p in folder.rglob("*") if p.is_file()}
    assert left <= {"log", "end.json"}, "what it made beside the winner's is gone"


def test_a_pod_that_cannot_start_has_its_time_and_no_more(make: Make, steps: dict[str, Step], site: Site) -> None:
    executor = make(image="registry.test/missing:1", start_timeout=3)
    start(executor, steps["memorize"])
    ended = first(executor)
    assert ended.final
    assert ended.reason.startswith("could not start within 3 s: ImagePullBackOff: Back-off pulling image")
    assert len(site.get("jobs")) == 1, "it stays until the failure is recorded"
    executor.failure_recorded(steps["memorize"])
    until(lambda: site.get("jobs") == [])


def test_another_runs_failure_with_other_resources_is_no_verdict(
    make: Make, steps: dict[str, Step], site: Site
) -> None:
    theirs, ours = make(memory="1Gi"), make(memory="32Gi")
    start(theirs, steps["memorize"])
    start(ours, steps["memorize"])
    assert len(site.get("jobs")) == 1, "adopted"
    site.training("memorize").kill_for_memory()
    assert "out of memory at 1Gi" in first(theirs).reason
    assert first(ours).vanished
    start(ours, steps["memorize"])
    assert first(ours).ok


def test_a_job_made_by_a_run_that_asked_for_the_same_counts(make: Make, steps: dict[str, Step], site: Site) -> None:
    theirs, ours = make(), make()
    start(theirs, steps["memorize"])
    start(ours, steps["memorize"])
    site.training("memorize").kill_for_memory()
    for executor in (theirs, ours):
        assert "out of memory at 16Gi" in first(executor).reason


def test_an_earlier_job_that_does_not_go_is_told(
    make: Make, steps: dict[str, Step], site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BLOCKED_REPORT_SECONDS", 1.0)
    executor = make()
    start(executor, steps["memorize"])
    name = site.job("memorize")["metadata"]["name"]
    held = '{"metadata": {"finalizers": ["example.test/held"]}}'
    site.plane.kubectl("patch", "job", name, "-n", site.namespace, "--type=merge", "-p", held)
    site.plane.kubectl("delete", "job", name, "-n", site.namespace, "--wait=false")
    assert executor.problem() == ""
    other = make()
    until(lambda: other.start(steps["memorize"]) == "started" or "see its finalizers" in other.problem(), 20)
    assert "see its finalizers" in other.problem()
    site.plane.kubectl(
        "patch", "job", name, "-n", site.namespace, "--type=merge", "-p", '{"metadata": {"finalizers": null}}'
    )
    start(other, steps["memorize"])
    assert other.problem() == ""
