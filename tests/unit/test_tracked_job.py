"""What follows from a Job and its pods, without a cluster."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from expunge_controller.execution.kubernetes.diagnosis import trim_job, trim_pod
from expunge_controller.execution.kubernetes.tracked_job import Outcome, TrackedJob
from expunge_controller.experiment.loading import load_experiment
from expunge_controller.planning.resolve import resolve

QUICKSTART = Path(__file__).parents[2] / "examples" / "quickstart.yaml"
NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)
PULLING = {"state": {"waiting": {"reason": "ImagePullBackOff", "message": "no such image"}}}


def ago(seconds: float) -> str:
    return (NOW - timedelta(seconds=seconds)).isoformat()


def job(*conditions: str, suspend: bool = False) -> dict[str, Any]:
    holds = [{"type": c, "status": "True"} for c in conditions]
    return trim_job(
        {"metadata": {"name": "j", "uid": "1"}, "spec": {"suspend": suspend}, "status": {"conditions": holds}}
    )


def pod(phase: str = "Running", scheduled: float = 10, ends: float | None = None, **container: Any) -> dict[str, Any]:
    return trim_pod(
        {
            "metadata": {
                "name": "p",
                "uid": "2",
                "creationTimestamp": ago(60),
                "deletionTimestamp": None if ends is None else ago(ends),
            },
            "status": {
                "phase": phase,
                "conditions": [{"type": "PodScheduled", "status": "True", "lastTransitionTime": ago(scheduled)}],
                "containerStatuses": [container or {"state": {"running": {}}}],
            },
        }
    )


def observed(found: dict[str, Any] | None, *pods: dict[str, Any], age: float = 5, **fields: Any) -> Outcome:
    step = resolve(load_experiment(QUICKSTART)).plan.steps[0]
    tracked = TrackedJob((step,), "j", "1", fields.pop("foreign", False), 0.0, **fields)
    return tracked.observe(found, pods, NOW, age, start_timeout=100)


@pytest.mark.parametrize(
    ("outcome", "action"),
    [
        (observed(job(), pod()), "wait"),
        (observed(None), "wait"),
        (observed(None, age=11), "ask cluster"),
        (observed(None, seen=True), "vanished"),
        (observed(job()), "read events"),
        (observed(job(), age=1), "wait"),
        (observed(job(suspend=True)), "wait"),
        (observed(job("Failed"), pod("Failed")), "failed"),
        (observed(job("Failed"), pod("Failed"), foreign=True), "replace"),
        (observed(job("Complete"), pod("Succeeded")), "failed"),
        (observed(job(), pod("Pending", **PULLING)), "wait"),
        (observed(job(), pod("Pending", scheduled=101, **PULLING)), "cannot start"),
        (observed(job(), pod("Pending", **PULLING), foreign=True), "replace"),
        (observed(job(), pod(ends=299)), "wait"),
        (observed(job(), pod(ends=301)), "node lost"),
    ],
)
def test_what_is_seen_decides(outcome: Outcome, action: str) -> None:
    assert outcome.action == action


def test_a_step_that_met_its_own_limit_fails_before_its_job_does() -> None:
    killed = pod("Failed", state={"terminated": {"reason": "OOMKilled", "exitCode": 137}})
    other = pod("Failed", state={"terminated": {"reason": "Error", "exitCode": 143}})
    assert observed(job(), killed).action == "failed"
    assert observed(job(), other).action == "wait"


def test_whatever_has_ended_is_evidence_for_which_the_store_is_asked() -> None:
    assert observed(job(), pod()).evidence == ""
    ended, complete, gone = (
        observed(job(), pod("Succeeded")),
        observed(job("Complete"), pod("Succeeded")),
        observed(None, seen=True),
    )
    assert len({ended.evidence, complete.evidence, gone.evidence, ""}) == 4


def test_a_pod_that_cannot_start_says_why() -> None:
    reason = observed(job(), pod("Pending", scheduled=101, **PULLING)).reason
    assert reason == "could not start within 100 s: ImagePullBackOff: no such image"
