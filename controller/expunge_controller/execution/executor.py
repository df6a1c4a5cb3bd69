"""What runs steps: a small protocol between the runner and a machine or a cluster."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from expunge_controller.execution.step_log import Progress
from expunge_controller.planning.plan import Step


@dataclass(frozen=True)
class Ended:
    """An attempt that ended.

    ``ok``: its artifact was seen whole. ``final``: the failure is not retried. ``vanished``: no fault of the step's, which
    starts again at once. ``pod``: what its pod says of its end, for the record.
    """

    key: str
    ok: bool
    reason: str = ""
    final: bool = False
    vanished: bool = False
    pod: dict[str, Any] = field(default_factory=dict)


Start = Literal["started", "no room", "elsewhere"]
"""What became of a wish to start a step; no room: not now, ask again; elsewhere: another runner has it."""


class SlotPool(Protocol):
    """Room for unfinished Jobs, shared with others (the operator's, whose Experiments have ``most`` together)."""

    @property
    def most(self) -> int: ...

    def acquire(self, job: str, there: bool = False) -> bool:
        """Return whether there is room for this Job, or it is there already."""
        ...

    def has_pod(self, job: str) -> None:
        """A pod of the Job was seen."""
        ...

    def release(self, job: str) -> None:
        """The Job is no longer waited for."""
        ...


class Executor(Protocol):
    """Starts steps and tells how they go. Holds no state that a new one could not observe."""

    detached: bool
    """Whether what it started goes on when this process ends."""

    def start(self, step: Step) -> Start:
        """Start a step, if there is room and nobody else runs it."""
        ...

    def adopt(self, step: Step) -> bool:
        """Wait for a step that is at work already and would go on without anybody; whether there is one."""
        ...

    def next_retry_in(self) -> float:
        """Seconds until a start that was put off may be tried again; infinite where none was."""
        ...

    def active_keys(self) -> set[str]:
        """Keys of the steps that this run waits for."""
        ...

    def running(self) -> dict[str, Progress]:
        """The last progress of every step that this run waits for, by key."""
        ...

    def wait(self, seconds: float) -> list[Ended]:
        """Attempts that ended, as soon as there is one; none after ``seconds``."""
        ...

    def problem(self) -> str:
        """In words, why nothing can be started or seen just now; empty while all is well."""
        ...

    def failure_recorded(self, step: Step) -> None:
        """The step's failure is recorded: what is left of its last attempt may go."""
        ...

    def cancel(self) -> None:
        """The run was cancelled: what it started, and would go on without this process, ends."""
        ...

    def stop(self, grace: float) -> None:
        """End what must not outlive this process: ask, wait ``grace`` seconds, then kill."""
        ...
