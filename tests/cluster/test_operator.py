"""Experiments as custom resources: applied with kubectl, run by the shipped operator before a real control plane."""

from __future__ import annotations

import itertools
import json
import re
import signal
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import yaml
from expunge_jobs.inputs import builtin
from kubernetes import client

from tests.support.chart import of_kind, rendered
from tests.support.control_plane import ControlPlane
from tests.support.emulated_node import Node
from tests.support.faults import FaultProxy, cut
from tests.support.operating import (
    FEW,
    Operating,
    apply,
    events,
    experiment,
    install_definition,
    slower,
    status,
    wait_until,
)
from tests.support.runs import attempts, wait_for, weights
from tests.support.testsite import Site, until


@pytest.fixture(scope="module", autouse=True)
def definition(plane: ControlPlane) -> None:
    install_definition(plane)


@pytest.fixture
def operator(site: Site) -> Iterator[Operating]:
    operating = Operating(site)
    operating.begin()
    yield operating
    operating.close()


def patch(site: Site, spec: dict[str, Any], name: str = "tiny") -> None:
    site.plane.kubectl(
        "patch", "experiment", name, "-n", site.namespace, "--type=merge", "-p", json.dumps({"spec": spec})
    )


def unfinished(site: Site) -> list[str]:
    """Steps whose Jobs have not ended."""
    return [
        j["metadata"]["annotations"]["expunge.dev/step"]
        for j in site.get("jobs")
        if not any(c["type"] in ("Complete", "Failed") for c in j["status"].get("conditions", []))
    ]


def test_applied_it_runs_to_its_end(site: Site, operator: Operating, finished: Path) -> None:
    apply(site, experiment(site))
    site.plane.kubectl("wait", "--for=condition=Complete", "experiment/tiny", "-n", site.namespace, "--timeout=120s")
    found = status(site)
    assert (found["phase"], found["steps"], found["trials"]) == ("Complete", "11/11", "1/1")
    assert found["observedGeneration"] == 1
    assert {c["type"]: c["status"] for c in found["conditions"]} == {
        "Complete": "True",
        "Failed": "False",
        "Progressing": "False",
    }
    story = events(site)
    said = dict(story)
    assert {"Planned", "Started", "Finished", "Complete"} <= said.keys()
    told = " ".join(message for _, message in story)
    assert all(name in told for name in ("memorize", "finetune over", "finetune under", "merge", "report"))
    assert any(reason == "Finished" and "; started " in message for reason, message in story), "one Event for both"
    best = found["best"]
    assert re.fullmatch(r"merged 0\.\d{3}", best)
    assert said["Complete"] == f"every model is evaluated; best: {best}"
    assert {j["metadata"]["ownerReferences"][0]["name"] for j in site.get("jobs")} == {"tiny"}
    assert weights(site.objects) == weights(finished), "the same keys and bits as on one machine"
    assert operator.lines()[0]["message"] == "watching"
    assert any(x.get("experiment") == "tiny" and x["message"].startswith("Complete") for x in operator.lines())
    about = {(x["step"], x["reason"]) for x in operator.lines() if "step" in x}
    assert {("merge", "Started"), ("merge", "Finished"), ("finetune over", "Finished")} <= about
    described = site.plane.kubectl("describe", "experiment", "tiny", "-n", site.namespace)
    assert "every model is evaluated" in described

    shown = site.plane.kubectl("get", "experiments", "-n", site.namespace)
    assert "Complete" in shown
    assert "11/11" in shown
    site.plane.kubectl("delete", "experiment", "tiny", "-n", site.namespace)
    until(lambda: site.get("jobs") == [] and site.get("pods") == [], 60)
    assert len(attempts(site.objects)) == 11, "artifacts stay"


def test_what_a_file_may_not_say_is_a_condition(site: Site, operator: Operating) -> None:
    wrong = experiment(site)
    wrong["spec"]["specialists"]["over"]["objective"] = {"nop": 1.0}
    wrong["spec"]["data"]["forget"] = "file:///etc/passwd"
    apply(site, wrong)
    failed = next(c for c in wait_until(site, "Invalid")["conditions"] if c["type"] == "Failed")
    assert failed["status"] == "True"
    assert "spec.specialists.over.objective: " in failed["message"]
    assert "npo" in failed["message"]
    wrong["spec"]["specialists"]["over"].pop("objective")
    site.plane.kubectl("delete", "experiment", "tiny", "-n", site.namespace)
    apply(site, wrong)
    failed = next(c for c in wait_until(site, "Invalid")["conditions"] if c["type"] == "Failed")
    assert (
        "spec.data.forget: 'file:///etc/passwd' is not to be read from here; allowed: builtin://" in failed["message"]
    )
    assert site.get("jobs") == []


