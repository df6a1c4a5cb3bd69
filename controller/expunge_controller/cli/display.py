"""How a run looks while it goes: a line for each running step on a terminal, plain lines anywhere else. All on stderr."""

from __future__ import annotations

import sys
import time
from typing import Any, Protocol

from expunge_controller.execution.step_log import Progress, progress_words
from expunge_controller.planning.plan import Plan, Step
from expunge_controller.text import printable, say

PROGRESS_SECONDS = 10.0
"""Seconds between two plain lines about the same step."""
REASON_SECONDS = 1.0
"""Seconds after which a reason to wait is worth a line."""


class Display(Protocol):
    """An observer of a run with a picture to begin and to end."""

    def __enter__(self) -> Display: ...
    def __exit__(self, *exception: object) -> None: ...
    def started(self, step: Step) -> None: ...
    def progress(self, running: dict[str, Progress]) -> None: ...
    def finished(self, step: Step, seconds: float) -> None: ...
    def failed(self, step: Step, reason: str, again: bool) -> None: ...
    def running_elsewhere(self, step: Step) -> None: ...
    def notice(self, text: str) -> None: ...


def make_display(plan: Plan) -> Display:
    """Live lines where stderr is a terminal."""
    return LiveDisplay(plan) if sys.stderr.isatty() else PlainDisplay(plan)


class PlainDisplay:
    """One line for each thing that happens."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self._said: dict[str, float] = {}
        self._reasons: dict[str, tuple[str, float]] = {}
        self._told: dict[str, str] = {}

    def __enter__(self) -> PlainDisplay:
        return self

    def __exit__(self, *exception: object) -> None:
        pass

    def started(self, step: Step) -> None:
        self._said[step.key] = time.monotonic()
        self.line(f"started   {step.name}")

    def progress(self, running: dict[str, Progress]) -> None:
        for key, progress in running.items():
            reason = progress.get("reason", "")
            if reason != self._reasons.get(key, ("", 0.0))[0]:
                self._reasons[key] = (reason, time.monotonic())
            # Why a step waits is said once, and only if it is more than a moment on the way to something else.
            lasts = time.monotonic() - self._reasons[key][1] >= REASON_SECONDS if reason else False
            new = lasts and self._told.get(key) != reason
            due = progress and not reason and time.monotonic() - self._said.get(key, 0.0) >= PROGRESS_SECONDS
            if new or due:
                self._told[key] = reason
                self._said[key] = time.monotonic()
                self.line(f"running   {self.plan.by_key[key].name}: {progress_words(progress)}")

    def finished(self, step: Step, seconds: float) -> None:
        self.line(f"done      {step.name}" + (f" ({seconds:.1f} s)" if seconds else " (by another run)"))

    def failed(self, step: Step, reason: str, again: bool) -> None:
        self.line(f"{'retrying' if again else 'FAILED':9} {step.name}: {reason}")

    def running_elsewhere(self, step: Step) -> None:
        self.line(f"waiting   {step.name}: another run on this machine has it")

    def notice(self, text: str) -> None:
        self.line(f"note      {text}")

    def line(self, text: str) -> None:
        say(text)


class LiveDisplay(PlainDisplay):
    """What happened scrolls by; below it a bar for each step that runs."""

    def __init__(self, plan: Plan) -> None:
        super().__init__(plan)
        from rich.console import Console
        from rich.live import Live

        self._console = Console(stderr=True, highlight=False)
        # The first step starts from a process that imports torch first, which takes some seconds.
        self._live = Live("loading torch ...", console=self._console, refresh_per_second=4, transient=True)

    def __enter__(self) -> LiveDisplay:
        self._live.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._live.stop()

    def progress(self, running: dict[str, Progress]) -> None:
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        table = Table.grid(padding=(0, 2))
        for key, progress in running.items():
            share = progress.get("step", 0) / progress["steps"] if progress.get("steps") else 0.0
            bar: Any = ProgressBar(total=1.0, completed=share, width=24)
            # As texts: of a str, rich would read [red] as markup.
            table.add_row(Text(printable(self.plan.by_key[key].name)), bar, Text(printable(progress_words(progress))))
        self._live.update(table)

    def line(self, text: str) -> None:
        self._live.console.print(printable(text), markup=False, soft_wrap=True)  # a command in it stays whole
