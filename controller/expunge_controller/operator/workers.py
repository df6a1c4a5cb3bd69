"""The operator: informers, a queue and workers.

Each worker reconciles one Experiment at a time.
"""

from __future__ import annotations

import threading
import traceback
from collections.abc import Callable

from expunge_jobs.store import StoreError, Unavailable

from expunge_controller.execution.kubernetes.job_informer import JobInformer
from expunge_controller.experiment.resource import resources_path
from expunge_controller.kube_client.client import METADATA, ApiError, Cluster
from expunge_controller.kube_client.informer import Informer
from expunge_controller.operator.config import Settings
from expunge_controller.operator.experiments import PAGE, name_of, project
from expunge_controller.operator.generations import Generations
from expunge_controller.operator.job_slots import JobSlots
from expunge_controller.operator.metrics import Metrics
from expunge_controller.operator.reconciler import Reconciler
from expunge_controller.operator.reporting import StatusReporter, Update
from expunge_controller.operator.work_queue import NamespacedName, WorkQueue

BACKOFF_SECONDS = (1.0, 60.0)
"""First and longest delay before the retry of a failed reconcile, such as one whose store gave no answer."""
QUEUE_SECONDS = 1.0
"""Time that a worker waits for a key before it checks whether the operator ends."""


class Operator:
    """The operator from ``start`` to ``stop``."""

    def __init__(self, cluster: Cluster, settings: Settings, log: Callable[..., None]) -> None:
        self.cluster, self.settings, self.log = cluster, settings, log
        self.queue = WorkQueue()
        starting = max(1, settings.workers - 2)  # Two workers remain for the Experiments at work.
        slots = JobSlots(settings.max_jobs, self.queue.add, starting)
        self.jobs = {n: JobInformer(cluster, n) for n in settings.namespaces}
        self.experiments = {
            n: Informer(cluster, resources_path(n), "", project, lambda o: self.queue.add(name_of(o)), page=PAGE)
            for n in settings.namespaces
        }
        self.metrics = Metrics(self._steps, self._phases)
        cluster.counted = lambda method, status: self.metrics.calls.labels(method, str(status)).inc()
        self.reporter = StatusReporter(cluster, self.experiments, self.queue, log)
        generations = Generations(cluster, settings, self.jobs, slots, self.queue, self.metrics, log)
        self.reconciler = Reconciler(self.experiments, generations, slots, self.reporter, self.metrics, log)
        self._failures: dict[NamespacedName, int] = {}
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._work, daemon=True, name=f"worker {n}") for n in range(settings.workers)
        ]

    def start(self) -> None:
        """Start the informers and the workers.

        Raises:
            ApiError: the cluster refuses, or does not answer.
        """
        refused: dict[str, ApiError] = {}
        for namespace in self.settings.namespaces:
            try:
                self.cluster.request("GET", resources_path(namespace), query={"limit": 1}, accept=METADATA)
                self.jobs[namespace].check()
            except ApiError as error:
                # The namespace may have been deleted with its Roles; therefore go on with the others.
                refused[namespace] = error
                self.log("warning", (namespace, ""), str(error))
        if len(refused) == len(self.settings.namespaces):
            raise next(iter(refused.values()))
        for namespace, jobs in self.jobs.items():
            jobs.start()
            self.experiments[namespace].start()
        for namespace, jobs in self.jobs.items():
            if namespace not in refused:
                jobs.wait()
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """End the workers and the informers, while the Jobs keep running."""
        self._stop.set()
        for thread in self._threads:
            thread.join(5)
        self.reconciler.close()
        for informer in self.experiments.values():
            informer.stop()
        for jobs in self.jobs.values():
            jobs.close()

    def liveness_problem(self) -> str:
        """Return why only a restart would help; empty if all is well."""
        return "" if all(t.is_alive() for t in self._threads) else "a worker has ended"

    def readiness_problem(self) -> str:
        """Return why the operator knows nothing of the cluster.

        The text is empty if all is well, or if only some namespaces are refused.
        """
        problems = []
        for namespace, jobs in self.jobs.items():
            informers = (self.experiments[namespace], jobs.jobs, jobs.pods)
            problem = next((i.problem for i in informers if i.problem), "")
            if not problem and not all(i.wait(0) for i in informers):
                return "not everything has been listed yet"
            problems.append(problem)
        return "" if "" in problems else problems[0]

    def _work(self) -> None:
        while not self._stop.is_set():
            name = self.queue.get(QUEUE_SECONDS)
            if name is None:
                continue
            try:
                again = self._reconcile(name)
            except Exception:
                # The worker serves other Experiments too; therefore it survives any error.
                self.log("error", name, traceback.format_exc())
                again = BACKOFF_SECONDS[1]
            finally:
                self.queue.done(name)
            if again is not None:
                self.queue.add_after(name, again)

    def _reconcile(self, name: NamespacedName) -> float | None:
        try:
            look = self.reconciler.reconcile(name, retrying=name in self._failures)
        except (Unavailable, ApiError, StoreError) as error:
            return self._back_off(name, "Unavailable", str(error))
        except Exception as error:
            # An error of one Experiment must not affect the others; therefore catch any.
            self.log("error", name, traceback.format_exc())
            return self._back_off(name, "InternalError", f"{type(error).__name__}: {error}")
        self.metrics.reconciles.labels("ok").inc()
        if not look.refused:
            self._failures.pop(name, None)
        return look.again

    def _back_off(self, name: NamespacedName, reason: str, message: str) -> float:
        self.metrics.reconciles.labels(reason).inc()
        turn = self._failures[name] = self._failures.get(name, 0) + 1
        self.log("warning", name, message)
        found = self.experiments[name[0]].get(name[1])
        # For an Experiment at work, a single failure is no news; therefore report from the second on.
        if found is not None and (turn > 1 or not found["status"]):
            try:
                self.reporter.update_status(name, found, Update("Running", message, reason=reason, observed=False))
            except ApiError as error:
                self.log("warning", name, f"its status could not be written: {error}")
        return float(min(BACKOFF_SECONDS[0] * 2 ** min(turn - 1, 10), BACKOFF_SECONDS[1]))

    def _steps(self) -> dict[str, int]:
        """Count the steps of the Experiments at work, by state."""
        return self.reconciler.count_steps()

    def _phases(self) -> dict[str, int]:
        counts: dict[str, int] = {}
        for informer in self.experiments.values():
            for found in informer.all():
                phase = found["status"].get("phase", "Pending")
                counts[phase] = counts.get(phase, 0) + 1
        return counts
