"""Progress, logs and cancellation of Jobs, from the cluster alone.

The functions need access to the cluster and no executor. They cover the Jobs of all runners.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Collection, Iterable, Iterator

from expunge_controller.execution.kubernetes import diagnosis
from expunge_controller.execution.kubernetes.job_informer import SELECTOR, jobs_path, pods_path
from expunge_controller.execution.kubernetes.jobspec import CONTAINER, KEY, RUN, job_name
from expunge_controller.execution.step_log import Progress, newest_event, progress_words
from expunge_controller.kube_client.client import ApiError, Cluster, Object
from expunge_controller.planning.plan import Step

NEXT_POD_SECONDS = 2.0
"""Interval between two checks for a step's next pod, in seconds."""


def newest_progress(cluster: Cluster, namespace: str, pod: Object) -> Progress:
    """Return the last progress event at the end of a pod's log.

    Raises:
        ApiError: the pod has no log, or the cluster does not answer.
    """
    return newest_event(cluster.log(namespace, pod["metadata"]["name"], CONTAINER, tail=5), "progress")


def events_of(cluster: Cluster, namespace: str, uid: str) -> list[Object]:
    """Return the Events of the object with this uid.

    The list is empty without the permission to read Events. The wait reason of a step is then less specific.
    """
    try:
        return cluster.list(f"/api/v1/namespaces/{namespace}/events", fields=f"involvedObject.uid={uid}")[0]
    except ApiError:
        return []


def observe_jobs(cluster: Cluster, namespace: str, steps: Iterable[Step]) -> dict[str, str]:
    """Return the progress or wait reason of steps with unfinished Jobs.

    The result is a dictionary by step key, in words.

    Raises:
        ApiError: the cluster refuses, or does not answer.
    """
    jobs = {o["metadata"]["name"]: diagnosis.trim_job(o) for o in cluster.list(jobs_path(namespace), SELECTOR)[0]}
    pods = [diagnosis.trim_pod(o) for o in cluster.list(pods_path(namespace), SELECTOR)[0]]
    out: dict[str, str] = {}
    for step in steps:
        found = jobs.get(job_name(step))
        if found is None or found["metadata"]["annotations"].get(KEY) != step.key:
            continue
        if diagnosis.condition(found, "Failed", "Complete"):
            continue
        mine = [p for p in pods if p["metadata"]["owner"] == found["metadata"]["uid"]]
        alone = not mine and not found["spec"]["suspend"]
        events = events_of(cluster, namespace, found["metadata"]["uid"]) if alone else []
        words = diagnosis.waiting_words(found, mine, events)
        pod = diagnosis.newest(mine)
        if not words and pod is not None:
            with contextlib.suppress(ApiError):
                words = progress_words(newest_progress(cluster, namespace, pod))
        out[step.key] = words or "running"
    return out


def follow_pods(cluster: Cluster, namespace: str, step: Step) -> Iterator[str]:
    """Yield the log lines of a step's pods until the step's Job has ended.

    A step without a Job and without pods yields nothing.

    Raises:
        ApiError: the cluster refuses, or does not answer.
    """
    told: set[str] = set()
    name = f"batch.kubernetes.io/job-name={job_name(step)}"
    while True:
        unfinished = step.key in observe_jobs(cluster, namespace, [step])
        pods = [diagnosis.trim_pod(o) for o in cluster.list(pods_path(namespace), name)[0]]
        new = [p for p in pods if p["status"]["phase"] != "Pending" and p["metadata"]["uid"] not in told]
        if new:
            pod = min(new, key=lambda p: str(p["metadata"]["creationTimestamp"]))
            told.add(pod["metadata"]["uid"])
            with contextlib.suppress(ApiError):  # the pod may be deleted before its first line; therefore go on
                yield from cluster.log(namespace, pod["metadata"]["name"], CONTAINER, follow=True)
        elif not unfinished:
            return
        else:
            time.sleep(NEXT_POD_SECONDS)


def cancel(cluster: Cluster, namespace: str, run: str, keep: Collection[str] = ()) -> int:
    """Delete a run's unfinished Jobs and return their number.

    Jobs of the keys in ``keep`` stay.
    An informer may not have the newest Jobs yet; therefore the function lists the Jobs from the cluster.

    Raises:
        ApiError: the cluster refuses, or does not answer.
    """
    found, _ = cluster.list(jobs_path(namespace), f"{SELECTOR},{RUN}={run}")
    count = 0
    for each in found:
        trimmed = diagnosis.trim_job(each)
        meta = trimmed["metadata"]
        if diagnosis.condition(trimmed, "Failed", "Complete") is None and meta["annotations"].get(KEY) not in keep:
            count += cluster.delete(jobs_path(namespace, meta["name"]), meta["uid"])
    return count
