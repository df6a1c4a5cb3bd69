"""Starts the processes of a team, one for each GPU, and ends with them. Loads no torch.

This process stays the container's first: it hands SIGTERM on, and its exit code is that of the step. The processes find
each other by the variables that torch.distributed and accelerate read.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from types import FrameType

from expunge_jobs.errors import ExitCode

PATIENCE = 30.0
"""Seconds for the others to end by themselves when one has failed: they may be waiting for it for ever."""
POLL = 0.05


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
            **os.environ, "WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(_free_port()), "EXPUNGE_ATTEMPT": os.environ.get("EXPUNGE_ATTEMPT") or uuid.uuid4().hex,
            "EXPUNGE_THREADS": str(threads), "EXPUNGE_DIE_WITH_STDIN": "1",
        }  # fmt: skip
        for rank in range(count):
            if not ending:
                own = {"RANK": str(rank), "LOCAL_RANK": str(rank)}
                # Each ends when its stdin does, which is this process.
                team.append(
                    subprocess.Popen(
                        [sys.executable, "-m", "expunge_jobs"], env=environment | own, stdin=subprocess.PIPE
                    )
                )
        return _wait(team) if len(team) == count else ExitCode.PREEMPTED


def _wait(team: list[subprocess.Popen[bytes]]) -> int:
    """The exit code when all have ended, which is soon after the first has, or one has failed."""
    failures: list[int] = []
    end = float("inf")
    while True:
        codes = [member.poll() for member in team]
        if time.monotonic() < end:
            # One that ended because it was told to may be through before the first has written its checkpoint.
            failures = [c for c in codes if c not in (None, ExitCode.DONE, ExitCode.PREEMPTED, ExitCode.SPENT)]
            if end == float("inf") and (failures or codes[0] is not None):
                end = time.monotonic() + PATIENCE
        else:
            for member in team:
                member.kill()
        if None not in codes:
            if codes[0] == ExitCode.DONE or not failures:
                failures = [codes[0] or ExitCode.DONE]
            # Others may fail for want of one that was killed (a negative code), or that cannot succeed (a high one).
            code = min(failures) if min(failures) < 0 else max(failures)
            return int(code if code >= 0 else 128 - code)
        time.sleep(POLL)


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])