@pytest.mark.parametrize(
    "change",
    [
        {
            "specialists": {
                "over": {"preset": "over_code", "objective": {"nop": 1.0}},
                "under": {"objective": {"npa": 1.0}},
            }
        },
        {"data": {"forget": "builtin://people/forgot", "retain": "builtin://people/retain"}},
        {"merge": {"method": "tise"}},
    ],
)
def test_its_words_are_the_commands(site: Site, operator: Operating, tmp_path: Path, change: dict[str, Any]) -> None:
    wrong = experiment(site, **change)
    file = tmp_path / "wrong.yaml"
    file.write_text(yaml.safe_dump(wrong))
    apply(site, wrong)
    failed = next(c for c in wait_until(site, "Invalid")["conditions"] if c["type"] == "Failed")
    command = site.begin_elsewhere("plan", str(file), "--store", site.store)
    _, said = command.communicate(timeout=60)
    assert command.returncode == 2
    # The command names the file and the line, the condition the Experiment.
    told = [f"experiment tiny: spec.{line.partition('spec.')[2]}" for line in said.splitlines() if "spec." in line]
    assert failed["message"] == "; ".join(told)


def test_artifacts_that_a_step_finds_damaged_are_made_anew_by_one_retry(site: Site, operator: Operating) -> None:
    apply(site, experiment(site))
    wait_until(site, "Complete")
    whole = weights(site.objects)
    for file in site.objects.glob("artifacts/finetune/*/attempts/*/adapter/adapter_model.safetensors"):
        file.write_bytes(file.read_bytes()[:-1] + b"?")
    patch(site, {"merge": {"method": "ties", "density": 0.3}})
    failed = next(c for c in wait_until(site, "Failed")["conditions"] if c["type"] == "Failed")
    assert "merge: damaged artifact: " in failed["message"]
    assert "`expunge retry` makes it anew" in failed["message"]
    assert site.on_cluster("retry", "experiment/tiny").returncode == 0
    wait_until(site, "Complete")
    notices = [message for reason, message in events(site) if reason == "Notice"]
    for name in ("over", "under"):
        assert any(f"finetune {name} is made again: damaged artifact" in m for m in notices)
    assert {k: v for k, v in weights(site.objects).items() if k in whole} == whole


def test_suspended_it_starts_nothing_and_resumed_it_goes_on(site: Site, operator: Operating) -> None:
    apply(site, slower(site))
    until(lambda: unfinished(site) == ["memorize"], 60)
    patch(site, {"suspend": True})
    found = wait_until(site, "Suspended")
    until(lambda: unfinished(site) == [], 60)
    until(lambda: status(site)["steps"] == "1/11", 60)
    assert len(site.get("jobs")) == 1
    assert status(site)["reasons"][0]["reason"] == "suspended (spec.suspend)"
    assert ("Suspended", "starts nothing until spec.suspend is false") in events(site)
    assert {c["type"]: c["status"] for c in found["conditions"]}["Progressing"] == "False"
    patch(site, {"suspend": False})
    wait_until(site, "Complete")
    assert ("Resumed", "after Suspended") in events(site)
    assert set(attempts(site.objects).values()) == {1}


def test_cancelled_its_jobs_go_and_tried_again_it_goes_on(site: Site, operator: Operating) -> None:
    apply(site, slower(site))
    site.training("memorize")
    patch(site, {"cancel": True})
    wait_until(site, "Cancelled")
    until(lambda: site.get("jobs") == [], 60)
    done = site.on_cluster("retry", "experiment/tiny")
    assert done.returncode == 0, done.stderr
    wait_until(site, "Complete", seconds=180)
    assert site.resumed("memorize"), "from its checkpoint"


def test_edited_it_ends_what_only_the_old_one_needed(site: Site, operator: Operating) -> None:
    old = slower(site)
    apply(site, old)
    until(lambda: "finetune over" in unfinished(site), 60)
    went = site.job("finetune over")["metadata"]["name"]
    old["spec"]["specialists"]["over"]["learning_rate"] = 2.0e-2
    apply(site, old)
    until(lambda: went not in [j["metadata"]["name"] for j in site.get("jobs")], 60)
    found = wait_until(site, "Complete", seconds=180)
    assert found["observedGeneration"] == 2
    assert attempts(site.objects)[next(s for s in attempts(site.objects) if "memorize" in s)] == 1


