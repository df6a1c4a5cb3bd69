"""Starts the processes of a team, one for each GPU, and ends with them. Loads no torch.

This process stays the container's first: it hands SIGTERM on, and its exit code is that of the step. The processes find
each other by a file, and speak by the loopback interface.
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
"""Seconds for the others to end by themselves when one has failed: they may be waiting for it for ever."""
CHECKPOINT = 100.0
"""The same when one has ended because it was told to: the first may still be writing a checkpoint."""
TOLD = (ExitCode.PREEMPTED, ExitCode.LIMIT_EXCEEDED)
POLL_SECONDS = 0.05


def launch(count: int) -> int:
    """The exit code of the step, done by ``count`` processes."""
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
            "EXPUNGE_MODEL_CACHE": shared,  # what one has fetched, the others need not
            # They are on one machine: nothing of what they say to each other is to leave it.
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
            # Each ends when its stdin does, which is this process.
            team.append(
                subprocess.Popen(
                    [sys.executable, "-m", "expunge_jobs"],
                    env=environment | own,
                    stdin=subprocess.PIPE,
                    start_new_session=True,
                )
            )
        if ending:  # it came while they were started: some have not heard of it
            for member in team:
                member.terminate()
        return _wait(team)


def _wait(team: list[subprocess.Popen[bytes]]) -> int:
    """The exit code when all have ended, which is soon after the first has, or one has failed."""
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
    """The exit code of a team: its members', the first's in front, and those of them that failed by themselves."""
    if codes[0] == ExitCode.DONE:
        return ExitCode.DONE
    if failures:
        # Others may fail for want of one that was killed (a negative code), or that cannot succeed (a high one).
        code = min(failures) if min(failures) < 0 else max(failures)
        return code if code >= 0 else 128 - code
    # Each has a clock of its own, and the first that rings ends all.
    return next((int(c) for c in (ExitCode.LIMIT_EXCEEDED, ExitCode.PREEMPTED) if c in codes), ExitCode.FAILED)
