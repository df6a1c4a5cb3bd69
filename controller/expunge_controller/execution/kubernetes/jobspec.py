"""Step -> batch/v1 Job.

The functions are pure: they use no clock, network or randomness. A comment beside a field gives its purpose.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

from expunge_jobs.core.errors import ExitCode

from expunge_controller.execution.kubernetes.pod_config import HUB_KEYS, STORE_KEYS, PodConfig
from expunge_controller.experiment.scheduling import Kubernetes, Resources, ResourcesByKind, bytes_of
from expunge_controller.planning.plan import Step

KEY = "expunge.dev/key"
RESOURCES = "expunge.dev/resources"
RUN = "expunge.dev/run"
NAME = {"app.kubernetes.io/name": "expunge", "app.kubernetes.io/component": "step"}
"""Labels of every step's Job and pods."""
CONTAINER = "step"
CA = "/etc/expunge/ca"
"""Mount path of the CA certificate that signs the store's certificate."""
WORK_FOLDER = "/scratch"
"""Mount path of the scratch volume, which holds HOME and the libraries' caches.

Elsewhere a step may only write to /dev/shm and to the experiment's writable volumes.
"""
TTL = 24 * 3600
"""Time that a finished Job is kept for inspection, in seconds.

The Job's results are in the store.
"""
GRACE_SECONDS = 120
"""Grace period between SIGTERM and SIGKILL, in seconds.

The period covers the end of an optimizer step and then a checkpoint.
"""
TOGETHER = ("memorize", "finetune", "evaluate")
"""Kinds of step whose work several GPUs can share."""
GROUP = 65532
"""Group id of the user in the images."""
BACKOFF_LIMIT = 3
LOG_SECONDS = 15
"""Interval between two uploads of a step's log to the store, in seconds."""
START_TIMEOUT = 15 * 60
"""Timeout for the start of a scheduled pod, in seconds, after which its step fails."""


DEFAULTS = {
    "stage": Resources(gpu=0, cpu=2, memory="4Gi", disk="40Gi", deadline=4 * 3600),
    "memorize": Resources(gpu=1, cpu=4, memory="16Gi", disk="20Gi", deadline=24 * 3600),
    "finetune": Resources(gpu=1, cpu=4, memory="16Gi", disk="20Gi", deadline=24 * 3600),
    "merge": Resources(gpu=0, cpu=2, memory="8Gi", disk="20Gi", deadline=4 * 3600),
    "evaluate": Resources(gpu=1, cpu=4, memory="16Gi", disk="20Gi", deadline=24 * 3600),
    "report": Resources(gpu=0, cpu=1, memory="2Gi", disk="1Gi", deadline=3600),
}
"""Default resource requests, by kind of step."""


def job_name(step: Step) -> str:
    """Return the name of a step's Job.

    The name depends on the step's kind and key alone; therefore experiments that need the same step share one Job.
    """
    return f"expunge-{step.kind}-{step.key[:16]}"


def requested(step: Step, resources: ResourcesByKind) -> Resources:
    """Return the resources that a step requests.

    A value from the experiment takes precedence over the default of the step's kind.
    """
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
    """Return the Job of a step.

    ``run``: the label by which ``cancel`` finds the run's Jobs.
    ``owner``: the owner reference of the Job. Kubernetes deletes the Job with its owner.
    """
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
            # Kueue starts suspended Jobs of its queues. A suspended Job without a queue would never start.
            **({"suspend": True} if kubernetes.queue else {}),
            "backoffLimit": BACKOFF_LIMIT,
            "podFailurePolicy": _failure_policy(),
            # The old pod may still write its checkpoint; therefore start the new pod only once the old pod is gone.
            "podReplacementPolicy": "Failed",
            "ttlSecondsAfterFinished": TTL,
            "template": {
                "metadata": {"labels": dict(labels), "annotations": {KEY: step.key}},
                "spec": _pod(site, asked, kubernetes, _environment(step, site, asked, kubernetes)),
            },
        },
    }


TRIAL = (
    "from expunge_jobs.store import open_store; import os, sys\n"
    "try: open_store(os.environ['EXPUNGE_STORE']).check()\n"
    "except Exception as error: sys.exit(str(error))"
)


def trial_job(name: str, site: PodConfig) -> dict[str, Any]:
    """Return the trial Job of ``expunge doctor``.

    The Job resembles a step's Job without a GPU. Its pod only opens and checks the store.
    """
    asked = DEFAULTS["merge"].model_copy(update={"cpu": 1, "memory": "1Gi", "disk": "1Gi", "deadline": 60})
    environment = [
        *_literal({"EXPUNGE_STORE": site.store, "HOME": WORK_FOLDER}),
        *_from_secret(site.secret, STORE_KEYS),
    ]
    pod = _pod(site, asked, Kubernetes(), environment)
    pod["containers"][0]["command"] = [site.command[0], "-c", TRIAL]
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": name, "namespace": site.namespace},
        "spec": {"backoffLimit": 0, "ttlSecondsAfterFinished": 60, "template": {"spec": pod}},
    }


