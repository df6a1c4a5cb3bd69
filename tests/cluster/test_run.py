"""Whole runs on a real control plane: the same as on one machine, left, gone on with, cancelled, and refused."""

from __future__ import annotations

import itertools
import json
import signal
from pathlib import Path

import pytest

from tests.support.emulated_node import Node
from tests.support.runs import SLOWER, attempts, wait_for, weights
from tests.support.testsite import Site, until


def test_a_run_on_a_cluster_is_the_same_run(site: Site, finished: Path) -> None:
    done = site.command("run")
    assert done.returncode == 0, done.stderr
    assert weights(site.objects) == weights(finished)
    assert set(attempts(site.objects).values()) == {1}
    jobs = site.get("jobs")
    assert len(jobs) == 11
    again = site.command("run")
    assert again.returncode == 0
    assert again.stdout == done.stdout
    assert {j["metadata"]["uid"] for j in site.get("jobs")} == {j["metadata"]["uid"] for j in jobs}, "nothing ran again"
    states = json.loads(site.command("plan", "-o", "json").stdout)
    assert {s["state"] for s in states["steps"]} == {"done"}
    logs = site.command("logs", "finetune over").stdout
    assert "done" in logs


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_jobs_go_on_without_the_controller(site: Site, finished_slower: Path, number: signal.Signals) -> None:
    process = site.begin("run", *SLOWER)
    wait_for(process, "started   finetune under")
    process.send_signal(number)
    _, err = process.communicate()
    if number == signal.SIGINT:
        assert process.returncode == 130
        assert "The Jobs keep running" in err
        assert "expunge cancel" in err
    uids = {j["metadata"]["uid"] for j in site.get("jobs")}
    done = site.command("run", *SLOWER)
    assert done.returncode == 0, done.stderr
    assert uids <= {j["metadata"]["uid"] for j in site.get("jobs")}, "they were adopted"
    assert weights(site.objects) == weights(finished_slower)
    assert set(attempts(site.objects).values()) == {1}


def test_status_and_logs_are_live(site: Site) -> None:
    process = site.begin("run", *SLOWER)
    pod = site.training("memorize")
    pod.signal(signal.SIGSTOP)
    follower = site.begin("logs", "memorize", "-f", *SLOWER)
    lines = site.command("status", *SLOWER).stdout.splitlines()
    (memorize,) = [line for line in lines if line.split()[:2] == ["running", "memorize"]]
    assert "step " in memorize
    (over,) = [line for line in lines if line.split()[:3] == ["waiting", "finetune", "over"]]
    assert "waiting for memorize" in over
    pod.signal(signal.SIGCONT)
    said, _ = follower.communicate(timeout=60)
    assert "step " in said
    assert said.splitlines()[-1].startswith("done")
    assert process.wait() == 0


def test_cancelled_and_gone_on_with(site: Site, finished_slower: Path) -> None:
    attached = site.begin("run", *SLOWER)
    pod = site.training("finetune over")
    pod.signal(signal.SIGSTOP)
    done = site.command("cancel", *SLOWER)
    assert done.returncode == 0, done.stderr
    assert "deleted" in done.stderr
    pod.signal(signal.SIGCONT)
    _, err = attached.communicate(timeout=60)
    assert attached.returncode == 130, err
    assert "this run was cancelled" in err
    until(lambda: not [p for p in site.get("pods") if p["status"].get("phase") in ("Pending", "Running")])
    done = site.command("run", *SLOWER)
    assert done.returncode == 0, done.stderr
    assert weights(site.objects) == weights(finished_slower)
    assert site.resumed("finetune over"), "it went on from its checkpoint"


