"""Our images in real pods: a real kubelet, container runtime, limits and network, as root."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme
from kubernetes import client, config

from tests.support import emulated_node as node
from tests.support import images
from tests.support.chart import helm
from tests.support.hub_server import Hub
from tests.support.machine import HOST, SMALL, Real
from tests.support.operating import apply, experiment, status, wait_until
from tests.support.runs import SLOWER, attempts, tiny, wait_for, weights
from tests.support.s3fixtures import credentials
from tests.support.s3server import BUCKET, SECRET_KEY, S3Server
from tests.support.testsite import Site, until

__all__ = ["credentials", "tiny"]
QUICKSTART = Path(__file__).parents[2] / "examples" / "quickstart.yaml"
LONGER = (
    "--set",
    "memorize.epochs=400",
    "--set",
    "specialists={}",
    "--set",
    "merge=null",
    "--set",
    "baselines={over: {preset: over_code, learning_rate: 1.0e-2, epochs: 2, rank: 4, alpha: 4}}",
    "--set",
    "evaluate.controls=[]",
)
"""Options with which memorize takes a while, and few steps follow: every pod is seconds of imports."""


@pytest.fixture(scope="session")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Real]:
    real = Real(tmp_path_factory.mktemp("real"))
    try:
        real.start()
        yield real
    finally:
        real.stop()


@pytest.fixture
def namespace(real: Real, request: pytest.FixtureRequest) -> str:
    name = f"test-{abs(hash(request.node.name)) % 10**8}"
    real.plane.kubectl("create", "namespace", name)
    real.plane.kubectl("label", "namespace", name, "pod-security.kubernetes.io/enforce=restricted")
    return name


@pytest.fixture
def site(real: Real, namespace: str, tiny: Path) -> Iterator[Site]:
    site: Any = Site(real.plane, real.machine, namespace, real.server, tiny)  # type: ignore[arg-type]
    site.image = "localhost/expunge-jobs:test"
    yield site
    site.close()


@pytest.fixture
def secure(real: Real, namespace: str, tiny: Path, tmp_path: Path) -> Iterator[Site]:
    """Before a store whose certificate is signed by nobody that the images know: by the ConfigMap ``authority``
    alone.
    """
    authority = trustme.CA()
    certificate = authority.issue_cert(HOST)
    chain, key = tmp_path / "chain.pem", tmp_path / "key.pem"
    certificate.private_key_pem.write_to_path(key)
    certificate.cert_chain_pems[0].write_to_path(chain)
    authority.cert_pem.write_to_path(tmp_path / "ca.crt")
    given = f"--from-file={tmp_path / 'ca.crt'}"
    real.plane.kubectl("create", "configmap", "authority", "-n", namespace, given)
    server = S3Server(tmp_path / "s3", HOST, (chain, key))
    site: Any = Site(real.plane, real.machine, namespace, server, tiny)  # type: ignore[arg-type]
    yield site
    site.close()
    server.stop()


def api(real: Real) -> client.CoreV1Api:
    configuration = client.Configuration()
    config.load_kube_config(str(real.plane.kubeconfig), client_configuration=configuration)
    return client.CoreV1Api(client.ApiClient(configuration))


def running(site: Site, step: str) -> str:
    """The name of this step's pod, once its log tells of progress."""
    found: list[str] = []

    def works() -> bool:
        jobs = {j["metadata"]["annotations"]["expunge.dev/step"]: j["metadata"]["name"] for j in site.get("jobs")}
        pods = [
            p for p in site.get("pods") if p["metadata"]["labels"].get("batch.kubernetes.io/job-name") == jobs.get(step)
        ]
        found[:] = [p["metadata"]["name"] for p in pods if p["status"]["phase"] == "Running"]
        return bool(found) and '"progress"' in site.plane.kubectl("logs", found[0], "-n", site.namespace)

    until(works, 120)
    return found[0]


