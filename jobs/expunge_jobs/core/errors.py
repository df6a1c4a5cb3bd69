"""Step errors and the exit codes that report them to the caller.

Exception
└── StepError                 exit 1    may be retried
    ├── BadTask               exit 65   fails on every retry
    ├── DamagedInput          exit 66   an input artifact is damaged: produce that artifact again
    ├── LimitExceeded         exit 69   time, disk or tries are used up: raise them, or check what evicts the pods
    └── Preempted             exit 143  ended by SIGTERM from outside; may be retried
"""

from __future__ import annotations

from enum import IntEnum


class ExitCode(IntEnum):
    """Exit codes of ``python -m expunge_jobs``.

    Codes from 64 to 78 are those of BSD's ``sysexits``.
    """

    DONE = 0
    FAILED = 1
    BAD_TASK = 65
    DAMAGED_INPUT = 66
    LIMIT_EXCEEDED = 69
    PREEMPTED = 143


class StepError(Exception):
    """A failed step.

    The message is for the user and never contains a row's text.
    """

    exit_code = ExitCode.FAILED


class BadTask(StepError):
    """A task that fails on every retry."""

    exit_code = ExitCode.BAD_TASK


class DamagedInput(StepError):
    """An input artifact that differs from its manifest.

    ``folder`` is the artifact's folder in the store. ``attempt`` is the attempt that produced the artifact. Either is
    empty if unknown.
    """

    exit_code = ExitCode.DAMAGED_INPUT

    def __init__(self, message: str, folder: str = "", attempt: str = "") -> None:
        super().__init__(message)
        self.folder, self.attempt = folder, attempt


class LimitExceeded(StepError):
    """An exhausted limit of a step.

    The step needs a higher limit to continue.
    """

    exit_code = ExitCode.LIMIT_EXCEEDED


class Preempted(StepError):
    """A step that SIGTERM ended."""

    exit_code = ExitCode.PREEMPTED


def suggestion(word: str, allowed: list[str]) -> str:
    """Return a hint with the nearest of the allowed words.

    The hint is ``; did you mean 'x'?``. The hint is empty if no allowed word is near.
    """
    from difflib import get_close_matches

    near = get_close_matches(word, allowed, n=1, cutoff=0.6)
    return f"; did you mean '{near[0]}'?" if near else ""


LESS_MEMORY = {
    "memorize": "lower memorize.batch_size or data.max_length",
    "finetune": "lower batch_size (accumulation keeps a step's rows), or set gradient_checkpointing",
    "evaluate": "lower evaluate.batch_size",
}
"""How a file asks a kind of step for less memory."""
