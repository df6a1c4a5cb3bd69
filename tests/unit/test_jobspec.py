"""Step -> Job: the whole object, what decides it, and all that an experiment may not say about its pods."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from expunge_controller.errors import ExperimentError
from expunge_controller.execution.kubernetes.jobspec import (
    DEFAULTS,
    KEY,
    RESOURCES,
    fingerprint,
    job,
    job_name,
    requested,
    trial_job,
)
from expunge_controller.execution.kubernetes.pod_config import PodConfig, check_reachable
from expunge_controller.experiment.loading import load_experiment
from expunge_controller.experiment.scheduling import Kubernetes, ResourcesByKind
from expunge_controller.planning.plan import Plan, Step
from expunge_controller.planning.resolve import resolve
from expunge_jobs.core.errors import BadTask, ExitCode
from expunge_jobs.tasks.references import Input
from expunge_jobs.tasks.tasks import StageTask, parse_task
from pydantic import ValidationError

from tests.support.kubelet import expanded

QUICKSTART = Path(__file__).parents[2] / "examples" / "quickstart.yaml"
GOLDEN = Path(__file__).parent / "golden"
SITE = PodConfig(
    namespace="research",
    image="registry.test/expunge-jobs@sha256:" + "0" * 64,
    store="s3://bucket/expunge",
    secret="store-credentials",
    service_account="expunge-job",
)
EVERYTHING = Kubernetes.model_validate(
    {
        "queue": "research",
        "priority": "low",
        "priorityClassName": "batch",
        "runtimeClassName": "gvisor",
        "nodeSelector": {"gpu.example.test/kind": "a100"},
        "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}],
        "affinity": {
            "nodeAffinity": {
                "requiredDuringSchedulingIgnoredDuringExecution": {
                    "nodeSelectorTerms": [{"matchExpressions": [{"key": "zone", "operator": "In", "values": ["a"]}]}]
                }
            }
        },
        "volumes": [
            {"mount": "/mnt/models", "claim": "models", "read_only": True},
            {"mount": "/mnt/cache", "size": "50Gi", "storage_class": "fast"},
        ],
    }
)


@pytest.fixture(scope="module")
def plan() -> Plan:
    return resolve(load_experiment(QUICKSTART)).plan


def step(plan: Plan, kind: str) -> Step:
    return next(s for s in plan.steps if s.kind == kind)


def made(one: Step, resources: dict[str, Any] | None = None, kubernetes: Kubernetes | None = None) -> dict[str, Any]:
    return job(one, SITE, ResourcesByKind.model_validate(resources or {}), kubernetes or Kubernetes(), "run-1")


def container(made: dict[str, Any]) -> dict[str, Any]:
    (only,) = made["spec"]["template"]["spec"]["containers"]
    assert isinstance(only, dict)
    return only


@pytest.mark.parametrize(
    ("name", "kind", "kubernetes"),
    [("finetune", "finetune", None), ("merge", "merge", None), ("everything", "evaluate", EVERYTHING)],
)
def test_the_whole_object(plan: Plan, name: str, kind: str, kubernetes: Kubernetes | None) -> None:
    """Set EXPUNGE_GOLDEN=1 to write the files anew; then read what changed."""
    found = made(step(plan, kind), kubernetes=kubernetes)
    # The task and what follows from it have tests of their own, and change with the quickstart's settings.
    text = json.dumps(found).replace(json.dumps(step(plan, kind).task.to_json())[1:-1], "THE TASK")
    text = text.replace(step(plan, kind).key, "THE-KEY").replace(step(plan, kind).key[:16], "KEY-16")
    file = GOLDEN / f"job-{name}.yaml"
    if os.environ.get("EXPUNGE_GOLDEN") == "1":
        file.write_text(yaml.safe_dump(json.loads(text), sort_keys=False))
    assert json.loads(text) == yaml.safe_load(file.read_text())


def test_the_pod_runs_the_task_itself(plan: Plan) -> None:
    for one in plan.steps:
        env = {e["name"]: e.get("value") for e in container(made(one))["env"]}
        assert parse_task(env["EXPUNGE_TASK"] or "") == one.task
        assert made(one)["metadata"]["annotations"][KEY] == one.key == parse_task(env["EXPUNGE_TASK"] or "").key()


SECRET = {"AWS_ACCESS_KEY_ID": "an-id", "AWS_SECRET_ACCESS_KEY": "the-secret-word", "PYTHONPATH": "/mnt/evil"}


def as_a_kubelet_reads(made: dict[str, Any]) -> dict[str, str]:
    """The environment of the Job's container, with ``SECRET`` behind each reference to one."""
    values = dict(SECRET)  # known first, as those of envFrom would be
    out = {}
    for each in container(made)["env"]:
        key = each.get("valueFrom", {}).get("secretKeyRef", {}).get("key")
        value = SECRET.get(key) if key else expanded(each.get("value", ""), values)
        if value is not None:
            values[each["name"]] = out[each["name"]] = value
    return out


