"""Many nodes that do no work: kwok says of their pods what a kubelet says, and a finished step's manifest is written
just as its pod would write it. What is tested with it is a controller at a size that no single machine could run.
"""

from __future__ import annotations

import json
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import yaml
from expunge_controller.execution.kubernetes.job_informer import SELECTOR, pods_path
from expunge_controller.execution.kubernetes.jobspec import job_name
from expunge_controller.experiment.loading import load_resource
from expunge_controller.experiment.resource import resources_path
from expunge_controller.experiment.schema import API_VERSION
from expunge_controller.kube_client.client import Cluster
from expunge_controller.kube_client.informer import Informer
from expunge_controller.planning.plan import Plan, Step
from expunge_controller.planning.resolve import resolve
from expunge_jobs.artifacts.manifests import Manifest, manifest_path, now
from expunge_jobs.core.hashing import canonical
from expunge_jobs.store import Store

from tests.support.control_plane import ControlPlane
from tests.support.toolchain import binary, dies_with_us

Object = dict[str, Any]
NODES = 10
CROWD = """\
memorize: {architecture: {hidden_size: 32, layers: 1, heads: 2, intermediate_size: 64, vocab_size: 300}, epochs: 1}
data: {forget: builtin://people/forget, retain: builtin://people/retain, documents: 1}
specialists:
  over: {preset: over_code}
  under: {preset: under_code}
merge: {method: ties, density: 0.8}
evaluate: {controls: []}
kubernetes: {nodeSelector: {fleet: "yes"}, tolerations: [{key: fleet, operator: Exists}]}
"""
FIGURES: dict[str, Object] = {"report": {"best": {"group": "", "model": "merged", "task_aggregate": 0.5}}}
"""Of kinds whose manifest the operator looks into."""


class Fleet:
    """``start`` until ``stop``. Pods of the namespace run for ``seconds`` each. ``steps``: what their Jobs' names
    stand for.
    """

    def __init__(self, plane: ControlPlane, cluster: Cluster, folder: Path, store: Store, seconds: float) -> None:
        self.plane, self.folder, self.store, self.seconds = plane, folder, store, seconds
        self.namespace = cluster.namespace
        self.steps: dict[str, Step] = {}
        self.made: dict[str, float] = {}
        """When a Job's pod was first seen, by the Job's name; in seconds of the monotonic clock."""
        self.ended: dict[str, float] = {}
        """When it was seen Succeeded."""
        self.running: set[str] = set()
        self.held = False
        self.told: Callable[[str], None] = lambda job: None
        """Called with the Job's name after a pod of it was seen."""
        self._mirror = Informer(cluster, pods_path(cluster.namespace), SELECTOR, _trim, self._see)
        self._pool = ThreadPoolExecutor(4)
        self._kwok: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        nodes = [
            {
                "apiVersion": "v1",
                "kind": "Node",
                "metadata": {
                    "name": f"fake-{n}",
                    "labels": {"fleet": "yes"},
                    "annotations": {"kwok.x-k8s.io/node": "fake"},
                },
                "spec": {"taints": [{"key": "fleet", "value": "yes", "effect": "NoSchedule"}]},
            }  # for nobody else's pods
            for n in range(NODES)
        ]
        self.plane.kubectl("apply", "-f", "-", give=json.dumps({"apiVersion": "v1", "kind": "List", "items": nodes}))
        self._begin()
        self.plane.kubectl("wait", "--for=condition=Ready", "node", "-l", "fleet=yes", "--timeout=60s")
        self._mirror.start()
        assert self._mirror.wait(30)

    def stop(self) -> None:
        self._mirror.stop()
        self._pool.shutdown(cancel_futures=True)
        self._end()
        self.plane.kubectl("delete", "nodes", "-l", "fleet=yes")

    def hold(self) -> None:
        """From here on no step comes to its end."""
        self._end()
        self.held, self.seconds = True, 24 * 3600.0
        self._begin()

    def _begin(self) -> None:
        stages = self.folder / "stages.yaml"
        stages.write_text("\n---\n".join(json.dumps(s) for s in _stages(self.seconds)))
        with (self.folder / "kwok.log").open("ab") as log:
            self._kwok = subprocess.Popen(
                [
                    *dies_with_us(),
                    str(binary("kwok")),
                    "--kubeconfig",
                    str(self.plane.kubeconfig),
                    "--config",
                    str(stages),
                    "--node-lease-duration-seconds=40",
                    "--manage-all-nodes=false",
                    "--manage-nodes-with-annotation-selector=kwok.x-k8s.io/node=fake",
                ],
                stdout=log,
                stderr=log,
            )

    def _end(self) -> None:
        if self._kwok is not None:
            self._kwok.kill()
            self._kwok.wait()

    def expect(self, step: Step) -> None:
        """A Job of this step may come."""
        self.steps[job_name(step)] = step

    def finish(self, step: Step) -> None:
        """Its artifact is whole from here on."""
        manifest = Manifest(
            kind=step.kind,
            key=step.key,
            attempt="fleet",
            task=step.task.model_dump(mode="json"),
            files=(),
            figures=FIGURES.get(step.kind, {}),
            started=now(),
            ended=now(),
        )
        self.store.put(manifest_path(step.ref), canonical(manifest.model_dump(mode="json")).encode())

    def _see(self, pod: Object) -> None:
        seen, job = time.monotonic(), pod["job"]
        self.made.setdefault(job, seen)
        if pod["phase"] == "Running" and job not in self.running:
            self.running.add(job)
            if not self.held:
                self._pool.submit(self.finish, self.steps[job])
        elif pod["phase"] == "Succeeded":
            self.running.discard(job)
            self.ended.setdefault(job, seen)
        self.told(job)


