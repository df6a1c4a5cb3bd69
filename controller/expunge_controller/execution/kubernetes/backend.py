"""The backend that runs steps as Jobs of the kubeconfig's cluster."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import cached_property
from typing import TYPE_CHECKING, ClassVar

from expunge_controller.execution.options import Option, Where

if TYPE_CHECKING:
    from expunge_jobs.store import Store

    from expunge_controller.execution.kubernetes.executor import KubernetesExecutor
    from expunge_controller.execution.kubernetes.pod_config import PodConfig
    from expunge_controller.experiment.schema import Spec
    from expunge_controller.kube_client.client import Cluster
    from expunge_controller.planning.plan import Step
    from expunge_controller.planning.resolve import Resolved


class Backend:
    """A backend on one namespace of a cluster."""

    OPTIONS: ClassVar[tuple[Option, ...]] = (
        Option("image", "IMAGE", "the jobs image (default: $EXPUNGE_IMAGE)", "EXPUNGE_IMAGE"),
        Option("secret", "NAME", "a Secret of the namespace with the store's credentials"),
        Option("hub_secret", "NAME", "one with HF_TOKEN, for the steps that copy hf:// models"),
        Option("gpu", "RESOURCE", "a GPU's resource name (default: nvidia.com/gpu)"),
        Option("service_account", "NAME", "of the pods; without a token of its own"),
    )
    STAGES: ClassVar[bool] = True
    DETACHES: ClassVar[bool] = True

    def __init__(self, where: Where) -> None:
        self.where = where

    @cached_property
    def cluster(self) -> Cluster:
        """The connection to the cluster.

        Raises:
            ExperimentError: the kubeconfig cannot be used.
        """
        return self.where.cluster()

    def site(self, namespace: str) -> PodConfig:
        """Return the pod configuration from the options and the environment."""
        from expunge_controller.execution.kubernetes.pod_config import PodConfig

        given = {o.name: o.value(self.where.options) for o in self.OPTIONS}
        return PodConfig(
            namespace=namespace,
            image=given["image"] or "",
            store=self.where.store,
            secret=given["secret"],
            hub_secret=given["hub_secret"],
            hub_endpoint=os.environ.get("HF_ENDPOINT"),
            service_account=given["service_account"],
            gpu=given["gpu"] or PodConfig.gpu,
        )

    def executor(self, store: Store, resolved: Resolved, spec: Spec, parallel: int) -> KubernetesExecutor:
        from expunge_controller.execution.kubernetes.executor import KubernetesExecutor
        from expunge_controller.execution.kubernetes.job_informer import JobInformer
        from expunge_controller.execution.kubernetes.pod_config import check_reachable

        site = self.site(self.cluster.namespace)
        check_reachable(site, resolved.pins)
        watch = JobInformer(self.cluster, self.cluster.namespace)
        watch.open()
        executor = KubernetesExecutor(store, watch, site, spec.resources, spec.kubernetes, resolved.run, parallel)
        executor.read_logs()
        return executor

    def observe(self, store: Store, steps: list[Step]) -> dict[str, str]:
        from expunge_controller.execution.kubernetes.observe import observe_jobs

        return observe_jobs(self.cluster, self.cluster.namespace, steps)

    def follow(self, store: Store, step: Step) -> Iterator[str]:
        from expunge_controller.execution.kubernetes.observe import follow_pods
        from expunge_controller.execution.stored_logs import stored_lines

        live = False
        for line in follow_pods(self.cluster, self.cluster.namespace, step):
            live = True
            yield line
        if not live:  # the pods are deleted; therefore read the store
            yield from stored_lines(store, step)

    def connect(self) -> None:
        _ = self.cluster

    def cancel(self, resolved: Resolved) -> int:
        from expunge_controller.execution.kubernetes.observe import cancel

        return cancel(self.cluster, self.cluster.namespace, resolved.run)