def as_the_tests_node_would_say(pod: dict[str, Any]) -> None:
    """What node.py tells of pods, in whose place the other tests put real ones."""
    status = pod["status"]
    (container,) = status["containerStatuses"]
    told = node.status_of(pod["spec"]["containers"][0], status["phase"], container["state"], status["startTime"])
    assert told.keys() <= status.keys()
    (mine,) = told.pop("containerStatuses")
    assert mine.keys() <= container.keys()
    assert {k: mine[k] for k in ("name", "ready", "restartCount", "started")} == {
        k: container[k] for k in ("name", "ready", "restartCount", "started")
    }
    theirs = {c["type"]: (c["status"], c.get("reason", "")) for c in status["conditions"]}
    assert {c["type"]: (c["status"], c["reason"]) for c in told["conditions"]}.items() <= theirs.items()


@pytest.mark.timeout(1800)
def test_the_quickstart_in_real_pods(site: Site) -> None:
    site.file = QUICKSTART
    run = site.begin("run", *SMALL)
    out, err = run.communicate(timeout=1500)
    assert run.returncode == 0, err
    models = [line.split()[0] for line in out.splitlines()[1:] if line and line[0].isalpha()]
    assert models[:5] == ["base", "over", "under", "pooled", "merged"]
    assert set(attempts(site.objects).values()) == {1}
    pods = {p["metadata"]["labels"]["batch.kubernetes.io/job-name"]: p for p in site.get("pods")}
    assert {p["status"]["phase"] for p in pods.values()} == {"Succeeded"}
    over, under = (pods[site.job(f"finetune {n}")["metadata"]["name"]]["status"] for n in ("over", "under"))
    ends = [s["containerStatuses"][0]["state"]["terminated"] for s in (over, under)]
    assert max(e["startedAt"] for e in ends) <= min(e["finishedAt"] for e in ends), "side by side"
    assert {e["reason"] for e in ends} == {"Completed"}
    for pod in pods.values():
        as_the_tests_node_would_say(pod)


def evict(real: Real, site: Site, name: str) -> None:
    body = client.V1Eviction(metadata=client.V1ObjectMeta(name=name, namespace=site.namespace))
    api(real).create_namespaced_pod_eviction(name, site.namespace, body)


def delete(real: Real, site: Site, name: str) -> None:
    real.plane.kubectl("delete", "pod", name, "-n", site.namespace, "--wait=false")


def restart_the_kubelet(real: Real, site: Site, name: str) -> None:
    real.machine.end_kubelet()
    real.machine.begin_kubelet(real.plane)


@pytest.fixture(scope="session")
def made() -> list[dict[str, str]]:
    """What each disturbed run of the same experiment has made."""
    return []


@pytest.mark.parametrize(("what", "resumes"), [(restart_the_kubelet, False), (evict, True), (delete, True)])
def test_whatever_happens_to_its_pod_the_artifacts_are_the_same(
    site: Site, real: Real, made: list[dict[str, str]], what: Callable[[Real, Site, str], None], resumes: bool
) -> None:
    """The step under which the kubelet goes and comes back is not disturbed; the others go on from their checkpoint."""
    run = site.begin("run", *LONGER, *SMALL)
    what(real, site, running(site, "memorize"))
    _, err = run.communicate(timeout=300)
    assert run.returncode == 0, err
    counts = sorted(attempts(site.objects).values())
    assert counts[:-1] == [1] * (len(counts) - 1)
    assert counts[-1] == (2 if resumes else 1)
    assert bool(site.resumed("memorize")) == resumes
    made.append(weights(site.objects))
    assert made[-1] == made[0]


