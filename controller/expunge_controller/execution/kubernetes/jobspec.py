"""Step -> batch/v1 Job: pure, with no clock, network or randomness. What each field is for stands beside it."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from typing import Any

from expunge_jobs.core.errors import ExitCode

from expunge_controller.execution.kubernetes.pod_config import HUB_KEYS, STORE_KEYS, PodConfig
from expunge_controller.experiment.scheduling import Kubernetes, Resources, ResourcesByKind, bytes_of
from expunge_controller.planning.plan import Step

KEY = "expunge.dev/key"
RESOURCES = "expunge.dev/resources"
RUN = "expunge.dev/run"
NAME = {"app.kubernetes.io/name": "expunge", "app.kubernetes.io/component": "step"}
"""Labels of every Job and pod of ours."""
CONTAINER = "step"
CA = "/etc/expunge/ca"
"""Where the certificate of whoever signs the store's lies."""
WORK = "/scratch"
"""The only folder that a step may write; HOME and every cache lie in it."""
TTL = 24 * 3600
"""Seconds that a finished Job is kept, for people to look at; what it made is in the store."""
GRACE_SECONDS = 120
"""Seconds between TERM and KILL: the end of an optimizer step, then a checkpoint."""
TOGETHER = ("memorize", "finetune", "evaluate")
"""Kinds whose work several GPUs can share."""
GROUP = 65532
"""The images' own."""
BACKOFF_LIMIT = 3
LOG_SECONDS = 15
"""How often what a step says reaches the store."""
START_TIMEOUT = 15 * 60
"""Seconds that a pod with a node may take to start before its step fails."""


DEFAULTS = {
    "stage": Resources(gpu=0, cpu=2, memory="4Gi", disk="40Gi", deadline=4 * 3600),
    "memorize": Resources(gpu=1, cpu=4, memory="16Gi", disk="20Gi", deadline=24 * 3600),
    "finetune": Resources(gpu=1, cpu=4, memory="16Gi", disk="20Gi", deadline=24 * 3600),
    "merge": Resources(gpu=0, cpu=2, memory="8Gi", disk="20Gi", deadline=4 * 3600),
    "evaluate": Resources(gpu=1, cpu=4, memory="16Gi", disk="20Gi", deadline=24 * 3600),
    "report": Resources(gpu=0, cpu=1, memory="1Gi", disk="1Gi", deadline=3600),
}
"""What a step asks for where the experiment says nothing."""


def job_name(step: Step) -> str:
    """From the key alone: experiments that need the same step meet at the same Job."""
    return f"expunge-{step.kind}-{step.key[:16]}"


def requested(step: Step, resources: ResourcesByKind) -> Resources:
    """What the step asks for: the experiment's wish, else the default of its kind."""
    wish = getattr(resources, step.kind).model_dump(exclude_none=True)
    return DEFAULTS[step.kind].model_copy(update=wish)


def job(
    step: Step,
    site: PodConfig,
    resources: ResourcesByKind,
    kubernetes: Kubernetes,
    run: str,
    owner: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """The Job of a step; ``run`` labels it for those who cancel a run, with ``owner`` (a reference) it goes."""
    asked = requested(step, resources)
    labels = {**NAME, "expunge.dev/kind": step.kind, RUN: run}
    if kubernetes.queue:
        labels["kueue.x-k8s.io/queue-name"] = kubernetes.queue
        if kubernetes.priority:
            labels["kueue.x-k8s.io/priority-class"] = kubernetes.priority
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {
            "name": job_name(step),
            "namespace": site.namespace,
            "labels": labels,
            "annotations": {
                KEY: step.key,
                RESOURCES: fingerprint(site, asked, kubernetes),
                "expunge.dev/step": step.name,
            },
            **({"ownerReferences": [owner]} if owner else {}),
        },
        "spec": {
            # Kueue starts what waits in its queue; a Job of nobody's queue would never start.
            **({"suspend": True} if kubernetes.queue else {}),
            "backoffLimit": BACKOFF_LIMIT,
            "podFailurePolicy": _failure_policy(),
            # A new attempt only once the old one is gone, and not while it is still writing its checkpoint.
            "podReplacementPolicy": "Failed",
            "ttlSecondsAfterFinished": TTL,
            "template": {
                "metadata": {"labels": dict(labels), "annotations": {KEY: step.key}},
                "spec": _pod(_imaged(step, site), asked, kubernetes, _environment(step, site, asked, kubernetes)),
            },
        },
    }


TRIAL = (
    "from expunge_jobs.store import open_store; import os, sys\n"
    "try: open_store(os.environ['EXPUNGE_STORE']).check()\n"
    "except Exception as error: sys.exit(str(error))"
)


