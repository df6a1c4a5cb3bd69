"""The display of a run: live on a terminal, plain lines elsewhere.

A live display has one line per running step. All output goes to stderr.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any, Protocol

from expunge_controller.execution.step_log import Progress, progress_words
from expunge_controller.planning.plan import Plan, Step
from expunge_controller.text import printable, say

PROGRESS_SECONDS = 10.0
"""Interval between two plain progress lines of a step, in seconds."""
REASON_SECONDS = 1.0
"""Delay before printing the reason why a step waits, in seconds."""


class Display(Protocol):
    """A run observer whose context starts and stops the display."""

    def __enter__(self) -> Display: ...
    def __exit__(self, *exception: object) -> None: ...
    def started(self, step: Step) -> None: ...
    def progress(self, running: dict[str, Progress]) -> None: ...
    def finished(self, step: Step, seconds: float) -> None: ...
    def failed(self, step: Step, reason: str, again: bool) -> None: ...
    def running_elsewhere(self, step: Step) -> None: ...
    def notice(self, text: str) -> None: ...


def make_display(plan: Plan, clock: Callable[[], float] = time.monotonic) -> Display:
    """Return a live display if stderr is a terminal, else a plain one."""
    return LiveDisplay(plan, clock) if sys.stderr.isatty() else PlainDisplay(plan, clock)


class PlainDisplay:
    """A display of one line per event."""

    def __init__(self, plan: Plan, clock: Callable[[], float] = time.monotonic) -> None:
        self.plan, self.clock = plan, clock
        self._said: dict[str, float] = {}
        self._reasons: dict[str, tuple[str, float]] = {}
        self._told: dict[str, str] = {}

    def __enter__(self) -> PlainDisplay:
        return self

    def __exit__(self, *exception: object) -> None:
        pass

    def started(self, step: Step) -> None:
        self._said[step.key] = self.clock()
        self.line(f"started   {step.name}")

    def progress(self, running: dict[str, Progress]) -> None:
        for key, progress in running.items():
            reason = progress.get("reason", "")
            if reason != self._reasons.get(key, ("", 0.0))[0]:
                self._reasons[key] = (reason, self.clock())
            # Most waits are brief; therefore print a reason only if it lasts, and only once.
            lasts = self.clock() - self._reasons[key][1] >= REASON_SECONDS if reason else False
            new = lasts and self._told.get(key) != reason
            due = progress and not reason and self.clock() - self._said.get(key, 0.0) >= PROGRESS_SECONDS
            if new or due:
                self._told[key] = reason
                self._said[key] = self.clock()
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
    """A display of scrolling events above one bar per running step."""

    def __init__(self, plan: Plan, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(plan, clock)
        from rich.console import Console
        from rich.live import Live

        self._console = Console(stderr=True, highlight=False)
        # The process that starts the first step imports torch, which takes some seconds; therefore announce the delay.
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
            # rich reads [red] in a str as markup; therefore pass Text.
            table.add_row(Text(printable(self.plan.by_key[key].name)), bar, Text(printable(progress_words(progress))))
        self._live.update(table)

    def line(self, text: str) -> None:
        self._live.console.print(printable(text), markup=False, soft_wrap=True)  # soft_wrap keeps a command whole
