"""An informer for the Jobs and pods of one namespace.

Runs share one informer. Each run is notified only of the Jobs that it has subscribed to.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from expunge_controller.execution.kubernetes import diagnosis
from expunge_controller.execution.kubernetes.jobspec import NAME
from expunge_controller.kube_client.client import Cluster
from expunge_controller.kube_client.informer import Informer

SELECTOR = ",".join(f"{k}={v}" for k, v in NAME.items())
FIRST_LIST_SECONDS = 30.0
"""Timeout of the wait for the first lists, in seconds, after which a run begins without them."""


def jobs_path(namespace: str, name: str = "") -> str:
    """Return the API path of a namespace's Jobs, or of one Job."""
    return f"/apis/batch/v1/namespaces/{namespace}/jobs" + (f"/{name}" if name else "")


def pods_path(namespace: str) -> str:
    """Return the API path of a namespace's pods."""
    return f"/api/v1/namespaces/{namespace}/pods"


class JobInformer:
    """A pair of informers for Jobs and pods with subscriptions by Job name.

    The informers run from ``open`` until ``close``.
    """

    def __init__(self, cluster: Cluster, namespace: str) -> None:
        self.cluster, self.namespace = cluster, namespace
        self.jobs = Informer(
            cluster, jobs_path(namespace), SELECTOR, diagnosis.trim_job, lambda o: self._notify(o["metadata"]["name"])
        )
        # Pods of an earlier Job with the same name may still exist; therefore index pods by their Job's uid.
        self.pods = Informer(
            cluster,
            pods_path(namespace),
            SELECTOR,
            diagnosis.trim_pod,
            lambda o: self._notify(o["metadata"]["job"]),
            lambda o: str(o["metadata"]["owner"]),
        )
        self._followers: dict[str, list[Callable[[str], None]]] = {}
        self._lock = threading.Lock()

    def open(self) -> None:
        """Start both informers and wait for their first lists.

        Raises:
            ApiError: the cluster refuses, or does not answer.
        """
        self.check()
        self.start()
        self.wait()

    def check(self) -> None:
        """Check once that Jobs and pods can be listed.

        Raises:
            ApiError: the cluster refuses, or does not answer.
        """
        for path in (jobs_path(self.namespace), pods_path(self.namespace)):
            self.cluster.request("GET", path, query={"labelSelector": SELECTOR, "limit": 1})

    def start(self) -> None:
        """Start both informers, which retry until the watch succeeds."""
        for informer in (self.jobs, self.pods):
            informer.start()

    def wait(self) -> None:
        """Wait until everything is listed once, or until the timeout."""
        for informer in (self.jobs, self.pods):
            informer.wait(FIRST_LIST_SECONDS)

    def close(self) -> None:
        for informer in (self.jobs, self.pods):
            informer.stop()

    @property
    def problem(self) -> str:
        """The reason why no updates arrive; empty while there is no problem."""
        return self.jobs.problem or self.pods.problem

    def subscribe(self, job: str, tell: Callable[[str], None]) -> None:
        """Call ``tell`` with the Job's name at each change of the Job or its pods.

        The calls come from another thread.
        """
        with self._lock:
            self._followers.setdefault(job, []).append(tell)

    def unsubscribe(self, job: str, tell: Callable[[str], None]) -> None:
        """End a subscription."""
        with self._lock:
            left = self._followers.get(job, [])
            if tell in left:
                left.remove(tell)
            if not left:
                self._followers.pop(job, None)

    def _notify(self, job: str) -> None:
        with self._lock:
            followers = list(self._followers.get(job, ()))
        for tell in followers:
            tell(job)