def _failure_policy() -> dict[str, Any]:
    """Return the pod failure policy.

    Kubernetes applies the first rule that matches.
    """

    def codes(*values: int) -> dict[str, Any]:
        return {"containerName": CONTAINER, "operator": "In", "values": [int(v) for v in values]}

    return {
        "rules": [
            {
                "action": "FailJob",
                "onExitCodes": codes(ExitCode.BAD_TASK, ExitCode.DAMAGED_INPUT, ExitCode.LIMIT_EXCEEDED),
            },
            # Eviction, preemption, node loss and Kueue are no fault of the step; therefore they do not count as tries.
            {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
            {"action": "Ignore", "onExitCodes": codes(ExitCode.PREEMPTED)},
            # A suspended pod, or a pod deleted while it waited for a node, never ran; therefore do not count the try.
            {"action": "Ignore", "onPodConditions": [{"type": "PodScheduled", "status": "False"}]},
        ]
    }


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
        # A Job's deadline would count the hours in a queue; therefore limit each pod.
        # A step ends itself at its own deadline; therefore this limit only ends a step that hangs.
        # A pod's clock runs while its image is pulled and ends with a SIGTERM; therefore add both periods.
        "activeDeadlineSeconds": asked.deadline + START_TIMEOUT + GRACE_SECONDS,
        "terminationGracePeriodSeconds": GRACE_SECONDS,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        **({"serviceAccountName": site.service_account} if site.service_account else {}),
        **{k: v for k, v in chosen.items() if v},
        "securityContext": {
            "runAsNonRoot": True,
            "seccompProfile": {"type": "RuntimeDefault"},
            # A new volume belongs to root, and the step must write to it; therefore set the group.
            # A pod with only claims of user data gets no group; therefore their ownership stays unchanged.
            **(
                {"fsGroup": GROUP, "fsGroupChangePolicy": "OnRootMismatch"}
                if any(v.cache or v.size for v in kubernetes.volumes)
                else {}
            ),
        },
        "volumes": [
            {"name": "work", "emptyDir": {"sizeLimit": asked.disk}},
            # Workers of one step share tensors in /dev/shm, and the container runtime's default is 64 MiB.
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
                # The log's last lines give the reason of a failure even if nothing reached the store.
                "terminationMessagePolicy": "FallbackToLogsOnError",
                "volumeMounts": [
                    {"name": "work", "mountPath": WORK_FOLDER},
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
        "HOME": WORK_FOLDER,
        "TMPDIR": WORK_FOLDER,
        "HF_HOME": f"{WORK_FOLDER}/hf",
        "XDG_CACHE_HOME": f"{WORK_FOLDER}/cache",
        "TRITON_CACHE_DIR": f"{WORK_FOLDER}/cache/triton",
        "TORCHINDUCTOR_CACHE_DIR": f"{WORK_FOLDER}/cache/inductor",
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
    """Return environment variables with exactly these values.

    Kubernetes expands ``$(NAME)`` in a value, secrets included, and reads ``$$`` as ``$``.
    A user's text could therefore insert a Secret's value, which would then appear in a manifest or go to a server.
    Therefore the function doubles each ``$``.
    """
    return [{"name": name, "value": value.replace("$", "$$")} for name, value in values.items()]


def _from_secret(secret: str | None, keys: dict[str, bool]) -> list[dict[str, Any]]:
    """Return one environment variable for each key of a Secret.

    A pod does not start without the keys whose value is True.
    """
    if not secret:
        return []
    refs = {k: {"name": secret, "key": k} | ({} if needed else {"optional": True}) for k, needed in keys.items()}
    return [{"name": key, "valueFrom": {"secretKeyRef": ref}} for key, ref in refs.items()]


def _ways_out(site: PodConfig) -> dict[str, str]:
    """Return the proxy and CA variables by which a pod reaches the store."""
    return dict(site.proxies) | ({"AWS_CA_BUNDLE": f"{CA}/ca.crt"} if site.ca_bundle else {})


def _resources(site: PodConfig, asked: Resources) -> dict[str, Any]:
    # A step must not use memory or disk that another step may need; therefore requests and limits are equal.
    # A CPU limit would slow a step even on a node with idle cores; therefore the CPU has no limit.
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
    """Return a digest of the resources and pod settings of a request.

    If a failed Job has another digest than this run requests, the failure is no verdict on this run's request.
    """
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