def test_killed_and_started_again_it_does_nothing_twice(site: Site, operator: Operating) -> None:
    apply(site, slower(site))
    until(lambda: unfinished(site) == ["memorize"], 60)
    operator.end(signal.SIGKILL)
    until(lambda: unfinished(site) == [], 60)
    operator.begin()
    until(lambda: "finetune under" in unfinished(site), 60)
    operator.end(signal.SIGKILL)
    operator.begin()
    wait_until(site, "Complete", seconds=180)
    assert set(attempts(site.objects).values()) == {1}
    said = [reason for reason, _ in events(site)]
    assert (said.count("Planned"), said.count("Complete")) == (1, 1)


def test_failed_and_applied_with_more_memory_it_goes_on(site: Site, operator: Operating) -> None:
    given = slower(site)
    given["spec"]["resources"] = given["spec"]["resources"] | {"memorize": {"cpu": 2, "memory": "1Gi"}}
    apply(site, given)
    site.training("memorize").kill_for_memory()
    found = wait_until(site, "Failed")
    failed = next(c for c in found["conditions"] if c["type"] == "Failed")
    assert "memorize: out of memory at 1Gi: raise resources.memorize.memory" in failed["message"]
    assert found["reasons"][0]["step"] == "memorize"
    assert ("StepFailed", failed["message"].partition("1 failed: ")[2]) in events(site)
    given["spec"]["resources"]["memorize"]["memory"] = "2Gi"
    apply(site, given)
    wait_until(site, "Complete", seconds=180)


def test_a_failure_is_told_by_the_next_operator_if_the_last_could_not(site: Site, operator: Operating) -> None:
    apply(site, slower(site))
    under = site.training("finetune under")
    under.signal(signal.SIGSTOP)  # so that the experiment goes on
    site.training("finetune over").kill_for_memory()
    until(lambda: any(reason == "StepFailed" for reason, _ in events(site)), 60)
    operator.end(signal.SIGKILL)
    site.plane.kubectl("delete", "events", "--all", "-n", site.namespace)  # as if it had been killed before its word
    operator.begin()
    until(lambda: any(r == "StepFailed" and "finetune over: out of memory" in text for r, text in events(site)), 60)
    under.signal(signal.SIGCONT)


def test_two_that_need_the_same_step_do_it_once_and_one_may_go(site: Site, operator: Operating) -> None:
    apply(site, slower(site, "one"))
    site.training("memorize")
    apply(site, slower(site, "two"))
    until(lambda: status(site, "two").get("phase") == "Running")
    site.plane.kubectl("delete", "experiment", "one", "-n", site.namespace)
    wait_until(site, "Complete", "two", seconds=180)
    counts = attempts(site.objects)
    assert sorted(counts.values())[:-1] == [1] * 10, "only the step that one had begun was begun again"
    assert max(counts.values()) <= 2


def test_no_more_jobs_than_it_may_have(site: Site) -> None:
    operating = Operating(site, "--max-jobs", "1")
    operating.begin()
    try:
        for name in ("one", "two"):
            apply(site, experiment(site, name, seed=1 if name == "one" else 2))
        most, reasons = 0, set()

        def over() -> bool:
            nonlocal most
            reasons.update(r["reason"] for n in ("one", "two") for r in status(site, n).get("reasons", []))
            running = [p for p in site.get("pods") if p["status"]["phase"] in ("Pending", "Running")]
            most = max(most, len(running))
            return all(status(site, n).get("phase") == "Complete" for n in ("one", "two"))

        until(over, 300)
        assert most == 1
        assert "waits for one of 1 Jobs that may be unfinished here at once (maxJobs)" in reasons
    finally:
        operating.close()


def test_two_operators_at_once_are_harmless(site: Site, operator: Operating) -> None:
    other = Operating(site)
    other.begin()
    try:
        apply(site, experiment(site))
        wait_until(site, "Complete")
        assert set(attempts(site.objects).values()) == {1}
    finally:
        other.close()


