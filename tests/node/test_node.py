"""Our images in real pods: a real kubelet, container runtime, limits and network, as root."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import images
import pytest
import trustme
from chart import helm
from kubernetes import client, config
from machine import HOST, SMALL, Real
from operating import apply, experiment, wait_until
from runs import SLOWER, attempts, tiny, wait_for
from s3fixtures import credentials
from s3server import BUCKET, S3Server
from testsite import Site, until

__all__ = ["credentials", "tiny"]


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
    """Before a store whose certificate is signed by nobody that the images know: by the ConfigMap ``authority`` alone."""
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


def test_a_run_in_real_pods(site: Site) -> None:
    done = site.command("run", *SMALL)
    assert done.returncode == 0, done.stderr
    assert "merged" in done.stdout
    assert set(attempts(site.objects).values()) == {1}
    pods = {p["metadata"]["labels"]["batch.kubernetes.io/job-name"]: p for p in site.get("pods")}
    assert {p["status"]["phase"] for p in pods.values()} == {"Succeeded"}
    over, under = (pods[site.job(f"finetune {n}")["metadata"]["name"]]["status"] for n in ("over", "under"))
    ends = [s["containerStatuses"][0]["state"]["terminated"] for s in (over, under)]
    assert max(e["startedAt"] for e in ends) <= min(e["finishedAt"] for e in ends), "side by side"


def test_evicted_by_the_api_it_goes_on_from_its_checkpoint(site: Site, real: Real) -> None:
    run = site.begin("run", *SLOWER, *SMALL, "--set", "memorize.epochs=400")
    name = running(site, "memorize")
    body = client.V1Eviction(metadata=client.V1ObjectMeta(name=name, namespace=site.namespace))
    api(real).create_namespaced_pod_eviction(name, site.namespace, body)
    _, err = run.communicate(timeout=300)
    assert run.returncode == 0, err
    assert site.resumed("memorize")


def test_a_real_limit_of_memory(site: Site) -> None:
    run = site.begin("run", *SMALL, "--set", "resources.memorize.memory=0.1Gi")
    said = wait_for(run, "FAILED")
    assert "out of memory at 0.1Gi: raise resources.memorize.memory" in said
    assert run.wait() == 1


def test_an_image_that_is_not_there(site: Site) -> None:
    run = site.begin("run", *SMALL, "--image", "localhost/nothing:1")
    said = wait_for(run, "cannot start")
    assert "ErrImagePull" in said or "ImagePullBackOff" in said
    assert site.command("cancel", *SMALL).returncode == 0


def test_the_kubelet_goes_and_comes_back_under_a_running_step(site: Site, real: Real) -> None:
    run = site.begin("run", *SLOWER, *SMALL, "--set", "memorize.epochs=400")
    running(site, "memorize")
    real.machine.end_kubelet()
    real.machine.begin_kubelet(real.plane)
    _, err = run.communicate(timeout=300)
    assert run.returncode == 0, err
    assert set(attempts(site.objects).values()) == {1}


def test_the_chart_and_its_operator(secure: Site, real: Real) -> None:
    """Installed by helm, in pods with their own accounts; an experiment applied, watched, deleted. The store's certificate is
    signed privately."""
    site = secure
    real.install(f"s3://{BUCKET}", site.namespace, "credentials", "authority")
    tested = helm("test", "expunge", "--namespace", site.namespace, "--timeout=90s", plane=real.plane)
    assert "Phase:          Succeeded" in tested.stdout, tested.stdout + tested.stderr
    given = experiment(site)
    given["spec"]["resources"] = {
        k: {"cpu": 1, "memory": "3Gi", "disk": "2Gi"} for k in ("memorize", "finetune", "merge", "evaluate")
    }
    apply(site, given)
    found = wait_until(site, "Complete", seconds=300)
    assert re.fullmatch(r"merged \d\.\d{3}", found["best"])
    assert found["steps"] == "11/11"
    report = site.job("report")["spec"]["template"]["spec"]["containers"][0]
    assert report["image"] == "localhost/expunge-controller:test"
    site.plane.kubectl("delete", "experiment", "tiny", "-n", site.namespace)
    until(lambda: site.get("jobs") == [], 60)
    assert helm("uninstall", "expunge", "--namespace", site.namespace, plane=real.plane).returncode == 0


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