def trial_job(name: str, site: PodConfig) -> dict[str, Any]:
    """A Job in a step's shape, without a GPU, whose pod only opens the store: what `expunge doctor` runs."""
    asked = DEFAULTS["merge"].model_copy(update={"cpu": 1, "memory": "1Gi", "disk": "1Gi", "deadline": 60})
    environment = [*_literal({"EXPUNGE_STORE": site.store, "HOME": WORK}), *_from_secret(site.secret, STORE_KEYS)]
    pod = _pod(site, asked, Kubernetes(), environment)
    pod["containers"][0]["command"] = [site.command[0], "-c", TRIAL]
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": name, "namespace": site.namespace},
        "spec": {"backoffLimit": 0, "ttlSecondsAfterFinished": 60, "template": {"spec": pod}},
    }


def _failure_policy() -> dict[str, Any]:
    """The first rule that fits decides."""

    def codes(*values: int) -> dict[str, Any]:
        return {"containerName": CONTAINER, "operator": "In", "values": [int(v) for v in values]}

    return {
        "rules": [
            {
                "action": "FailJob",
                "onExitCodes": codes(ExitCode.BAD_TASK, ExitCode.DAMAGED_INPUT, ExitCode.LIMIT_EXCEEDED),
            },
            # Eviction, preemption, a lost node, Kueue: not the step's fault, so they spend no try.
            {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
            {"action": "Ignore", "onExitCodes": codes(ExitCode.PREEMPTED)},
            # A pod that never ran: suspended, or deleted while it waited for a node.
            {"action": "Ignore", "onPodConditions": [{"type": "PodScheduled", "status": "False"}]},
        ]
    }


def _imaged(step: Step, site: PodConfig) -> PodConfig:
    """The site as this step's pod sees it."""
    return replace(site, image=site.controller_image) if step.kind == "report" and site.controller_image else site


def _pod(
    site: PodConfig, asked: Resources, kubernetes: Kubernetes, environment: list[dict[str, Any]]
) -> dict[str, Any]:
    chosen = kubernetes.model_dump(
        mode="json",
        include={"priorityClassName", "runtimeClassName", "nodeSelector", "tolerations", "affinity"},
        exclude_none=True,
    )
    volumes, mounts = _volumes(kubernetes)
    if site.ca_bundle:
        volumes.append({"name": "ca", "configMap": {"name": site.ca_bundle}})
        mounts.append({"name": "ca", "mountPath": CA, "readOnly": True})
    environment = [*environment, *_literal(_ways_out(site))]
    assert asked.deadline is not None, "requested() fills every field"
    return {
        "restartPolicy": "Never",
        # The attempt's own time: a Job's deadline would count the hours in a queue. The step ends itself before that; this is
        # for one that hangs, since a pod's clock runs while its image is pulled, and ends in a TERM like any other.
        "activeDeadlineSeconds": asked.deadline + START_TIMEOUT + GRACE_SECONDS,
        "terminationGracePeriodSeconds": GRACE_SECONDS,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        **({"serviceAccountName": site.service_account} if site.service_account else {}),
        **{k: v for k, v in chosen.items() if v},
        "securityContext": {
            "runAsNonRoot": True,
            "seccompProfile": {"type": "RuntimeDefault"},
            # A new volume belongs to root, and is to be written; a claim with data of the user's is left as it is.
            **(
                {"fsGroup": GROUP, "fsGroupChangePolicy": "OnRootMismatch"}
                if any(v.cache or v.size for v in kubernetes.volumes)
                else {}
            ),
        },
        "volumes": [
            {"name": "work", "emptyDir": {"sizeLimit": asked.disk}},
            # Workers of one step share tensors there; the container runtime's own has 64 MiB.
            {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "1Gi"}},
            *volumes,
        ],
        "containers": [
            {
                "name": CONTAINER,
                "image": site.image,
                "imagePullPolicy": site.pull_policy,
                "command": list(site.command),
                "env": environment,
                "resources": _resources(site, asked),
                "securityContext": {
                    "allowPrivilegeEscalation": False,
                    "readOnlyRootFilesystem": True,
                    "capabilities": {"drop": ["ALL"]},
                },
                # The last lines of the log are why it failed, even when nothing reached the store.
                "terminationMessagePolicy": "FallbackToLogsOnError",
                "volumeMounts": [
                    {"name": "work", "mountPath": WORK},
                    {"name": "shm", "mountPath": "/dev/shm"},
                    *mounts,
                ],
            }
        ],
    }