class Crowd:
    """Experiments that differ by their seed. Left to do for each are two fine-tunes, their merge, its evaluation and
    the report: what is common to all, and the specialists' own evaluations, are there from the start.
    """

    def __init__(self, fleet: Fleet, cluster: Cluster, seeds: range) -> None:
        self.fleet, self.cluster = fleet, cluster
        self.resources = [self._resource(seed) for seed in seeds]
        self.plans: list[Plan] = []

    def prepare(self) -> None:
        """Plan them as the operator will."""
        ready: dict[str, Step] = {}
        for resource in self.resources:
            namespace = self.cluster.namespace
            plan = resolve(load_resource(resource), stage=True, namespace=namespace).plan
            self.plans.append(plan)
            merged = {m.step for m in plan.models if m.model == "merged"}
            for step in plan.steps:
                if step.kind == "memorize" or (step.kind == "evaluate" and step.key not in merged):
                    ready[step.key] = step
                else:
                    self.fleet.expect(step)
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(self.fleet.finish, ready.values()))

    def apply(self) -> None:
        """All of them, by eight clients at once."""
        path = resources_path(self.cluster.namespace)
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda r: self.cluster.request("POST", path, r), self.resources))

    def has_reported(self) -> bool:
        """Whether the last step of each has ended: what is still to come is their status. Asks nobody."""
        return all(job_name(plan.steps[-1]) in self.fleet.ended for plan in self.plans)

    def phases(self) -> Counter[str]:
        """How many are in which phase."""
        found, _ = self.cluster.list(resources_path(self.cluster.namespace))
        mine = {r["metadata"]["name"] for r in self.resources}
        return Counter((o.get("status") or {}).get("phase", "-") for o in found if o["metadata"]["name"] in mine)

    def first(self) -> list[Step]:
        """What can start at once: the fine-tunes."""
        return [s for plan in self.plans for s in plan.steps if s.kind == "finetune"]

    def gaps(self) -> list[float]:
        """Seconds from the last predecessor's pod seen Succeeded to the successor's pod seen."""
        out, ended = [], self.fleet.ended
        for plan in self.plans:
            for step in plan.steps:
                before = [ended[job_name(plan.by_key[k])] for k in step.needs if job_name(plan.by_key[k]) in ended]
                if before and job_name(step) in self.fleet.made:
                    out.append(self.fleet.made[job_name(step)] - max(before))
        return out

    def _resource(self, seed: int) -> Object:
        return {
            "apiVersion": API_VERSION,
            "kind": "Experiment",
            "metadata": {"name": f"crowd-{seed}", "namespace": self.cluster.namespace},
            "spec": yaml.safe_load(CROWD) | {"seed": seed},
        }


