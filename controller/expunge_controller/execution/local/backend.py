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

    OPTIONS: ClassVar[tuple[Option, ...]] = ()
    STAGES: ClassVar[bool] = False
    DETACHES: ClassVar[bool] = False

    def __init__(self, where: Where) -> None:
        pass

    def executor(self, store: Store, resolved: Resolved, spec: Spec, parallel: int) -> LocalExecutor:
        from expunge_controller.errors import ExperimentError
        from expunge_controller.execution.local.executor import LocalExecutor

        if find_spec("torch") is None:
            raise ExperimentError(["this Python has no torch, which steps need: pip install 'expunge[jobs]'"])
        return LocalExecutor(store, resolved.plan.specialists, spec.resources, parallel)

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