def test_an_attempt_that_wakes_up_after_another_has_finished(site: Site) -> None:
    """The other one ran outside of the cluster: one node can run no second pod while it is cut off."""
    run = site.begin("run", *LONGER, *SMALL)
    name = running(site, "memorize")
    uid = next(p["metadata"]["uid"] for p in site.get("pods") if p["metadata"]["name"] == name)
    frozen = [int(p.name) for p in Path("/proc").glob("[0-9]*") if f"EXPUNGE_ATTEMPT={uid}" in environment_of(p)]
    assert frozen
    for pid in frozen:
        os.kill(pid, signal.SIGSTOP)
    other = site.begin_elsewhere("run", str(site.file), "--store", site.store, *LONGER)
    _, err = other.communicate(timeout=300)
    assert other.returncode == 0, err
    (manifest,) = site.objects.glob("artifacts/memorize/*/manifest.json")
    before = manifest.read_text()
    assert uid not in before
    for pid in frozen:
        os.kill(pid, signal.SIGCONT)
    _, err = run.communicate(timeout=300)
    assert run.returncode == 0, err
    assert manifest.read_text() == before
    assert "done: note another attempt was first" in site.command("logs", "memorize", *LONGER, *SMALL).stdout


def environment_of(process: Path) -> str:
    try:
        return (process / "environ").read_bytes().decode(errors="replace")
    except OSError:  # it has just ended
        return ""


def test_a_real_limit_of_memory(site: Site) -> None:
    little = ("--set", "resources.memorize.memory=0.1Gi")
    run = site.begin("run", *SMALL, *little)
    said = wait_for(run, "FAILED")
    assert "out of memory at 0.1Gi: raise resources.memorize.memory" in said
    assert run.wait() == 1
    assert site.get("jobs") == []
    until(lambda: site.get("pods") == [])
    logs = site.command("logs", "memorize", *SMALL, *little).stdout.splitlines()
    assert logs[-1].startswith("failed: out of memory at 0.1Gi: raise resources.memorize.memory"), (
        "with Job and pod gone"
    )


def test_an_image_that_is_not_there(site: Site) -> None:
    run = site.begin("run", *SMALL, "--image", "localhost/nothing:1")
    said = wait_for(run, "cannot start")
    assert "ErrImagePull" in said or "ImagePullBackOff" in said
    as_the_tests_node_would_say(site.get("pods")[0])
    assert site.command("cancel", *SMALL).returncode == 0


def test_a_secret_that_is_not_there(site: Site) -> None:
    run = site.begin("run", *SMALL, "--secret", "none")
    assert 'secret "none" not found' in wait_for(run, "cannot start").splitlines()[-1]
    assert site.command("cancel", *SMALL).returncode == 0


def test_the_chart_and_its_operator(secure: Site, real: Real, tmp_path: Path) -> None:
    """Installed by helm, in pods with their own accounts; an experiment applied, watched, deleted, and the operator
    upgraded meanwhile. The store's certificate is signed privately.
    """
    site = secure
    real.install(f"s3://{BUCKET}", site.namespace, "credentials", "authority")
    tested = helm("test", "expunge", "--namespace", site.namespace, "--timeout=90s", plane=real.plane)
    assert "Phase:          Succeeded" in tested.stdout, tested.stdout + tested.stderr
    given = experiment(site)
    given["spec"]["resources"] = {
        k: {"cpu": 1, "memory": "3Gi", "disk": "2Gi"} for k in ("stage", "memorize", "finetune", "merge", "evaluate")
    }
    apply(site, given)
    until(lambda: status(site).get("steps", "").startswith("1/"), 120)
    real.install(f"s3://{BUCKET}", site.namespace, "credentials", "authority", {"operator.maxJobs": "100"})
    operators = [
        p for p in site.get("pods") if p["metadata"]["labels"].get("app.kubernetes.io/component") == "operator"
    ]
    assert ["--max-jobs=100" in p["spec"]["containers"][0]["args"] for p in operators] == [True], "the new one alone"
    assert not status(site)["steps"].startswith("11/"), "it was at work"
    found = wait_until(site, "Complete", seconds=300)
    assert set(attempts(site.objects).values()) == {1}
    assert re.fullmatch(r"merged \d\.\d{3}", found["best"])
    assert found["steps"] == "11/11"
    report = site.job("report")["spec"]["template"]["spec"]["containers"][0]
    assert report["image"] == "localhost/expunge-jobs:test", "which has numpy"
    run_a_model_of_the_hub(site, real, given, tmp_path)
    site.plane.kubectl("delete", "experiments", "--all", "-n", site.namespace)
    until(lambda: site.get("jobs") == [], 60)
    assert helm("uninstall", "expunge", "--namespace", site.namespace, plane=real.plane).returncode == 0