def test_where_no_operator_watches_it_is_told(site: Site) -> None:
    waiting = site.begin_on_cluster("submit", str(site.file), "--wait", "--set", f"resources={json.dumps(FEW)}")
    said = wait_for(waiting, "no operator has begun it", 90)
    assert f"does one watch namespace {site.namespace}?" in said
    operating = Operating(site)
    operating.begin()
    try:
        assert waiting.wait(120) == 0
    finally:
        operating.close()


def test_a_namespace_that_refuses_it_is_not_the_others_trouble(site: Site) -> None:
    """As one that was deleted, and its Roles with it."""
    operating = Operating(site, "--namespace", "refused")
    operating.begin()
    try:
        assert any(x.get("namespace") == "refused" and "cannot list" in x["message"] for x in operating.lines())
        apply(site, experiment(site))
        wait_until(site, "Complete")
    finally:
        operating.close()


def test_it_says_whether_it_can_work(site: Site, plane: ControlPlane) -> None:
    account = f"system:serviceaccount:{site.namespace}:expunge"
    operating = Operating(site)
    proxy = FaultProxy(plane.url, plane.context_of(account, "system:serviceaccounts"))
    operating.kubeconfig = plane.kubeconfig_by(proxy.url)
    try:
        operating.begin()
        proxy.inject(cut, lambda r: True, times=10**6)
        proxy.drop_streams()
        until(lambda: not operating.answers("/readyz"), 30)
        assert operating.answers("/healthz"), "a new one could do no better"
        proxy.calm()
        until(lambda: operating.answers("/readyz"), 60)
    finally:
        operating.close()
        proxy.close()


def test_by_the_command_from_anywhere(site: Site, operator: Operating, tmp_path: Path) -> None:
    done = site.on_cluster("submit", str(site.file), "--wait", "--set", "resources.merge.cpu=1")
    assert done.returncode == 0, done.stderr
    assert "experiment/tiny created" in done.stderr
    assert "Complete, steps 11/11" in done.stderr
    assert "tiny" in site.on_cluster("list", "experiments").stdout
    table = site.on_cluster("results", "experiment/tiny")
    assert "merged" in table.stdout, table.stderr
    assert "done" in site.on_cluster("status", "experiment/tiny").stdout
    assert "publish" in site.on_cluster("logs", "experiment/tiny", "merge").stdout.splitlines()
    pulled = site.on_cluster("pull", "experiment/tiny", "--to", str(tmp_path / "adapter"))
    assert pulled.returncode == 0, pulled.stderr
    assert (tmp_path / "adapter" / "adapter_model.safetensors").is_file()
    wrong = site.on_cluster("status", "experiment/tniy")
    assert wrong.returncode == 2
    assert "no experiment 'tniy'" in wrong.stderr
    assert "did you mean 'tiny'" in wrong.stderr
    again = site.on_cluster("submit", str(site.file), "--set", "resources.merge.cpu=1")
    assert "changed" in again.stderr


def test_the_command_follows_and_cancels_what_runs_there(site: Site, operator: Operating) -> None:
    apply(site, slower(site))
    site.training("memorize")
    following = site.begin_on_cluster("logs", "experiment/tiny", "memorize", "-f")
    assert following.stdout is not None
    assert following.stdout.readline()
    done = site.on_cluster("cancel", "experiment/tiny")
    assert done.returncode == 0, done.stderr
    wait_until(site, "Cancelled")
    until(lambda: unfinished(site) == [], 60)
    following.communicate(timeout=60)
    assert "cancelled" in site.on_cluster("list", "experiments").stdout.lower()


def test_files_of_this_machine_are_put_into_the_store_first(site: Site, operator: Operating, tmp_path: Path) -> None:
    given = yaml.safe_load(site.file.read_text())
    for name in ("forget", "retain"):
        (tmp_path / f"{name}.jsonl").write_bytes(builtin.read(f"builtin://people/{name}?documents=2"))
        given["spec"]["data"][name] = f"{name}.jsonl"
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump(given))
    refused = site.on_cluster("submit", str(file))
    assert refused.returncode == 2
    assert "--upload" in refused.stderr
    done = site.on_cluster("submit", str(file), "--upload", "--store", site.store, "--wait")
    assert done.returncode == 0, done.stderr
    spec = site.plane.get("experiment", "tiny", "-n", site.namespace)["spec"]
    assert all(spec["data"][name].startswith(f"{site.store}/") for name in ("forget", "retain"))
    assert status(site)["phase"] == "Complete"


