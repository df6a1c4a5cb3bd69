"""The protocol between the runner and a machine or a cluster."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from expunge_controller.execution.step_log import Progress
from expunge_controller.planning.plan import Step


@dataclass(frozen=True)
class Ended:
    """An attempt that ended.

    ``ok``: the executor saw the whole artifact.
    ``final``: the runner does not retry the failure.
    ``vanished``: the attempt was lost through no fault of the step, and the runner restarts the step at once.
    ``pod``: the pod's account of its end, for the failure record.
    """

    key: str
    ok: bool
    reason: str = ""
    final: bool = False
    vanished: bool = False
    pod: dict[str, Any] = field(default_factory=dict)


Start = Literal["started", "no room", "elsewhere"]
"""The result of a request to start a step.

started      the run waits for the step, or its end is already known
no room      there is no capacity now; ask again later
elsewhere    another runner runs the step
"""


class SlotPool(Protocol):
    """Slots for unfinished Jobs, shared between executors.

    In the operator, all Experiments share ``most`` slots.
    """

    @property
    def most(self) -> int: ...

    def acquire(self, job: str, there: bool = False) -> bool:
        """Acquire a slot for the Job and return whether this succeeded.

        ``there``: the Job exists already, and therefore always gets a slot.
        """
        ...

    def has_pod(self, job: str) -> None:
        """Record that the Job has a pod."""
        ...

    def release(self, job: str) -> None:
        """Give back the slot of a Job that the run no longer waits for."""
        ...


class Executor(Protocol):
    """A component that starts steps and reports their progress.

    An executor holds no state that a new executor could not observe.
    """

    detached: bool
    """Whether started steps continue when this process ends."""

    def start(self, step: Step) -> Start:
        """Start a step if there is room and no other runner runs the step."""
        ...

    def adopt(self, step: Step) -> bool:
        """Wait for a step that already runs detached from any runner.

        Returns whether there is such a step.
        """
        ...

    def next_retry_in(self) -> float:
        """Return the seconds until a postponed start may be retried.

        The result is infinite if no start is postponed.
        """
        ...

    def active_keys(self) -> set[str]:
        """Return the keys of the steps that this run waits for."""
        ...

    def running(self) -> dict[str, Progress]:
        """Return the last progress of each step that this run waits for, by key."""
        ...

    def wait(self, seconds: float) -> list[Ended]:
        """Return the ended attempts as soon as there is one.

        The list is empty if no attempt ends within ``seconds``.
        """
        ...

    def problem(self) -> str:
        """Return the problem that keeps steps from being started or observed.

        The string is empty while there is no problem.
        """
        ...

    def failure_recorded(self, step: Step) -> None:
        """Clean up after a step whose failure is recorded.

        The remains of its last attempt may be deleted.
        """
        ...

    def cancel(self) -> None:
        """End the detached steps of a cancelled run."""
        ...

    def stop(self, grace: float) -> None:
        """End the steps that must not outlive this process.

        The executor asks them to end, waits ``grace`` seconds, and then kills them.
        """
        ...
