"""Readable reasons from the status of a Job and its pods. Pure.

The reasons tell why a step waits, why it cannot start, and why it failed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any

from expunge_jobs.core.errors import LESS_MEMORY, ExitCode

from expunge_controller.execution.kubernetes.jobspec import KEY, RESOURCES, RUN
from expunge_controller.execution.step_log import parse_event
from expunge_controller.experiment.scheduling import Resources
from expunge_controller.text import printable

Object = dict[str, Any]
MESSAGE_CHARACTERS = 256
"""Maximum length of a message that is passed on, in characters."""
_CANNOT_START = {
    "ErrImagePull",
    "ImagePullBackOff",
    "InvalidImageName",
    "ErrImageNeverPull",
    "ImageInspectError",
    "RegistryUnavailable",
    "CreateContainerConfigError",
    "CreateContainerError",
    "RunContainerError",
    "StartError",
    "ContainerCannotRun",
}
"""Waiting reasons of a container that seldom resolve by themselves.

A slow pull has the reason ContainerCreating, which is not in the set.
"""


def trim_job(job: Object) -> Object:
    """Return the fields of a Job that the controller reads."""
    meta, status = job["metadata"], job.get("status", {})
    marks = meta.get("annotations") or {}
    return {
        "metadata": {
            "name": meta["name"],
            "uid": meta["uid"],
            "deletionTimestamp": meta.get("deletionTimestamp"),
            "annotations": {k: marks[k] for k in (KEY, RESOURCES) if k in marks},
            "queue": (meta.get("labels") or {}).get(_QUEUE),
            "run": (meta.get("labels") or {}).get(RUN),
        },
        "spec": {"suspend": bool(job["spec"].get("suspend"))},
        "status": {
            "conditions": [
                {k: c.get(k, "") for k in ("type", "reason", "message")}
                for c in status.get("conditions") or []
                if c["status"] == "True" and c["type"] in _CONDITIONS
            ],
        },
    }


def trim_pod(pod: Object) -> Object:
    """Return the fields of a pod that the controller reads."""
    meta, status = pod["metadata"], pod.get("status", {})
    labels = meta.get("labels") or {}
    ended = status.get("phase") in ENDED
    return {
        "metadata": {
            "name": meta["name"],
            "uid": meta["uid"],
            "deletionTimestamp": meta.get("deletionTimestamp"),
            "creationTimestamp": meta["creationTimestamp"],
            "job": labels.get(_JOB_NAME, ""),
            "owner": labels.get(_JOB_UID, ""),
        },
        "status": {
            "phase": status.get("phase", "Pending"),
            "reason": status.get("reason", ""),
            "message": status.get("message", ""),
            # Thousands of ended pods are kept, and their scheduling time is never read; therefore drop it.
            "conditions": {}
            if ended
            else {
                c["type"]: {k: c[k] for k in ("status", "reason", "message", "lastTransitionTime") if c.get(k)}
                for c in status.get("conditions") or []
                if c["type"] == "PodScheduled"
            },
            "state": {
                name: {k: state[k] for k in _STATE if k in state}
                for name, state in next((c["state"] for c in status.get("containerStatuses") or []), {}).items()
            },
        },
    }


ENDED = ("Succeeded", "Failed")
_STATE = ("reason", "message", "exitCode", "startedAt", "finishedAt")
_CONDITIONS = ("Failed", "FailureTarget", "Complete")
_QUEUE = "kueue.x-k8s.io/queue-name"
_JOB_NAME, _JOB_UID = "batch.kubernetes.io/job-name", "batch.kubernetes.io/controller-uid"


def condition(job: Object, *kinds: str) -> Object | None:
    """Return the Job's condition of one of these types, or None."""
    return next((c for c in job["status"]["conditions"] if c["type"] in kinds), None)


def newest(pods: Iterable[Object]) -> Object | None:
    """Return the newest pod by creation time, or None."""
    return max(pods, key=lambda p: p["metadata"]["creationTimestamp"], default=None)


def has_ended(pod: Object) -> bool:
    """Return whether the pod's container will not run again."""
    return pod["status"]["phase"] in ENDED


def seconds_run(pods: Iterable[Object]) -> float:
    """Return the total run time of all terminated containers, in seconds."""
    ends = [p["status"]["state"].get("terminated") or {} for p in pods]
    return sum(
        (datetime.fromisoformat(e["finishedAt"]) - datetime.fromisoformat(e["startedAt"])).total_seconds()
        for e in ends
        if e.get("startedAt") and e.get("finishedAt")
    )


def out_of_memory(pod: Object) -> bool:
    """Return whether the container was killed at its own memory limit."""
    return bool((pod["status"]["state"].get("terminated") or {}).get("reason") == "OOMKilled")


def out_of_disk(pod: Object) -> bool:
    """Return whether the pod was evicted at its own disk limit.

    An eviction because of disk pressure on the node does not count.
    """
    return pod["status"]["reason"] == "Evicted" and bool(_OWN_DISK.match(pod["status"]["message"]))


_OWN_DISK = re.compile(
    "Usage of EmptyDir volume|Pod ephemeral local storage usage|Container .* exceeded its local ephemeral"
)
"""The beginnings of the kubelet's eviction messages (pkg/kubelet/eviction/helpers.go)."""