def test_a_store_that_is_away_is_waited_for(site: Site, operator: Operating) -> None:
    apply(site, slower(site))
    until(lambda: unfinished(site) == ["memorize"], 60)
    site.server.stop()
    try:
        until(lambda: any(x["level"] == "warning" for x in operator.lines()), 120)
        assert operator.answers("/healthz")
        until(lambda: any(r == "Unavailable" and "is not reachable" in text for r, text in events(site)), 120)
    finally:
        site.server.start()
    wait_until(site, "Complete", seconds=300)
    assert ("Resumed", "after Unavailable") in events(site)


def test_a_retry_while_the_store_is_away_is_a_retry(site: Site, operator: Operating) -> None:
    """What cannot begin yet has not begun: its failures are still an earlier try's."""
    apply(site, slower(site))
    site.training("memorize").kill_for_memory()
    wait_until(site, "Failed")
    site.server.stop()
    try:
        site.plane.kubectl("annotate", "experiment", "tiny", "-n", site.namespace, "expunge.dev/retry=now")
        until(lambda: any(c["reason"] == "Unavailable" for c in status(site)["conditions"]), 180)
    finally:
        site.server.start()
    wait_until(site, "Complete", seconds=300)


def test_a_quota_is_told_and_waited_for(site: Site, operator: Operating) -> None:
    site.plane.kubectl("create", "quota", "none", "--hard=pods=0", "-n", site.namespace)
    apply(site, experiment(site))
    until(lambda: "exceeded quota" in str(status(site).get("reasons")), 120)
    site.plane.kubectl("delete", "quota", "none", "-n", site.namespace)
    wait_until(site, "Complete", seconds=300)


def test_its_metrics_tell_what_it_did(site: Site, operator: Operating) -> None:
    apply(site, experiment(site))
    wait_until(site, "Complete")
    lines = operator.metrics()
    assert lines['expunge_reconciles_total{result="ok"}'] > 5
    assert lines['expunge_api_calls_total{code="201",method="POST"}'] >= 11
    assert lines["expunge_step_gap_seconds_count"] >= 3
    until(lambda: operator.metrics().get('expunge_experiments{phase="Complete"}') == 1.0, 20)
    names = {site.job(f"finetune {n}")["metadata"]["name"] for n in ("over", "under")}
    spent = 0.0
    for pod in site.get("pods"):
        if pod["metadata"]["labels"]["batch.kubernetes.io/job-name"] in names:
            end = pod["status"]["containerStatuses"][0]["state"]["terminated"]
            spent += (datetime.fromisoformat(end["finishedAt"]) - datetime.fromisoformat(end["startedAt"])).seconds
    assert lines['expunge_gpu_seconds_total{kind="finetune"}'] == spent, "while its container ran"
    assert lines['expunge_steps{state="done"}'] >= 0


def test_its_status_is_not_written_at_every_change(site: Site, operator: Operating, plane: ControlPlane) -> None:
    apply(site, slower(site))
    until(lambda: unfinished(site) == ["memorize"], 60)
    steps = {k: v for k, v in operator.metrics().items() if k.startswith("expunge_steps")}
    assert steps == {
        'expunge_steps{state="done"}': 0,
        'expunge_steps{state="running"}': 1,
        'expunge_steps{state="failed"}': 0,
        'expunge_steps{state="waiting"}': 10,
    }
    wait_until(site, "Complete", seconds=180)
    writes = sorted(
        datetime.fromisoformat(e["requestReceivedTimestamp"]).timestamp()
        for e in plane.audited()[0]
        if e["verb"] == "patch"
        and e["objectRef"].get("subresource") == "status"
        and e["responseStatus"]["code"] == 200
        and (e["objectRef"]["resource"], e["objectRef"].get("namespace")) == ("experiments", site.namespace)
    )
    *counts, _ = writes  # the last is its end, which is said at once
    assert len(counts) >= 3
    assert all(later - earlier > 4.5 for earlier, later in itertools.pairwise(counts))


def test_a_frozen_operator_that_wakes_up_does_no_harm(site: Site, operator: Operating) -> None:
    apply(site, slower(site))
    until(lambda: unfinished(site) == ["memorize"], 60)
    assert operator.process is not None
    operator.process.send_signal(signal.SIGSTOP)
    frozen = time.monotonic()
    other = Operating(site)
    other.begin()
    try:
        wait_until(site, "Complete", seconds=180)
        jobs = {j["metadata"]["uid"] for j in site.get("jobs")}
        time.sleep(max(0.0, frozen + 65 - time.monotonic()))  # longer than a watch lasts
        operator.process.send_signal(signal.SIGCONT)
        until(lambda: operator.answers("/readyz"))
        time.sleep(5)  # whatever it still had in mind
        assert status(site)["phase"] == "Complete"
        assert {j["metadata"]["uid"] for j in site.get("jobs")} == jobs
        assert set(attempts(site.objects).values()) == {1}
    finally:
        other.close()


