"""What can go wrong in a step, and the exit code that says so to whoever started it.

Exception
└── StepError                 exit 1    may be tried again
    ├── BadTask               exit 65   cannot succeed however often it is tried
    ├── DamagedInput          exit 66   an artifact it needs is damaged: make that one again
    ├── LimitExceeded         exit 69   its time, disk or tries are used up: raise them, or check what evicts its pods
    └── Preempted             exit 143  ended by SIGTERM from outside; worth trying again
"""

from __future__ import annotations

from enum import IntEnum


class ExitCode(IntEnum):
    """Exit codes of ``python -m expunge_jobs``; those from 64 to 78 are BSD's ``sysexits``."""

    DONE = 0
    FAILED = 1
    BAD_TASK = 65
    DAMAGED_INPUT = 66
    LIMIT_EXCEEDED = 69
    PREEMPTED = 143


class StepError(Exception):
    """A step failed; its message is for the user and never holds a row's text."""

    exit_code = ExitCode.FAILED


class BadTask(StepError):
    """The task cannot succeed however often it is tried."""

    exit_code = ExitCode.BAD_TASK


class DamagedInput(StepError):
    """An artifact that the task needs is not what its manifest says. ``folder``: the artifact's in the store, and ``attempt``:
    who made it, where that is known."""

    exit_code = ExitCode.DAMAGED_INPUT

    def __init__(self, message: str, folder: str = "", attempt: str = "") -> None:
        super().__init__(message)
        self.folder, self.attempt = folder, attempt


class LimitExceeded(StepError):
    """What the step was allowed is used up; going on needs more of it."""

    exit_code = ExitCode.LIMIT_EXCEEDED


class Preempted(StepError):
    """The step was ended by SIGTERM."""

    exit_code = ExitCode.PREEMPTED


def suggestion(word: str, allowed: list[str]) -> str:
    """``; did you mean 'x'?`` for the nearest of the allowed words, or nothing when none is near."""
    from difflib import get_close_matches

    near = get_close_matches(word, allowed, n=1, cutoff=0.6)
    return f"; did you mean '{near[0]}'?" if near else ""
