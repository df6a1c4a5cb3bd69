"""The launcher of a worker group, with one process for each GPU.

The launcher stays the container's first process, ends with its workers, and loads no torch.
The launcher forwards SIGTERM to the workers and exits with the exit code of the step.
The workers rendezvous by a file and communicate over the loopback interface.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path
from types import FrameType

from expunge_jobs.core.errors import ExitCode
from expunge_jobs.runtime.distributed import RENDEZVOUS_FILE

OTHERS_SECONDS = 30.0
"""Grace period for the other workers when a worker has failed or rank 0 has ended, in seconds.

The others might otherwise wait forever for the worker that is gone.
"""
CHECKPOINT = 100.0
"""Grace period when a worker has ended because of SIGTERM or a limit. Rank 0 may still be writing a checkpoint."""
TOLD = (ExitCode.PREEMPTED, ExitCode.LIMIT_EXCEEDED)
POLL_SECONDS = 0.05


def launch(count: int) -> int:
    """Run the step in ``count`` processes and return its exit code."""
    threads = max(1, int(os.environ.get("EXPUNGE_THREADS") or os.cpu_count() or 1) // count)
    team: list[subprocess.Popen[bytes]] = []
    ending = False

    def hand_on(number: int, frame: FrameType | None) -> None:
        nonlocal ending
        ending = True
        for member in team:
            member.send_signal(number)

    signal.signal(signal.SIGTERM, hand_on)
    with tempfile.TemporaryDirectory(prefix="expunge-team-") as shared:
        environment = {
            "EXPUNGE_MODEL_CACHE": shared,  # one fetch of a model serves all workers
            # The workers are on one machine; therefore their traffic stays on the loopback interface.
            "GLOO_SOCKET_IFNAME": "lo",
            "NCCL_SOCKET_IFNAME": "lo",
            **os.environ,
            "WORLD_SIZE": str(count),
            "LOCAL_WORLD_SIZE": str(count),
            RENDEZVOUS_FILE: str(Path(shared, "meeting")),
            "EXPUNGE_ATTEMPT": os.environ.get("EXPUNGE_ATTEMPT") or uuid.uuid4().hex,
            "EXPUNGE_THREADS": str(threads),
            "EXPUNGE_DIE_WITH_STDIN": "1",
        }
        for rank in range(count):
            own = {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            # A worker ends when its stdin ends; therefore each worker ends with this process.
            team.append(
                subprocess.Popen(
                    [sys.executable, "-m", "expunge_jobs"],
                    env=environment | own,
                    stdin=subprocess.PIPE,
                    start_new_session=True,
                )
            )
        if ending:  # SIGTERM came while workers were starting; therefore send SIGTERM to all
            for member in team:
                member.terminate()
        return _wait(team)


def _wait(team: list[subprocess.Popen[bytes]]) -> int:
    """Wait for all workers to end and return the exit code of the step.

    After rank 0 has ended or a worker has failed, the others get a grace period and are then killed.
    """
    failures: list[int] = []
    end = float("inf")
    while True:
        codes = [member.poll() for member in team]
        now = time.monotonic()
        if now < end:
            failures = [c for c in codes if c not in (None, ExitCode.DONE, *TOLD)]
            if failures or codes[0] is not None:
                end = min(end, now + OTHERS_SECONDS)
            elif end == float("inf") and any(c in TOLD for c in codes):
                end = now + CHECKPOINT
        else:
            for member in team:
                member.kill()
        if None not in codes:
            return outcome([c for c in codes if c is not None], failures)
        time.sleep(POLL_SECONDS)


def outcome(codes: list[int], failures: list[int]) -> int:
    """Return the exit code of a worker group.

    ``codes`` are the exit codes of all ranks, rank 0 first. ``failures`` are the codes of workers that failed
    by themselves.
    """
    if codes[0] == ExitCode.DONE:
        return ExitCode.DONE
    if failures:
        # A worker that was killed (a negative code) or cannot succeed (a high code) may make the others fail.
        # Therefore return that worker's code.
        code = min(failures) if min(failures) < 0 else max(failures)
        return code if code >= 0 else 128 - code
    # Each worker has its own clock, and the first to ring ends all; therefore a limit outranks a preemption.
    return next((int(c) for c in (ExitCode.LIMIT_EXCEEDED, ExitCode.PREEMPTED) if c in codes), ExitCode.FAILED)
