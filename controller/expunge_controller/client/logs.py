"""The logs of steps, in words."""

from __future__ import annotations

from collections.abc import Iterator

from expunge_jobs.core.errors import suggestion

from expunge_controller.client.opening import Opened
from expunge_controller.errors import ExperimentError
from expunge_controller.execution.runner import read_failures
from expunge_controller.execution.step_log import line_words
from expunge_controller.execution.stored_logs import stored_lines
from expunge_controller.planning.plan import Plan, Step


def select_steps(plan: Plan, wanted: str | None) -> list[Step]:
    """The steps of this name, or whose key begins so; all of them for None.

    Raises:
        ExperimentError: no such step; lists those that there are.
    """
    if wanted is None:
        return list(plan.steps)
    found = [s for s in plan.steps if s.name == wanted or (len(wanted) >= 4 and s.key.startswith(wanted))]
    if not found:
        names = [s.name for s in plan.steps]
        shown = ", ".join(names[:20]) + (", ..." if len(names) > 20 else "")
        raise ExperimentError([f"no step '{wanted}'; one of: {shown}{suggestion(wanted, names)}"])
    return found


def read_logs(opened: Opened, wanted: str | None, follow: bool) -> Iterator[str]:
    """Lines of the logs of these steps (see ``select_steps``), and why each failed. ``follow``: until nothing runs them.

    Raises:
        ExperimentError: no such step.
        ApiError, StoreError: the cluster or the store refuses, or does not answer.
    """
    steps = select_steps(opened.plan, wanted)
    failures = read_failures(opened.store, opened.resolved)
    for step in steps:
        lines = opened.backend.follow(opened.store, step) if follow else stored_lines(opened.store, step)
        yield from map(line_words, lines)
        if follow:  # it may have failed meanwhile
            failures = read_failures(opened.store, opened.resolved)
        if step.key in failures:
            yield f"failed: {failures[step.key]}"
