"""Progress of steps, read from the ends of their pods' logs."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Mapping

from expunge_controller.execution.kubernetes.observe import newest_progress
from expunge_controller.execution.step_log import Progress
from expunge_controller.kube_client.client import ApiError, Cluster, Object

READ_SECONDS = 2.0
"""Interval between two reads of the logs, in seconds."""


class PodProgress:
    """A thread that keeps the newest progress of each running pod.

    ``running`` returns these pods by the key of their step.
    """

    def __init__(self, cluster: Cluster, namespace: str, running: Callable[[], Mapping[str, Object]]) -> None:
        self.cluster, self.namespace, self.running = cluster, namespace, running
        self._newest: dict[str, Progress] = {}
        self._stopping = threading.Event()

    def start(self) -> None:
        threading.Thread(target=self._loop, daemon=True, name="logs of pods").start()

    def stop(self) -> None:
        self._stopping.set()

    def of(self, key: str) -> Progress:
        """Return a step's newest progress; empty if none was read."""
        return self._newest.get(key, {})

    def forget(self, key: str) -> None:
        """Drop a step's progress.

        The step's next pod reports from the beginning.
        """
        self._newest.pop(key, None)

    def _loop(self) -> None:
        while not self._stopping.wait(READ_SECONDS):
            for key, pod in self.running().items():
                # The pod may have ended, or its node may not answer; therefore a missing log is no error.
                # The pod's status tells the rest.
                with contextlib.suppress(ApiError):
                    self._newest[key] = newest_progress(self.cluster, self.namespace, pod) or self.of(key)
