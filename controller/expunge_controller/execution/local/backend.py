"""The backend that runs steps as processes of this machine."""

from __future__ import annotations

import time
from collections.abc import Iterator
from importlib.util import find_spec
from typing import TYPE_CHECKING, ClassVar

from expunge_controller.execution.options import Option, Where

if TYPE_CHECKING:
    from expunge_jobs.store import Store

    from expunge_controller.execution.local.executor import LocalExecutor
    from expunge_controller.experiment.schema import Spec
    from expunge_controller.planning.plan import Step
    from expunge_controller.planning.resolve import Resolved

FOLLOW_SECONDS = 0.5
"""Interval between two reads of a growing log, in seconds."""


class Backend:
    """A backend on the machine that runs this program."""

    OPTIONS: ClassVar[tuple[Option, ...]] = (
        Option("threads", "N", "cores that all steps together use on this machine; default: all", "EXPUNGE_THREADS"),
    )
    STAGES: ClassVar[bool] = False
    DETACHES: ClassVar[bool] = False

    def __init__(self, where: Where) -> None:
        self._threads = self.OPTIONS[0].value(where.options)

    def executor(self, store: Store, resolved: Resolved, spec: Spec, parallel: int) -> LocalExecutor:
        from expunge_controller.errors import ExperimentError
        from expunge_controller.execution.local.executor import LocalExecutor

        if self._threads is not None and not (self._threads.isdecimal() and int(self._threads) > 0):
            raise ExperimentError([f"--threads: found '{self._threads}'; allowed: a whole number from 1"])
        if find_spec("torch") is None:
            raise ExperimentError(["this Python has no torch, which steps need: pip install 'expunge[jobs]'"])
        threads = int(self._threads) if self._threads is not None else None
        return LocalExecutor(store, resolved.plan.specialists, spec.resources, parallel, threads)

    def observe(self, store: Store, steps: list[Step]) -> dict[str, str]:
        from expunge_controller.execution.local.observe import observe_running

        return observe_running(store, steps)

    def follow(self, store: Store, step: Step) -> Iterator[str]:
        from expunge_controller.execution.stored_logs import stored_lines

        told = 0
        while True:
            runs = step.key in self.observe(store, [step])
            lines = list(stored_lines(store, step))
            yield from lines[told:]
            told = len(lines)
            if not runs:
                return
            time.sleep(FOLLOW_SECONDS)

    def connect(self) -> None:
        pass

    def cancel(self, resolved: Resolved) -> int:
        return 0
