"""Whatever happens to pods, Jobs, the API server and the store: the same artifacts, and no finished step run again."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable
from pathlib import Path

import boto3
import pytest
from kubernetes import client

from tests.support.control_plane import ControlPlane
from tests.support.emulated_node import Node, Pod
from tests.support.faults import FaultProxy, answer, corrupt, cut, refusal, silent, truncate
from tests.support.runs import SLOWER, attempts, wait_for, weights
from tests.support.s3server import BUCKET, S3Server
from tests.support.testsite import Site, until


def evict(node: Node, pod: Pod) -> None:
    body = client.V1Eviction(metadata=client.V1ObjectMeta(name=pod.name, namespace=pod.namespace))
    node.api.create_namespaced_pod_eviction(pod.name, pod.namespace, body)


def delete(node: Node, pod: Pod) -> None:
    node.api.delete_namespaced_pod(pod.name, pod.namespace)


def kill(node: Node, pod: Pod) -> None:
    pod.signal(signal.SIGKILL)


def lose(node: Node, pod: Pod) -> None:
    """The node is cut off: the pod is given up, as the pod garbage collector does it, and its process goes on."""
    pod.lost = True
    gone = {"type": "DisruptionTarget", "status": "True", "reason": "DeletionByPodGC", "message": "node lost"}
    node.api.patch_namespaced_pod_status(pod.name, pod.namespace, {"status": {"phase": "Failed", "conditions": [gone]}})
    node.api.delete_namespaced_pod(pod.name, pod.namespace, grace_period_seconds=0)


def others(site: Site, *steps: str) -> set[int]:
    """Attempts of every step but these."""
    keys = {site.job(s)["metadata"]["annotations"]["expunge.dev/key"] for s in steps}
    return {n for f, n in attempts(site.objects).items() if f.rpartition("/")[2] not in keys}


def left_behind(site: Site) -> list[str]:
    """What a run that is over has no use for: checkpoints, unfinished uploads, pods at work."""
    checkpoints = [p for p in site.objects.glob("artifacts/*/*/attempts/*/checkpoints/**/*") if p.is_file()]
    api = boto3.client("s3", endpoint_url=site.server.url)
    uploads = api.list_multipart_uploads(Bucket=BUCKET, Prefix=site.namespace).get("Uploads", [])
    pods = [p["metadata"]["name"] for p in site.get("pods") if p["status"]["phase"] in ("Pending", "Running")]
    return [*map(str, checkpoints), *(u["Key"] for u in uploads), *pods]


@pytest.mark.parametrize(("what", "resumes"), [(evict, True), (delete, True), (kill, False), (lose, False)])
def test_a_pod_that_goes(
    site: Site, node: Node, finished_slower: Path, what: Callable[[Node, Pod], None], resumes: bool
) -> None:
    run = site.fork("run", *SLOWER)
    pod = site.training("finetune over")
    pod.signal(signal.SIGSTOP)
    what(node, pod)
    if what is not lose:
        pod.signal(signal.SIGCONT)
    run.join()
    assert run.exitcode == 0, site.said.read_text()
    if what is lose:  # it wakes up after its replacement has finished
        assert not pod.done.is_set()
        pod.signal(signal.SIGCONT)
        until(pod.done.is_set)
        assert "another attempt was first" in pod.log.read_text()
    assert weights(site.objects) == weights(finished_slower)
    assert others(site, "finetune over") == {1}
    assert bool(site.resumed("finetune over")) == resumes
    assert left_behind(site) == []


def test_a_job_that_somebody_deletes(site: Site, finished_slower: Path) -> None:
    run = site.fork("run", *SLOWER)
    pod = site.training("finetune over")
    pod.signal(signal.SIGSTOP)
    name = site.job("finetune over")["metadata"]["name"]
    site.plane.kubectl("delete", "job", name, "-n", site.namespace, "--wait=false")
    pod.signal(signal.SIGCONT)
    run.join()
    assert run.exitcode == 0, site.said.read_text()
    assert "finetune over: its Job is gone; starting it again" in site.said.read_text()
    assert weights(site.objects) == weights(finished_slower)
    assert others(site, "finetune over") == {1}


def test_jobs_that_are_tidied_away_at_once(site: Site, finished_slower: Path) -> None:
    run = site.fork("run", *SLOWER)
    for step in ("memorize", "finetune over"):
        site.training(step)
        site.plane.kubectl(
            "patch",
            "job",
            site.job(step)["metadata"]["name"],
            "-n",
            site.namespace,
            "--type=merge",
            "-p",
            '{"spec": {"ttlSecondsAfterFinished": 1}}',
        )
    run.join()
    assert run.exitcode == 0, site.said.read_text()
    assert weights(site.objects) == weights(finished_slower)
    assert set(attempts(site.objects).values()) == {1}


def test_a_queue_lets_it_in_and_takes_its_place_again(site: Site, finished_slower: Path) -> None:
    """Suspended and resumed by patching ``spec.suspend``, as Kueue does."""

    def suspend(step: str, value: str) -> None:
        name = site.job(step)["metadata"]["name"]
        patch = f'{{"spec": {{"suspend": {value}}}}}'
        site.plane.kubectl("patch", "job", name, "-n", site.namespace, "--type=merge", "-p", patch)

    run = site.begin("run", *SLOWER, "--set", "kubernetes.queue=research")
    wait_for(run, "memorize: suspended: waits for room in the queue 'research'")
    assert site.job("memorize")["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "research"
    suspend("memorize", "false")
    pod = site.training("memorize")
    pod.signal(signal.SIGSTOP)
    suspend("memorize", "true")
    until(lambda: pod.ending)
    pod.signal(signal.SIGCONT)
    until(pod.done.is_set)
    suspend("memorize", "false")
    while run.poll() is None:  # room for every Job that comes
        for job in site.get("jobs"):
            if job["spec"].get("suspend"):
                suspend(job["metadata"]["annotations"]["expunge.dev/step"], "false")
        time.sleep(0.3)
    _, err = run.communicate()
    assert run.returncode == 0, err
    assert site.resumed("memorize")
    assert weights(site.objects) == weights(finished_slower)
    assert others(site, "memorize") == {1}


def test_out_of_memory_says_what_to_raise_and_is_not_tried_in_vain(site: Site) -> None:
    run = site.begin("run", *SLOWER)
    site.training("finetune over").kill_for_memory()
    _, err = run.communicate()
    assert run.returncode == 1
    (line,) = [x for x in err.splitlines() if x.startswith("FAILED")]
    assert line.startswith(
        "FAILED    finetune over: out of memory at 16Gi: raise resources.finetune.memory, or lower batch_size (accum"
    )
    assert not [j for j in site.get("jobs") if j["metadata"]["annotations"]["expunge.dev/step"] == "finetune over"]
    assert "out of memory at 16Gi" in site.command("status", *SLOWER).stdout
    said = site.command("logs", "finetune over", *SLOWER).stdout.splitlines()
    assert said[-1].startswith("failed: out of memory at 16Gi"), "though Job and pod are gone"
    assert "last heard: step " in said[-1]
    (record,) = [json.loads(file.read_text()) for file in site.objects.glob("experiments/*/*/*/failed/*.json")]
    assert (record["pod"]["exit_code"], record["pod"]["reason"]) == (137, "OOMKilled")
    assert '"event": "progress"' in record["pod"]["message"]
    assert site.command("logs", "finetune over", "-f", *SLOWER).stdout.splitlines()[-1] == said[-1]
    # With more memory it is another Job; the pod of the one that failed is no verdict on it.
    again = site.command("run", *SLOWER, "--set", "resources.finetune.memory=32Gi")
    assert again.returncode == 0, again.stderr


def test_the_api_server_and_the_store_go_and_come_back(
    site: Site, plane: ControlPlane, server: S3Server, finished_slower: Path
) -> None:
    run = site.begin("run", *SLOWER)
    site.training("memorize")
    plane.end("kube-apiserver")
    server.stop()
    said = wait_for(run, "does not answer")
    time.sleep(30)  # memorize ends meanwhile, and waits with its artifact
    server.start()
    plane.begin("kube-apiserver")
    _, err = run.communicate()
    assert run.returncode == 0, said + err
    assert "answered again" in err
    assert weights(site.objects) == weights(finished_slower)
    assert set(attempts(site.objects).values()) == {1}
    assert left_behind(site) == []


def test_a_failed_job_that_is_tidied_away_at_once(site: Site) -> None:
    """What the step has said of its end is in the store."""
    wrong = ("--set", "memorize.learning_rate=1.0e+12", "--set", "memorize.epochs=40")
    run = site.begin("run", *wrong)
    until(lambda: bool(site.get("jobs")))
    name = site.job("memorize")["metadata"]["name"]
    site.plane.kubectl(
        "patch", "job", name, "-n", site.namespace, "--type=merge", "-p", '{"spec": {"ttlSecondsAfterFinished": 1}}'
    )
    _, err = run.communicate(timeout=300)
    assert run.returncode == 1
    (line,) = [x for x in err.splitlines() if x.startswith("FAILED")]
    assert "memorize: the loss is nan" in line or "memorize: the loss is inf" in line
    until(lambda: site.get("jobs") == [])
    reason = line.partition("memorize: ")[2]
    assert reason in site.command("status", *wrong).stdout
    assert f"failed: {reason}" in site.command("logs", "memorize", *wrong).stdout.splitlines()


def test_faults_on_the_way(site: Site, plane: ControlPlane, server: S3Server, finished: Path) -> None:
    """Watches that are cut, expired, or silent for ever; calls that are refused for a while; a store that is busy,
    and whose answers to the pods are cut off or spoilt.
    """
    cluster, store = FaultProxy(plane.url, plane.context), FaultProxy(server.url)
    site.environment |= {"KUBECONFIG": str(plane.kubeconfig_by(cluster.url)), "AWS_ENDPOINT_URL_S3": store.url}
    site.give_pods({"AWS_ENDPOINT_URL_S3": store.url})
    cluster.inject(silent(100), lambda r: "pods?watch" in r.path)
    cluster.inject(cut, lambda r: r.method == "POST")
    cluster.inject(refusal(410, "Expired"), lambda r: "jobs?watch" in r.path)
    cluster.inject(refusal(429, "TooManyRequests", after=1), lambda r: r.method == "POST", times=2)
    cluster.inject(refusal(500, "InternalError"), lambda r: r.method == "POST", times=6)
    store.inject(answer(503, "SlowDown"), lambda r: "manifest.json" in r.path, times=5)
    store.inject(answer(503, "SlowDown"), lambda r: r.method == "PUT" and "model.safetensors" in r.path, times=2)
    store.inject(truncate, lambda r: r.method == "GET" and "model.safetensors" in r.path)
    store.inject(corrupt, lambda r: r.method == "GET" and "adapter_model.safetensors" in r.path)
    try:
        done = site.command("run")
    finally:
        cluster.close()
        store.close()
    assert done.returncode == 0, done.stderr
    assert weights(site.objects) == weights(finished)
    assert set(attempts(site.objects).values()) == {1}
    posts = [r for r in cluster.seen if r.method == "POST"]
    assert len(posts) == 11 + 9
    assert left_behind(site) == []
