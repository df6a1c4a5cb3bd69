"""What happens to an Experiment, gathered until it is reported as Events."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

from expunge_controller.execution.step_log import Progress
from expunge_controller.planning.plan import Step

USUAL = ("Finished", "Started")
"""What happens to every step."""
WARNINGS = ("StepFailed", "PlannedAnew")


class Event(NamedTuple):
    """An Event of Kubernetes: its type (Normal or Warning), reason and message."""

    type: str
    reason: str
    message: str


class EventBuffer:
    """The runner's observer: logs what has happened, by reason, step and text, and keeps it until it is taken."""

    def __init__(self, log: Callable[[str, str, str], None]) -> None:
        self.log = log
        self.pending: list[tuple[str, str]] = []
        """Reason and text, in order."""

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
        """Log what has happened, and keep it."""
        self.pending.append((reason, text))
        self.log(reason, step, text)

    def take(self) -> list[Event]:
        """Return what has happened, once."""
        pending, self.pending = self.pending, []
        return list(as_events({reason: [text for r, text in pending if r == reason] for reason, _ in pending}))


def as_events(news: Mapping[str, list[str]]) -> Iterator[Event]:
    """Texts by reason -> Events: one for what ends and begins in every run, by the reason that came first, since each Event is a
    write; and one for each other reason."""
    usual = {reason: ", ".join(texts) for reason, texts in news.items() if reason in USUAL}
    if usual:
        (first, message), *others = usual.items()
        yield Event("Normal", first, "; ".join([message, *(f"{reason.lower()} {text}" for reason, text in others)]))
    for reason, texts in news.items():
        if reason not in USUAL:
            yield Event("Warning" if reason in WARNINGS else "Normal", reason, ", ".join(texts))