def run_a_model_of_the_hub(site: Site, real: Real, given: dict[str, Any], tmp_path: Path) -> None:
    """By the shipped images alone: the operator has no huggingface_hub. On the way a real kubelet reads a user's
    dollars.
    """
    (model,) = site.objects.glob("artifacts/memorize/*/attempts/*/model")
    hub = Hub("org/tiny", shutil.copytree(model, tmp_path / "hub"), private=False, host=HOST)
    word = "$(AWS_SECRET_ACCESS_KEY) $$(HOME) $$"
    try:
        real.install(f"s3://{BUCKET}", site.namespace, "credentials", "authority", {"hub.endpoint": hub.url})
        spec = {k: v for k, v in given["spec"].items() if k != "memorize"}
        spec |= {"model": "hf://org/tiny", "data": spec["data"] | {"separator": word}}
        apply(site, given | {"metadata": given["metadata"] | {"name": "hub"}, "spec": spec})
        found = wait_until(site, "Complete", "hub", seconds=300)
    finally:
        hub.stop()
    assert found["steps"] == "11/11"
    assert sorted(hub.asked) == sorted(f.name for f in hub.folder.iterdir()), "once, by one step"
    read = [json.loads(f.read_text())["task"] for f in site.objects.glob("artifacts/finetune/*/manifest.json")]
    assert [t["data"]["separator"] for t in read].count(word) == 2
    secret = SECRET_KEY.encode()
    assert not [f for f in site.objects.rglob("*.json*") if secret in f.read_bytes()]


def test_a_disk_that_is_full(site: Site) -> None:
    """The step counts for itself, and ends before the kubelet ends it."""
    long = ("--set", "memorize.epochs=4000", "--set", "memorize.stop_at=null")
    run = site.begin("run", *SLOWER, *SMALL, *long, "--set", "resources.memorize.disk=8Ki")
    said = wait_for(run, "FAILED")
    assert "raise resources.memorize.disk" in said.splitlines()[-1]
    assert run.wait() == 1


def test_a_disk_filled_at_once(site: Site, real: Real) -> None:
    """The step has no time for a word: the kubelet evicts it, which is tried once and not again for ever."""
    fill = "#!/bin/sh\\nhead -c 50000000 /dev/zero > /scratch/full\\nsleep 1000\\n"
    real.machine.bring(
        images.build_from("fills", f"RUN printf '{fill}' > /usr/bin/python && chmod 755 /usr/bin/python")
    )
    run = site.begin("run", *SMALL, "--image", "localhost/fills:1", "--set", "resources.memorize.disk=8Mi")
    said = wait_for(run, "FAILED")
    assert "memorize: used more disk than 8Mi: raise resources.memorize.disk" in said.splitlines()[-1]
    assert run.wait() == 1
    assert len(site.get("pods")) <= 2


def test_an_exit_code_that_is_wrong(site: Site, real: Real) -> None:
    """The image says 0 and has made nothing: its word is not believed."""
    real.machine.bring(
        images.build_from("says-well", 'RUN printf "#!/bin/sh\\n" > /usr/bin/python && chmod 755 /usr/bin/python')
    )
    run = site.begin("run", *SMALL, "--image", "localhost/says-well:1")
    said = wait_for(run, "FAILED")
    assert "memorize: completed without an artifact" in said.splitlines()[-1]
    assert run.wait() == 1