def test_two_side_by_side_on_two_gpus_and_one_after_the_other_on_one(site: Site, node: Node) -> None:
    assert site.command("run", "--set", "merge.density=0.7").returncode == 0
    times = {}
    for kind in ("over", "under"):
        (pod,) = [
            p
            for p in site.get("pods")
            if p["metadata"]["labels"]["batch.kubernetes.io/job-name"]
            == site.job(f"finetune {kind}")["metadata"]["name"]
        ]
        ended = pod["status"]["containerStatuses"][0]["state"]["terminated"]
        times[kind] = (pod["metadata"]["creationTimestamp"], ended["finishedAt"])
    assert times["over"][0] < times["under"][1]
    assert times["under"][0] < times["over"][1]
    earlier = {j["metadata"]["name"] for j in site.get("jobs")}
    node.set_gpus(1)
    try:
        process = site.begin("run", "--set", "seed=7", *SLOWER)
        said = wait_for(process, "Insufficient nvidia.com/gpu")
        assert "waiting for a node: 0/1 nodes are available" in said.splitlines()[-1]
        assert process.wait() == 0
        later = {j["metadata"]["name"] for j in site.get("jobs")} - earlier
        pods = [
            (end["startedAt"], end["finishedAt"])
            for p in site.get("pods")
            if "nvidia.com/gpu" in p["spec"]["containers"][0]["resources"]["limits"]
            and p["metadata"]["labels"]["batch.kubernetes.io/job-name"] in later
            for end in [p["status"]["containerStatuses"][0]["state"]["terminated"]]
        ]
        assert len(pods) >= 9
        assert all(a[1] <= b[0] for a, b in itertools.pairwise(sorted(pods))), "one after the other"
    finally:
        node.set_gpus(2)


def test_a_job_of_that_name_that_is_not_ours(site: Site) -> None:
    plan = json.loads(site.command("plan", "-o", "json").stdout)
    key = next(s["key"] for s in plan["steps"] if s["kind"] == "memorize")
    name = f"expunge-memorize-{key[:16]}"
    site.plane.kubectl("create", "job", name, "--image=registry.test/other", "-n", site.namespace)
    done = site.command("run")
    assert done.returncode == 1
    assert f"a Job {name} is there already and is not ours" in done.stderr
    assert len(site.get("jobs")) == 1


def test_a_step_that_cannot_succeed_says_why_and_is_tried_by_the_next_run(site: Site) -> None:
    wrong = ("--set", "specialists.over.learning_rate=1.0e+12")
    done = site.command("run", *wrong)
    assert done.returncode == 1
    (line,) = [x for x in done.stderr.splitlines() if x.startswith("FAILED") and "finetune over" in x]
    assert "loss" in line
    uid = site.job("finetune over")["metadata"]["uid"]
    status = site.command("status", *wrong).stdout
    assert line.partition(": ")[2] in status
    again = site.command("retry", *wrong)
    assert again.returncode == 1
    assert site.job("finetune over")["metadata"]["uid"] != uid, "made anew for the new run"


def test_an_image_that_is_not_there_is_told_while_it_waits(site: Site) -> None:
    process = site.begin("run", "--image", "registry.test/missing:1")
    said = wait_for(process, "cannot start")
    assert "ImagePullBackOff" in said.splitlines()[-1]
    process.send_signal(signal.SIGINT)
    process.communicate()
    assert "ImagePullBackOff" in site.command("status").stdout
    assert site.command("cancel").returncode == 0
    until(lambda: not site.get("pods"))


def test_a_quota_is_waited_for_like_a_queue(site: Site) -> None:
    quota = ["create", "quota", "one", "--hard=requests.nvidia.com/gpu=1", "-n", site.namespace]
    site.plane.kubectl(*quota)
    process = site.begin("run", *SLOWER)
    said = wait_for(process, "exceeded quota: one")
    assert "finetune" in said.splitlines()[-1]
    (pod,) = [p for p in site.node.pods.values() if p.namespace == site.namespace and not p.done.is_set()]  # type: ignore[union-attr]
    pod.signal(signal.SIGSTOP)
    assert "its pod is refused: " in site.command("status", *SLOWER).stdout, "as the run itself says"
    pod.signal(signal.SIGCONT)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert "merged" in out
    assert "FAILED" not in said + err