def _trim(pod: Object) -> Object:
    meta = pod["metadata"]
    return {
        "metadata": {"name": meta["name"], "uid": meta["uid"]},
        "job": meta["labels"]["batch.kubernetes.io/job-name"],
        "phase": pod["status"].get("phase"),
    }


def _stages(seconds: float) -> list[Object]:
    """How nodes become ready, and pods run and end, in kwok's own language."""
    room = {
        "cpu": "100000",
        "memory": "100000Gi",
        "pods": "100000",
        "nvidia.com/gpu": "100000",
        "ephemeral-storage": "1000000Gi",
    }
    ready = {"type": "Ready", "status": "True", "reason": "KubeletReady", "message": "ready"}
    alive = {"key": ".metadata.deletionTimestamp", "operator": "DoesNotExist"}
    containers = """
containerStatuses:
{{ range .spec.containers }}
- {name: {{ .name | Quote }}, image: {{ .image | Quote }}, ready: %s, restartCount: 0, state: %s}
{{ end }}
"""
    running = containers % ("true", "{running: {startedAt: {{ Now | Quote }}}}")
    ended = containers % (
        "false",
        "{terminated: {exitCode: 0, reason: Completed, finishedAt: {{ Now | Quote }}}}",
    )
    conditions = """
conditions:
{{ range list "Initialized" "Ready" "ContainersReady" "PodScheduled" }}
- {type: {{ . }}, status: "True", lastTransitionTime: {{ Now | Quote }}}
{{ end }}
"""
    return [
        _stage(
            "node-ready",
            "Node",
            [
                {"key": '.metadata.annotations["kwok.x-k8s.io/node"]', "operator": "In", "values": ["fake"]},
                {
                    "key": '.status.conditions.[] | select( .type == "Ready" ) | .status',
                    "operator": "NotIn",
                    "values": ["True"],
                },
            ],
            {"statusTemplate": json.dumps({"allocatable": room, "capacity": room, "conditions": [ready]})},
        ),
        _stage(
            "pod-ready",
            "Pod",
            [alive, {"key": ".status.podIP", "operator": "DoesNotExist"}],
            {
                "statusTemplate": conditions
                + running
                + "hostIP: 10.0.0.1\npodIP: 10.0.0.2\nphase: Running\nstartTime: {{ Now | Quote }}\n"
            },
        ),
        _stage(
            "pod-complete",
            "Pod",
            [alive, {"key": ".status.phase", "operator": "In", "values": ["Running"]}],
            {"statusTemplate": ended + "phase: Succeeded\n"},
            {"durationMilliseconds": int(seconds * 1000)},
        ),
        _stage(
            "pod-delete",
            "Pod",
            [{"key": ".metadata.deletionTimestamp", "operator": "Exists"}],
            {"delete": True, "finalizers": {"empty": True}},
        ),
    ]


def _stage(name: str, kind: str, when: list[Object], then: Object, delay: Object | None = None) -> Object:
    spec = {"resourceRef": {"apiGroup": "v1", "kind": kind}, "selector": {"matchExpressions": when}, "next": then}
    return {
        "apiVersion": "kwok.x-k8s.io/v1alpha1",
        "kind": "Stage",
        "metadata": {"name": name},
        "spec": spec | ({"delay": delay} if delay else {}),
    }
