"""Jobs and pods of a namespace, kept up to date. Runs share one; each is notified of the Jobs alone that it subscribed to."""

from __future__ import annotations

import threading
from collections.abc import Callable

from expunge_controller.execution.kubernetes import diagnosis
from expunge_controller.execution.kubernetes.jobspec import NAME
from expunge_controller.kube_client.client import Cluster
from expunge_controller.kube_client.informer import Informer

SELECTOR = ",".join(f"{k}={v}" for k, v in NAME.items())
FIRST_LIST_SECONDS = 30.0
"""Seconds that the first lists may take before a run begins without them."""


def jobs_path(namespace: str, name: str = "") -> str:
    """Of the Jobs of a namespace, or of one."""
    return f"/apis/batch/v1/namespaces/{namespace}/jobs" + (f"/{name}" if name else "")


def pods_path(namespace: str) -> str:
    """Of the pods of a namespace."""
    return f"/api/v1/namespaces/{namespace}/pods"


class JobInformer:
    """``open`` until ``close``."""

    def __init__(self, cluster: Cluster, namespace: str) -> None:
        self.cluster, self.namespace = cluster, namespace
        self.jobs = Informer(
            cluster, jobs_path(namespace), SELECTOR, diagnosis.trim_job, lambda o: self._notify(o["metadata"]["name"])
        )
        # By their Job's uid: pods of an earlier Job of a name may still be there.
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
        """Begin to watch.

        Raises:
            ApiError: the cluster refuses, or does not answer.
        """
        self.check()
        self.start()
        self.wait()

    def check(self) -> None:
        """Ask once whether it may be watched.

        Raises:
            ApiError: the cluster refuses, or does not answer.
        """
        for path in (jobs_path(self.namespace), pods_path(self.namespace)):
            self.cluster.request("GET", path, query={"labelSelector": SELECTOR, "limit": 1})

    def start(self) -> None:
        """Begin to watch, or to try for as long as it takes."""
        for informer in (self.jobs, self.pods):
            informer.start()

    def wait(self) -> None:
        """Until everything has been listed once, but not for ever."""
        for informer in (self.jobs, self.pods):
            informer.wait(FIRST_LIST_SECONDS)

    def close(self) -> None:
        for informer in (self.jobs, self.pods):
            informer.stop()

    @property
    def problem(self) -> str:
        """In words, why nothing new is heard; empty while all is well."""
        return self.jobs.problem or self.pods.problem

    def subscribe(self, job: str, tell: Callable[[str], None]) -> None:
        """From now on ``tell`` is called, from another thread, with the Job's name when it or a pod of its changes."""
        with self._lock:
            self._followers.setdefault(job, []).append(tell)

    def unsubscribe(self, job: str, tell: Callable[[str], None]) -> None:
        """No more."""
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
