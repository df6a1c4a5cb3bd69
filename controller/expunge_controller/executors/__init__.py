"""What runs steps: a small protocol between the runner and a machine or a cluster."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

from expunge_controller.plan import Step


@dataclass(frozen=True)
class Ended:
    """An attempt that ended. ``final`` failures are not tried again."""

    key: str
    ok: bool
    reason: str = ""
    final: bool = False


Start = Literal["started", "no room", "elsewhere"]
"""What became of a wish to start a step; elsewhere: another runner has it."""


class Executor(Protocol):
    """Starts steps and tells how they go. Holds no state that a new one could not observe."""

    def start(self, step: Step) -> Start:
        """Start a step, if there is room and nobody else runs it."""
        ...

    def running(self) -> dict[str, dict[str, float]]:
        """The last progress of every step that runs here, by key."""
        ...

    def wait(self, seconds: float) -> list[Ended]:
        """Attempts that ended, as soon as there is one; none after ``seconds``."""
        ...

    def stop(self, grace: float) -> None:
        """End everything that this executor started: ask, wait ``grace`` seconds, then kill."""
        ...
