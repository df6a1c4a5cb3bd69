"""The preparation of an Experiment's generation for its run.

The generation is checked, pinned and planned, and receives an executor and a runner. No step starts yet.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from expunge_jobs.inputs.hub import public_hub
from expunge_jobs.store import Store, check_conditional_writes, open_store

from expunge_controller.execution.kubernetes.executor import KubernetesExecutor
from expunge_controller.execution.kubernetes.job_informer import JobInformer
from expunge_controller.execution.kubernetes.jobspec import requested
from expunge_controller.execution.kubernetes.observe import cancel
from expunge_controller.execution.runner import Runner
from expunge_controller.experiment.loading import load_resource
from expunge_controller.experiment.scheduling import ResourcesByKind
from expunge_controller.experiment.schema import API_VERSION
from expunge_controller.kube_client.client import Cluster, Object
from expunge_controller.operator.active_experiment import ActiveExperiment
from expunge_controller.operator.config import Settings, own_part
from expunge_controller.operator.events import EventBuffer
from expunge_controller.operator.experiments import is_observed
from expunge_controller.operator.job_slots import ExperimentSlots, JobSlots
from expunge_controller.operator.metrics import Metrics
from expunge_controller.operator.work_queue import NamespacedName, WorkQueue
from expunge_controller.planning.plan import Step
from expunge_controller.planning.records import write_record
from expunge_controller.planning.resolve import load_recorded, resolve

LOOK_SECONDS = 30.0
"""Interval between two reconciles of an Experiment without changes."""


class Generations:
    """The factory of active Experiments, and the state that they share.

    The shared state is the settings, the informers, the slots, and a store for each namespace.
    """

    def __init__(
        self,
        cluster: Cluster,
        settings: Settings,
        jobs: Mapping[str, JobInformer],
        slots: JobSlots,
        queue: WorkQueue,
        metrics: Metrics,
        log: Callable[..., None],
    ) -> None:
        self.cluster, self.settings, self.jobs, self.slots = cluster, settings, jobs, slots
        self.queue, self.metrics, self.log = queue, metrics, log
        self._stores: dict[str, Store] = {}
        self._opening = threading.Lock()

    def take_up(self, name: NamespacedName, found: Object, spec: Any) -> ActiveExperiment:
        """Plan the generation that the cluster has.

        A generation at work resumes with the inputs and versions of its record, whatever they would be today. If the
        record has changed, or this version of the operator makes other steps of it, the generation is planned again.

        Raises:
            ExperimentError: problems of the experiment.
            Unavailable, StoreError, ApiError: something gave no answer.
        """
        meta, namespace, observed = found["metadata"], name[0], is_observed(found)
        limits = self.settings.limits
        resource = {"apiVersion": API_VERSION, "kind": "Experiment", "metadata": meta, "spec": spec}
        loaded = load_resource(resource, limits.trials)
        self.settings.check_inputs(loaded, namespace)
        store = self._store(namespace)
        digest = str(found["status"].get("digest", "")) if observed else ""
        recorded = load_recorded(store, loaded, digest, namespace) if digest else None
        resolved = recorded or resolve(
            loaded, stage=True, namespace=namespace, hub=public_hub(), input_bytes=limits.input_bytes
        )
        if recorded is None:
            write_record(store, resolved)
        # Fields for the record alone take a fifth of the memory of each generation at work; therefore drop them.
        # Hundreds of generations may be at work.
        resolved = replace(resolved, record={}, plan=replace(resolved.plan, models=()))
        own = self.settings.site
        image = (found["status"].get("image") if recorded else "") or own.image
        events = EventBuffer(lambda reason, step, text: self.log("info", name, text, reason=reason, step=step))
        asked = loaded.experiment.spec
        executor = KubernetesExecutor(
            store,
            self.jobs[namespace],
            replace(own, namespace=namespace, store=store.uri, image=image),
            asked.resources,
            asked.kubernetes,
            meta["uid"],
            asked.parallel,
            owner=_owner(meta),
            room=ExperimentSlots(self.slots, name, meta["creationTimestamp"]),
            wake=lambda: self._wake(name, active),
            look=LOOK_SECONDS,
            used=partial(self._count, asked.resources),  # A lambda would keep the whole spec; therefore ``partial``.
        )
        runner = Runner(store, executor, resolved, events, cancelled=lambda: False)
        active = ActiveExperiment(
            meta["uid"], meta["generation"], meta["retry"], resolved, executor, runner, events, image
        )
        if digest and recorded is None:
            said = "this generation's record has changed, or would give other steps by now"
            events.add("PlannedAnew", "", said)
        if recorded is None and found["status"].get("observedGeneration"):  # Jobs that only an earlier plan needs
            cancel(self.cluster, namespace, meta["uid"], {s.key for s in resolved.plan.steps})
        runner.begin(retry_failed=not observed)
        # The Event of a failure always has the same name; therefore a second report does no harm.
        for key, reason in runner.outcome.failed.items():
            events.failed(resolved.plan.by_key[key], reason, again=False)
        return active

    def _store(self, namespace: str) -> Store:
        with self._opening:  # An S3 client takes ten megabytes; therefore open each store once.
            if namespace not in self._stores:
                place, query = own_part(self.settings.store, namespace)
                store = open_store(place + query, largest=self.settings.limits.object_bytes)
                store.check()
                check_conditional_writes(store)
                self._stores[namespace] = store
            return self._stores[namespace]

    def _wake(self, name: NamespacedName, active: ActiveExperiment) -> None:
        if active.woken is None:
            active.woken = time.monotonic()
        self.queue.add(name, urgent=True)

    def _count(self, resources: ResourcesByKind, step: Step, seconds: float) -> None:
        self.metrics.gpu_seconds.labels(step.kind).inc((requested(step, resources).gpu or 0) * seconds)


def _owner(meta: Object) -> Object:
    return {
        "apiVersion": API_VERSION,
        "kind": "Experiment",
        "name": meta["name"],
        "uid": meta["uid"],
        "controller": True,
    }