@pytest.mark.parametrize(
    "word", ["$(AWS_SECRET_ACCESS_KEY)", "$$(AWS_SECRET_ACCESS_KEY)", "$$$(HOME)", "$", "$$", "$(", "$()", "$(HOME)$$"]
)
def test_no_word_of_a_user_s_is_expanded_in_a_pod(word: str) -> None:
    given = ["data.separator=" + json.dumps(word), "data.overlap=drop_from_retain"]
    task = resolve(load_experiment(QUICKSTART, given)).plan.steps[0]
    source = StageTask(source=Input(uri=f"hf://org/{word}", digest="commit:0"))
    stage = Step(source.key(), "stage", "stage", source, (), ("default",))
    site = replace(SITE, store=f"s3://bucket/{word}", proxies=(("HTTPS_PROXY", f"http://me:{word}@proxy"),))
    for one in (task, stage):
        read = as_a_kubelet_reads(job(one, site, ResourcesByKind(), Kubernetes(), "run-1"))
        assert parse_task(read["EXPUNGE_TASK"]) == one.task
        assert parse_task(read["EXPUNGE_TASK"]).key() == one.key
        assert read["EXPUNGE_STORE"] == site.store
        assert read["HTTPS_PROXY"] == f"http://me:{word}@proxy"
        assert [n for n, v in read.items() if "the-secret-word" in v] == ["AWS_SECRET_ACCESS_KEY"]
    trial = as_a_kubelet_reads(trial_job("trial", site))
    assert trial["EXPUNGE_STORE"] == site.store


