"""A buffer of the events of an Experiment until their report as Events."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

from expunge_controller.execution.step_log import Progress
from expunge_controller.planning.plan import Step

USUAL = ("Finished", "Started")
"""Reasons that occur at every step."""
WARNINGS = ("StepFailed", "PlannedAnew")


class Event(NamedTuple):
    """A Kubernetes Event: type (Normal or Warning), reason and message."""

    type: str
    reason: str
    message: str


class EventBuffer:
    """The runner's observer, which logs and buffers the events of a run.

    ``log`` receives the reason, the step and the text of an event. The events are kept until ``take``.
    """

    def __init__(self, log: Callable[[str, str, str], None]) -> None:
        self.log = log
        self.pending: list[tuple[str, str]] = []
        """Reason and text of each event, in order."""

    def started(self, step: Step) -> None:
        self.add("Started", step.name, step.name)

    def progress(self, running: dict[str, Progress]) -> None:
        pass

    def finished(self, step: Step, seconds: float) -> None:
        self.add("Finished", step.name, step.name)

    def failed(self, step: Step, reason: str, again: bool) -> None:
        self.add("StepFailed", step.name, f"{step.name}: {reason}" + (" (trying again)" if again else ""))

    def running_elsewhere(self, step: Step) -> None:
        pass

    def notice(self, text: str) -> None:
        self.add("Notice", text.partition(":")[0], text)

    def add(self, reason: str, step: str, text: str) -> None:
        """Log an event, and keep it until ``take``."""
        self.pending.append((reason, text))
        self.log(reason, step, text)

    def take(self) -> list[Event]:
        """Return the pending events, and forget them."""
        pending, self.pending = self.pending, []
        return list(as_events({reason: [text for r, text in pending if r == reason] for reason, _ in pending}))


def as_events(news: Mapping[str, list[str]]) -> Iterator[Event]:
    """Convert texts by reason to Events.

    Each Event is a write. Therefore the usual reasons share one Event, which has the reason that came first. Each other
    reason has an Event of its own.
    """
    usual = {reason: ", ".join(texts) for reason, texts in news.items() if reason in USUAL}
    if usual:
        (first, message), *others = usual.items()
        yield Event("Normal", first, "; ".join([message, *(f"{reason.lower()} {text}" for reason, text in others)]))
    for reason, texts in news.items():
        if reason not in USUAL:
            yield Event("Warning" if reason in WARNINGS else "Normal", reason, ", ".join(texts))
