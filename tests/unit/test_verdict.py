"""Jobs and pods in words, from status as a kubelet, a scheduler and the Job controller write it."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from expunge_controller.execution.kubernetes import diagnosis
from expunge_controller.execution.kubernetes.jobspec import DEFAULTS
from expunge_jobs.core.errors import LESS_MEMORY

Object = dict[str, Any]


def job(suspend: bool = False, queue: str = "", **condition: str) -> Object:
    return diagnosis.trim_job(
        {
            "metadata": {"name": "j", "uid": "u", "labels": {"kueue.x-k8s.io/queue-name": queue} if queue else {}},
            "spec": {"suspend": suspend},
            "status": {"conditions": [{"status": "True", **condition}] if condition else []},
        }
    )


def pod(phase: str, created: str = "2026-01-01T00:00:00Z", deleted: str | None = None, **state: Any) -> Object:
    status: Object = {"phase": phase, "conditions": state.pop("conditions", [])}
    status |= {k: state.pop(k) for k in ("reason", "message") if k in state}
    if state:
        status["containerStatuses"] = [{"state": state}]
    meta = {"name": "p", "uid": created, "creationTimestamp": created, "deletionTimestamp": deleted}
    return diagnosis.trim_pod({"metadata": meta, "status": status})


SCHEDULED = [{"type": "PodScheduled", "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"}]
UNSCHEDULABLE = [
    {
        "type": "PodScheduled",
        "status": "False",
        "reason": "Unschedulable",
        "message": "0/1 nodes are available: 1 Insufficient nvidia.com/gpu. preemption: 0/1 nodes are available.",
    }
]
PULL = {"reason": "ImagePullBackOff", "message": 'Back-off pulling image "x": ErrImagePull: not found'}


@pytest.mark.parametrize(
    ("found", "pods", "words"),
    [
        (job(), [], "no pod yet"),
        (job(suspend=True), [], "suspended"),
        (job(suspend=True, queue="research"), [], "suspended: waits for room in the queue 'research'"),
        (job(), [pod("Pending")], "waiting for a node"),
        (
            job(),
            [pod("Pending", conditions=UNSCHEDULABLE)],
            "waiting for a node: 0/1 nodes are available: 1 Insufficient",
        ),
        (job(), [pod("Pending", conditions=SCHEDULED)], "its pod is starting"),
        (job(), [pod("Pending", conditions=SCHEDULED, waiting={"reason": "ContainerCreating"})], "its pod is starting"),
        (
            job(),
            [pod("Pending", conditions=SCHEDULED, waiting=PULL)],
            "cannot start: ImagePullBackOff: Back-off pulling",
        ),
        (job(), [pod("Running", conditions=SCHEDULED, running={})], ""),
        (job(), [pod("Running", deleted="2026-01-01T00:02:00Z", running={})], "its pod is being ended"),
        (job(), [pod("Failed")], "its pod ended; the next try begins soon"),
        (job(), [pod("Failed"), pod("Running", "2026-01-01T00:01:00Z", running={})], ""),
    ],
)
def test_why_a_step_waits(found: Object, pods: list[Object], words: str) -> None:
    said = diagnosis.waiting_words(found, pods)
    assert said.startswith(words)
    assert bool(said) == bool(words)


def test_a_pod_that_is_refused_is_told_by_its_event() -> None:
    events = [{"reason": "SuccessfulCreate"}, {"reason": "FailedCreate", "message": "exceeded quota: gpus"}]
    assert diagnosis.waiting_words(job(), [], events) == "its pod is refused: exceeded quota: gpus"


def ended(code: int, reason: str = "Error", message: str = "", created: str = "2026-01-01T00:00:00Z") -> Object:
    return pod("Failed", created, terminated={"exitCode": code, "reason": reason, "message": message})


PROGRESS = '{"event": "start"}\n{"event": "progress", "step": 12, "steps": 75}\n'
FAILED = PROGRESS + '{"event": "failed", "reason": "the loss is nan at step 12", "exit_code": 65}\n'


@pytest.mark.parametrize(
    ("last", "said", "words"),
    [
        (
            ended(137, "OOMKilled", PROGRESS),
            "",
            f"out of memory at 16Gi: raise resources.finetune.memory, or {LESS_MEMORY['finetune']} (last heard: step 12/75)",
        ),
        (ended(143, reason="Error", message=""), "stopped by SIGTERM", "stopped by SIGTERM"),
        (ended(65, message=FAILED), "", "the loss is nan at step 12"),
        (ended(65, message=FAILED), "the loss is nan at step 12 of 75", "the loss is nan at step 12 of 75"),
        (ended(137), "", "killed by SIGKILL from outside"),
        (ended(3), "", "ended with exit code 3 and no word why"),
        (ended(1, message="python: can't open file\n\n"), "", "python: can't open file"),
        (ended(128, "StartError", "exec: no such file"), "", "cannot start: exec: no such file"),
        (pod("Succeeded", terminated={"exitCode": 0, "reason": "Completed"}), "", "completed without an artifact"),
        (
            pod(
                "Failed",
                reason="DeadlineExceeded",
                message="Pod was active on the node longer than the specified deadline",
            ),
            "",
            "took longer than 86400 s: raise resources.finetune.deadline",
        ),
        (
            pod("Failed", reason="Evicted", message='Usage of EmptyDir volume "work" exceeds the limit "20Gi".'),
            "",
            "used more disk than 20Gi: raise resources.finetune.disk",
        ),
        (
            pod("Failed", reason="Evicted", message="The node was low on resource: memory."),
            "",
            "Evicted: The node was low on resource: memory.",
        ),
        (
            pod("Failed", reason="Evicted", message="The node was low on resource: ephemeral-storage."),
            "",
            "Evicted: The node was low on resource: ephemeral-storage.",
        ),
    ],
)
def test_why_a_step_failed_and_what_to_raise(last: Object, said: str, words: str) -> None:
    found = job(type="Failed", reason="BackoffLimitExceeded", message="Job has reached the specified backoff limit")
    earlier = ended(1, created="2025-12-31T23:59:00Z")
    assert diagnosis.failure_words("finetune", DEFAULTS["finetune"], found, [earlier, last], said) == words


def test_what_a_pod_says_of_its_end_is_kept() -> None:
    earlier = ended(1, created="2025-12-31T23:59:00Z")
    assert diagnosis.last_words(
        [earlier, ended(65, message=FAILED), pod("Running", "2026-01-01T00:01:00Z", running={})]
    ) == {
        "name": "p",
        "exit_code": 65,
        "reason": "Error",
        "message": FAILED,
    }
    evicted = pod("Failed", reason="Evicted", message="The node was low on resource: memory.")
    assert diagnosis.last_words([evicted]) == {
        "name": "p",
        "reason": "Evicted",
        "message": "The node was low on resource: memory.",
    }
    assert diagnosis.last_words([pod("Running", running={})]) == {}


@pytest.mark.parametrize(
    ("message", "its_own"),
    [
        ('Usage of EmptyDir volume "work" exceeds the limit "20Gi".', True),
        ("Pod ephemeral local storage usage exceeds the total limit of containers 20Gi.", True),
        ('Container step exceeded its local ephemeral storage limit "20Gi".', True),
        ("The node was low on resource: ephemeral-storage. Container step was using 21Gi, request is 20Gi.", False),
    ],
)
def test_a_step_is_not_blamed_for_a_full_node(message: str, its_own: bool) -> None:
    assert diagnosis.out_of_disk(pod("Failed", reason="Evicted", message=message)) == its_own
    assert not diagnosis.out_of_disk(pod("Failed", reason="Error", message=message))


def test_a_job_without_pods_says_what_the_job_says() -> None:
    found = job(type="Failed", reason="BackoffLimitExceeded", message="Job has reached the specified backoff limit")
    asked = DEFAULTS["merge"]
    assert diagnosis.failure_words("merge", asked, found, []) == "Job has reached the specified backoff limit"
    assert diagnosis.failure_words("merge", asked, found, [], "the store is full") == "the store is full"


def test_a_long_message_is_cut() -> None:
    said = diagnosis.waiting_words(job(), [pod("Pending", conditions=[UNSCHEDULABLE[0] | {"message": "word " * 200}])])
    assert len(said) < 300
    assert said.endswith("...")


def test_the_clock() -> None:
    now = datetime(2026, 1, 1, 0, 20, tzinfo=UTC)
    assert diagnosis.seconds_since_scheduled(pod("Pending", conditions=SCHEDULED), now) == 1200
    assert diagnosis.seconds_since_scheduled(pod("Pending", conditions=UNSCHEDULABLE), now) == 0
    assert diagnosis.seconds_past_end(pod("Running", deleted="2026-01-01T00:15:00Z"), now) == 300
    assert diagnosis.seconds_past_end(pod("Running"), now) == 0