def _environment(step: Step, site: PodConfig, asked: Resources, kubernetes: Kubernetes) -> list[dict[str, Any]]:
    values = {
        "EXPUNGE_TASK": step.task.to_json(),
        "EXPUNGE_STORE": site.store,
        "EXPUNGE_THREADS": str(asked.cpu),
        "EXPUNGE_LOG_SECONDS": str(LOG_SECONDS),
        "EXPUNGE_DEADLINE": str(asked.deadline),
        "EXPUNGE_DISK": str(bytes_of(asked.disk or "0Gi")),
        "HOME": WORK,
        "TMPDIR": WORK,
        "HF_HOME": f"{WORK}/hf",
        "XDG_CACHE_HOME": f"{WORK}/cache",
        "TRITON_CACHE_DIR": f"{WORK}/cache/triton",
        "TORCHINDUCTOR_CACHE_DIR": f"{WORK}/cache/inductor",
    }
    if (asked.gpu or 0) > 1 and step.kind in TOGETHER:
        values["EXPUNGE_PROCESSES"] = str(asked.gpu)
    for cache in [v for v in kubernetes.volumes if v.cache]:
        values["EXPUNGE_MODEL_CACHE"] = cache.mount
    fields = {
        "EXPUNGE_ATTEMPT": "metadata.uid",
        "EXPUNGE_JOB": "metadata.labels['batch.kubernetes.io/controller-uid']",
    }
    secrets = _from_secret(site.secret, STORE_KEYS)
    if step.kind == "stage":
        secrets += _from_secret(site.hub_secret, HUB_KEYS)
        values |= {"HF_ENDPOINT": site.hub_endpoint} if site.hub_endpoint else {}
    return [
        *_literal(values),
        *({"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}} for name, path in fields.items()),
        *secrets,
    ]


def _literal(values: dict[str, str]) -> list[dict[str, Any]]:
    """Return environment variables with these very values.

    Kubernetes expands ``$(NAME)`` in a value, secrets included, and reads ``$$`` as ``$``. So a user's words could name a
    Secret's value, which then would stand in a manifest or be sent to a server. Each ``$`` is therefore doubled.
    """
    return [{"name": name, "value": value.replace("$", "$$")} for name, value in values.items()]


def _from_secret(secret: str | None, keys: dict[str, bool]) -> list[dict[str, Any]]:
    """Return one variable for each of these keys of a Secret; a pod waits for those that are needed."""
    if not secret:
        return []
    refs = {k: {"name": secret, "key": k} | ({} if needed else {"optional": True}) for k, needed in keys.items()}
    return [{"name": key, "valueFrom": {"secretKeyRef": ref}} for key, ref in refs.items()]


def _ways_out(site: PodConfig) -> dict[str, str]:
    """Return the variables by which a pod reaches the store."""
    return dict(site.proxies) | ({"AWS_CA_BUNDLE": f"{CA}/ca.crt"} if site.ca_bundle else {})


def _resources(site: PodConfig, asked: Resources) -> dict[str, Any]:
    # Memory and disk are given and limited alike, so that a step never lives on what another may need. Cores are not
    # limited: a step that waits for none is not slowed.
    fixed = {"memory": asked.memory, "ephemeral-storage": asked.disk}
    if asked.gpu:
        fixed[site.gpu] = str(asked.gpu)
    return {"requests": {"cpu": str(asked.cpu), **fixed}, "limits": fixed}


def _volumes(kubernetes: Kubernetes) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    volumes: list[dict[str, Any]] = []
    mounts: list[dict[str, Any]] = []
    for number, volume in enumerate(kubernetes.volumes):
        name = f"data-{number}"
        only = {"readOnly": True} if volume.read_only else {}
        if volume.claim:
            source: dict[str, Any] = {"persistentVolumeClaim": {"claimName": volume.claim, **only}}
        else:
            claim = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": volume.size}}}
            named = {"storageClassName": volume.storage_class} if volume.storage_class else {}
            source = {"ephemeral": {"volumeClaimTemplate": {"spec": claim | named}}}
        volumes.append({"name": name, **source})
        mounts.append({"name": name, "mountPath": volume.mount, **only})
    return volumes, mounts


def fingerprint(site: PodConfig, asked: Resources, kubernetes: Kubernetes) -> str:
    """Tells whether a Job that failed had what this run asks for: its failure is no verdict on another's."""
    what: dict[str, Any] = {
        "resources": asked.model_dump(mode="json"),
        "kubernetes": kubernetes.model_dump(mode="json"),
        "image": site.image,
        "secrets": [site.secret, site.hub_secret],
        "account": site.service_account,
    }
    if ways := _ways_out(site):
        what["ways out"] = [_literal(ways), site.ca_bundle]
    if site.hub_endpoint:
        what["hub"] = site.hub_endpoint
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:16]