def test_suspended_and_resumed_again_and_again(site: Site, operator: Operating) -> None:
    apply(site, slower(site))
    until(lambda: unfinished(site) == ["memorize"], 60)
    for _ in range(5):
        patch(site, {"suspend": True})
        wait_until(site, "Suspended")
        patch(site, {"suspend": False})
        wait_until(site, "Running")
    wait_until(site, "Complete", seconds=180)
    assert set(attempts(site.objects).values()) == {1}


@pytest.mark.timeout(1800)
def test_evicted_more_often_than_a_job_may_fail(site: Site, operator: Operating, node: Node) -> None:
    """Disruptions spend no try, and the step goes on from its checkpoint each time. Kubernetes itself waits longer
    and longer before it makes the next pod: 10 s, doubled each time.
    """
    given = slower(site)
    given["spec"]["specialists"]["over"]["epochs"] = 400
    apply(site, given)
    for _ in range(5):
        pod = site.training("finetune over", 300)
        body = client.V1Eviction(metadata=client.V1ObjectMeta(name=pod.name, namespace=pod.namespace))
        node.api.create_namespaced_pod_eviction(pod.name, pod.namespace, body)
        until(pod.done.is_set)
    wait_until(site, "Complete", seconds=600)
    resumed = site.resumed("finetune over")
    assert len(resumed) == 5 and all(step > 0 for step in resumed)
    assert (
        len([j for j in site.get("jobs") if j["metadata"]["annotations"]["expunge.dev/step"] == "finetune over"]) == 1
    )


def test_a_huge_one_and_a_wrong_one_delay_no_other(site: Site, operator: Operating) -> None:
    apply(
        site,
        experiment(
            site,
            "huge",
            suspend=True,
            sweep={
                "seed": list(range(120)),
                "merge.density": [0.1, 0.3, 0.5, 0.7, 0.9],
            },
        ),
    )
    apply(site, experiment(site, "wrong", data={"forget": "hf://no", "retain": "x"}))
    apply(site, experiment(site))
    wait_until(site, "Complete", seconds=180)
    wait_until(site, "Invalid", "wrong")
    huge = wait_until(site, "Suspended", "huge", 300)
    assert huge["trials"] == "0/600"
    assert len(json.dumps(huge)) < 8192
    assert all("merge" not in step for step in unfinished(site))


def test_a_namespace_that_goes_takes_no_operator_with_it(site: Site, operator: Operating) -> None:
    apply(site, slower(site))
    site.training("memorize")
    site.plane.kubectl("delete", "namespace", site.namespace, "--wait=false")
    until(lambda: site.namespace not in site.plane.kubectl("get", "namespaces", "-o", "name"), 120)
    assert operator.answers("/healthz")


def test_its_roles_have_what_it_needs_and_nothing_to_spare(plane: ControlPlane) -> None:
    """Over all that the tests above have asked of it. Only the last: a Job is asked for when two met at its name."""
    asked, going = set(), set()
    for event in plane.audited()[0]:
        what = event.get("objectRef", {})
        if (event["verb"], what.get("resource")) == ("delete", "namespaces"):
            going.add(what["name"])
        if re.fullmatch(r"system:serviceaccount:test-\w+:expunge", event["user"]["username"]):
            # Not by the status: a namespace that is going refuses, with the same number, what the Roles allow.
            allows = event["annotations"]["authorization.k8s.io/decision"] == "allow"
            if not allows and what.get("namespace") in going | {"refused"}:
                continue  # its Roles went first, or never were
            assert allows, event["requestURI"]
            resource = "/".join(filter(None, (what["resource"], what.get("subresource"))))
            asked.add((what.get("apiGroup", ""), resource, event["verb"]))
    (role,) = of_kind(rendered("team"), "Role")
    allowed = {
        (g, r, v) for rule in role["rules"] for g in rule["apiGroups"] for r in rule["resources"] for v in rule["verbs"]
    }
    assert asked <= allowed
    assert allowed - asked <= {("batch", "jobs", "get")}