def waiting_words(job: Object, pods: Sequence[Object], events: Sequence[Object] = ()) -> str:
    """Return the reason why an unfinished Job's step does not run.

    The string is empty while the container runs.
    """
    pod = newest(p for p in pods if not has_ended(p))
    if pod is None:
        if job["spec"]["suspend"]:
            queue = job["metadata"]["queue"]
            return f"suspended: waits for room in the queue '{queue}'" if queue else "suspended"
        refused = [e for e in events if e.get("reason") == "FailedCreate"]
        if refused:
            return f"its pod is refused: {cut(refused[-1].get('message', ''))}"
        if pods:
            return "its pod ended; the next try begins soon"
        return "no pod yet"
    status = pod["status"]
    if pod["metadata"]["deletionTimestamp"]:
        return "its pod is being ended, and another will take its place"
    scheduled = status["conditions"].get("PodScheduled", {})
    if scheduled.get("status") == "False":
        # The scheduler's message goes on with details of preemption; therefore keep its first sentence only.
        message = str(scheduled.get("message") or scheduled.get("reason", "")).partition(". ")[0]
        return f"waiting for a node: {cut(message)}"
    if trouble := start_trouble(pod):
        return f"cannot start: {trouble}"
    if status["phase"] == "Pending":
        return "its pod is starting" if scheduled else "waiting for a node"
    return ""


def start_trouble(pod: Object) -> str:
    """Return the reason why a scheduled pod cannot start, or an empty string."""
    waiting = pod["status"]["state"].get("waiting") or {}
    if waiting.get("reason") not in _CANNOT_START:
        return ""
    message = waiting.get("message", "")
    return f"{waiting['reason']}" + (f": {cut(message)}" if message else "")


def seconds_since_scheduled(pod: Object, now: datetime) -> float:
    """Return the seconds since the pod was scheduled, or 0 without a node."""
    scheduled = pod["status"]["conditions"].get("PodScheduled", {})
    if scheduled.get("status") != "True" or not scheduled.get("lastTransitionTime"):
        return 0.0
    return (now - datetime.fromisoformat(scheduled["lastTransitionTime"])).total_seconds()


def seconds_past_end(pod: Object, now: datetime) -> float:
    """Return the seconds since the end of a deleted pod's grace period.

    The result is 0 if the pod is not being deleted.
    """
    ends = pod["metadata"]["deletionTimestamp"]
    return (now - datetime.fromisoformat(ends)).total_seconds() if ends else 0.0


def failure_words(kind: str, asked: Resources, job: Object, pods: Sequence[Object], said: str = "") -> str:
    """Return the reason why a Job failed, with the limit to raise if any.

    ``said``: the reason that the step's last attempt has written into the store.
    """
    pod = newest(p for p in pods if has_ended(p))
    if pod is None:
        why = condition(job, "Failed", "FailureTarget") or {}
        return said or cut(why.get("message", "")) or "its Job failed and says no reason"
    status = pod["status"]
    ended = status["state"].get("terminated") or {}
    code, last = ended.get("exitCode"), _last(ended.get("message", ""))
    if status["reason"] == "DeadlineExceeded":
        return f"took longer than {asked.deadline} s: raise resources.{kind}.deadline" + _heard(last)
    if out_of_disk(pod):
        return f"used more disk than {asked.disk}: raise resources.{kind}.disk" + _heard(last)
    if out_of_memory(pod):
        lower = f", or {LESS_MEMORY[kind]}" if kind in LESS_MEMORY else ""
        return f"out of memory at {asked.memory}: raise resources.{kind}.memory{lower}" + _heard(last)
    if said:
        return said
    if status["reason"]:
        return f"{status['reason']}: {cut(status['message'])}"
    if code == 128 + 9:
        return "killed by SIGKILL from outside" + _heard(last)
    if ended.get("reason") in ("StartError", "ContainerCannotRun"):
        return f"cannot start: {cut(ended.get('message', ''))}"
    if code == ExitCode.DONE:
        return "completed without an artifact"
    return last or f"ended with exit code {code} and no word why"


def last_words(pods: Iterable[Object]) -> Object:
    """Return the newest ended pod's account of its end.

    The account holds the pod's name, a reason, and the container's exit code and termination message.
    """
    pod = newest(p for p in pods if has_ended(p))
    if pod is None:
        return {}
    status = pod["status"]
    ended = status["state"].get("terminated") or {}
    said = {
        "name": pod["metadata"]["name"],
        "exit_code": ended.get("exitCode"),
        "reason": status["reason"] or ended.get("reason"),
        "message": ended.get("message") or status["message"],
    }
    return {k: v for k, v in said.items() if v not in (None, "")}


def _last(message: str) -> str:
    """Return the last event or line at the end of a step's log, in words."""
    for line in reversed(message.splitlines()):
        event = parse_event(line)
        if event is None:
            if line.strip():
                return cut(line)
        elif event["event"] == "failed":
            return str(event.get("reason"))
        elif event["event"] == "progress":
            return f"step {event.get('step')}/{event.get('steps')}"
        else:
            return str(event["event"])
    return ""


def _heard(last: str) -> str:
    return f" (last heard: {last})" if last else ""


def cut(message: str, most: int = MESSAGE_CHARACTERS) -> str:
    """Return the message in one line of at most ``most`` characters."""
    line = printable(" ".join(message.split()))
    return line if len(line) <= most else line[: most - 3] + "..."