def test_of_a_secret_only_known_keys_reach_a_pod(plan: Plan) -> None:
    for made in (job(step(plan, "finetune"), SITE, ResourcesByKind(), Kubernetes(), "r"), trial_job("trial", SITE)):
        read = as_a_kubelet_reads(made)
        assert {n for n in read if n in SECRET} == {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"}
        assert "envFrom" not in container(made)


def test_names_are_labels_too(plan: Plan) -> None:
    names = [job_name(s) for s in plan.steps]
    assert len(set(names)) == len(names)
    assert all(len(n) <= 63 for n in names)


def test_the_same_step_of_another_run_is_the_same_job(plan: Plan) -> None:
    one = step(plan, "finetune")
    other = job(one, SITE, ResourcesByKind(), Kubernetes(), "run-2")
    assert other["metadata"]["name"] == made(one)["metadata"]["name"]
    other["metadata"]["labels"]["expunge.dev/run"] = "run-1"
    other["spec"]["template"]["metadata"]["labels"]["expunge.dev/run"] = "run-1"
    assert other == made(one)


def test_resources(plan: Plan) -> None:
    one = step(plan, "finetune")
    assert container(made(one))["resources"]["limits"]["nvidia.com/gpu"] == "1"
    asked = container(made(one, {"finetune": {"gpu": 2, "memory": "64Gi", "cpu": 8, "disk": "99Gi", "deadline": 60}}))
    assert asked["resources"] == {
        "requests": {"cpu": "8", "memory": "64Gi", "ephemeral-storage": "99Gi", "nvidia.com/gpu": "2"},
        "limits": {"memory": "64Gi", "ephemeral-storage": "99Gi", "nvidia.com/gpu": "2"},
    }
    assert "nvidia.com/gpu" not in container(made(one, {"finetune": {"gpu": 0}}))["resources"]["limits"]
    assert "nvidia.com/gpu" not in container(made(step(plan, "merge")))["resources"]["limits"]
    mig = job(
        one,
        PodConfig(namespace="x", image="i", store="s3://bucket", gpu="nvidia.com/mig-1g.10gb"),
        ResourcesByKind(),
        Kubernetes(),
        "r",
    )
    assert container(mig)["resources"]["limits"]["nvidia.com/mig-1g.10gb"] == "1"
    assert not [e for e in container(mig)["env"] if "secretKeyRef" in e.get("valueFrom", {})]
    assert "serviceAccountName" not in mig["spec"]["template"]["spec"]


def test_another_wish_has_another_fingerprint(plan: Plan) -> None:
    one = step(plan, "finetune")
    plain = made(one)["metadata"]["annotations"][RESOURCES]
    assert (
        made(one, {"finetune": {"memory": DEFAULTS["finetune"].memory}})["metadata"]["annotations"][RESOURCES] == plain
    )
    assert made(one, {"finetune": {"memory": "64Gi"}})["metadata"]["annotations"][RESOURCES] != plain
    assert made(one, {"merge": {"memory": "64Gi"}})["metadata"]["annotations"][RESOURCES] == plain
    assert made(one, kubernetes=EVERYTHING)["metadata"]["annotations"][RESOURCES] != plain


def test_what_cannot_succeed_fails_the_job_before_anything_is_ignored(plan: Plan) -> None:
    rules = made(step(plan, "finetune"))["spec"]["podFailurePolicy"]["rules"]
    assert [r["action"] for r in rules] == ["FailJob", "Ignore", "Ignore", "Ignore"]
    assert rules[0]["onExitCodes"]["values"] == [ExitCode.BAD_TASK, ExitCode.DAMAGED_INPUT, ExitCode.LIMIT_EXCEEDED]
    assert rules[2]["onExitCodes"]["values"] == [ExitCode.PREEMPTED]


@pytest.mark.parametrize(
    "wish",
    [
        {"hostNetwork": True},
        {"hostPID": True},
        {"containers": [{"name": "mine", "image": "evil"}]},
        {"initContainers": []},
        {"image": "evil"},
        {"serviceAccountName": "admin"},
        {"automountServiceAccountToken": True},
        {"securityContext": {"runAsUser": 0}},
        {"env": [{"name": "AWS_ENDPOINT_URL", "value": "https://evil.test"}]},
        {"envFrom": [{"secretRef": {"name": "foreign"}}]},
        {"imagePullSecrets": [{"name": "foreign"}]},
        {"labels": {"inject": "yes"}},
        {"annotations": {"vault.hashicorp.com/agent-inject": "true"}},
        {"ttlSecondsAfterFinished": 1},
        {"volumes": [{"mount": "/mnt/x", "hostPath": "/"}]},
        {"volumes": [{"mount": "/mnt/x", "secret": "foreign"}]},
        {"volumes": [{"mount": "/mnt/../usr/lib/python3/site-packages", "claim": "mine"}]},
        {"volumes": [{"mount": "/scratch", "claim": "mine"}]},
        {"volumes": [{"mount": "/mnt", "claim": "mine"}]},
        {"volumes": [{"mount": "/mnt/x", "claim": "mine", "size": "1Gi"}]},
        {"volumes": [{"mount": "/mnt/x"}]},
        {"volumes": [{"mount": "/mnt/x", "claim": "../x"}]},
        {"tolerations": [{"key": "x", "effect": "Sometimes"}]},
        {"affinity": {"hostAffinity": {}}},
        {"nodeSelector": {"a b": "c"}},
    ],
)
def test_what_an_experiment_may_not_say(wish: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Kubernetes.model_validate(wish)


def test_what_pods_cannot_reach_is_refused_at_once() -> None:
    with pytest.raises(ExperimentError) as caught:
        check_reachable(
            PodConfig(namespace="x", image="", store=".expunge"), ["file:///a/forget.jsonl", "builtin://people/retain"]
        )
    assert len(caught.value.problems) == 3
    assert (
        "--image" in str(caught.value)
        and "s3://bucket/prefix" in str(caught.value)
        and "/a/forget.jsonl" in str(caught.value)
    )
    with pytest.raises(BadTask, match="unknown option"):
        check_reachable(PodConfig(namespace="x", image="i", store="s3://bucket?nope=1"), [])
    check_reachable(SITE, ["builtin://people/retain", "hf://a/b"])


def test_the_hub_s_secret_is_for_the_step_that_copies_alone(plan: Plan) -> None:
    source = Input(uri="hf://org/name", digest="commit:0")
    task = StageTask(source=source)
    stage = Step(task.key(), "stage", "stage org/name", task, (), ("default",))
    site = replace(SITE, hub_secret="hub", hub_endpoint="https://hub.test")
    for one, has in ((stage, True), (step(plan, "finetune"), False)):
        made = job(one, site, ResourcesByKind(), Kubernetes(), "run-1")
        env = {e["name"]: e for e in container(made)["env"]}
        assert ("HF_TOKEN" in env) == ("HF_ENDPOINT" in env) == has
        if has:
            assert env["HF_TOKEN"]["valueFrom"] == {"secretKeyRef": {"name": "hub", "key": "HF_TOKEN"}}
            assert env["HF_ENDPOINT"]["value"] == "https://hub.test"


def test_every_pod_goes_by_the_site_s_proxy_and_trusts_its_certificate(plan: Plan) -> None:
    site = PodConfig(
        namespace="x",
        image="i",
        store="s3://bucket",
        proxies=(("HTTPS_PROXY", "http://proxy:3128"),),
        ca_bundle="ca",
    )
    for made in [*(job(s, site, ResourcesByKind(), Kubernetes(), "r") for s in plan.steps), trial_job("trial", site)]:
        pod = made["spec"]["template"]["spec"]
        values = {e["name"]: e.get("value") for e in pod["containers"][0]["env"]}
        assert values["HTTPS_PROXY"] == "http://proxy:3128"
        assert values["AWS_CA_BUNDLE"] == "/etc/expunge/ca/ca.crt"
        assert {"name": "ca", "configMap": {"name": "ca"}} in pod["volumes"]
        assert {"name": "ca", "mountPath": "/etc/expunge/ca", "readOnly": True} in pod["containers"][0]["volumeMounts"]
    plain = PodConfig(namespace="x", image="i", store="s3://bucket")
    asked = requested(plan.steps[0], ResourcesByKind())
    assert fingerprint(site, asked, Kubernetes()) != fingerprint(plain, asked, Kubernetes())


def test_a_cache_is_a_claim_that_pods_may_write(plan: Plan) -> None:
    kubernetes = Kubernetes.model_validate({"volumes": [{"mount": "/mnt/models", "claim": "models", "cache": True}]})
    one = made(step(plan, "finetune"), kubernetes=kubernetes)
    environment = {e["name"]: e.get("value") for e in container(one)["env"]}
    assert environment["EXPUNGE_MODEL_CACHE"] == "/mnt/models"
    assert one["spec"]["template"]["spec"]["securityContext"]["fsGroup"] == 65532


def test_a_claim_of_the_users_own_keeps_its_group(plan: Plan) -> None:
    kubernetes = Kubernetes.model_validate({"volumes": [{"mount": "/mnt/data", "claim": "data"}]})
    one = made(step(plan, "finetune"), kubernetes=kubernetes)
    assert "fsGroup" not in one["spec"]["template"]["spec"]["securityContext"]


@pytest.mark.parametrize(
    ("volumes", "said"),
    [
        ([{"mount": "/mnt/a", "size": "1Gi", "cache": True}], "give a claim"),
        ([{"mount": "/mnt/a", "claim": "a"}, {"mount": "/mnt/a", "claim": "b"}], "two volumes are mounted at /mnt/a"),
        ([{"mount": f"/mnt/{n}", "claim": n, "cache": True} for n in "ab"], "two volumes are the cache"),
    ],
)
def test_volumes_that_make_no_sense_are_refused(volumes: list[dict[str, Any]], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        Kubernetes.model_validate({"volumes": volumes})


@pytest.mark.parametrize(("kind", "processes"), [("finetune", "2"), ("evaluate", "2"), ("merge", None)])
def test_several_gpus_are_several_processes_where_the_work_can_be_shared(
    plan: Plan, kind: str, processes: str | None
) -> None:
    environment = {e["name"]: e.get("value") for e in container(made(step(plan, kind), {kind: {"gpu": 2}}))["env"]}
    assert environment.get("EXPUNGE_PROCESSES") == processes
