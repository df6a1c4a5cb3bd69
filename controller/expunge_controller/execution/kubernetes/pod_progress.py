"""How far steps are, from the ends of their pods' logs."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Mapping

from expunge_controller.execution.kubernetes.observe import newest_progress
from expunge_controller.execution.step_log import Progress
from expunge_controller.kube_client.client import ApiError, Cluster, Object

READ_SECONDS = 2.0
"""Between two looks at the logs."""


class PodProgress:
    """The newest progress of running pods, kept by a thread. ``running`` gives those pods by their step's key."""

    def __init__(self, cluster: Cluster, namespace: str, running: Callable[[], Mapping[str, Object]]) -> None:
        self.cluster, self.namespace, self.running = cluster, namespace, running
        self._newest: dict[str, Progress] = {}
        self._stopping = threading.Event()

    def start(self) -> None:
        threading.Thread(target=self._loop, daemon=True, name="logs of pods").start()

    def stop(self) -> None:
        self._stopping.set()

    def of(self, key: str) -> Progress:
        """Return a step's newest progress; empty where nothing was read."""
        return self._newest.get(key, {})

    def forget(self, key: str) -> None:
        """Drop what is known of a step: its next pod starts anew."""
        self._newest.pop(key, None)

    def _loop(self) -> None:
        while not self._stopping.wait(READ_SECONDS):
            for key, pod in self.running().items():
                # No log is no error: the pod may have ended, or its node may not answer. Its state says the rest.
                with contextlib.suppress(ApiError):
                    self._newest[key] = newest_progress(self.cluster, self.namespace, pod) or self.of(key)
