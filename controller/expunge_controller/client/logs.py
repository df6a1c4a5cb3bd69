"""The logs of steps in words."""

from __future__ import annotations

from collections.abc import Iterator

from expunge_jobs.core.errors import suggestion

from expunge_controller.client.opening import Opened
from expunge_controller.errors import ExperimentError
from expunge_controller.execution.step_log import line_words
from expunge_controller.execution.stored_logs import stored_lines
from expunge_controller.planning.plan import Plan, Step
from expunge_controller.planning.records import read_failures


def select_steps(plan: Plan, wanted: str | None) -> list[Step]:
    """Return the steps of this name or key prefix; all steps for None.

    A key prefix has at least 4 characters.

    Raises:
        ExperimentError: no such step; lists the steps of the plan.
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
    """Yield the log lines of steps, and why each failed step failed.

    ``wanted`` is as in ``select_steps``. With ``follow``, the lines of a step continue until nothing runs the step.

    Raises:
        ExperimentError: no such step.
        ApiError, StoreError: the cluster or the store refuses, or does not answer.
    """
    steps = select_steps(opened.plan, wanted)
    failures = read_failures(opened.store, opened.resolved)
    for step in steps:
        lines = opened.backend.follow(opened.store, step) if follow else stored_lines(opened.store, step)
        yield from map(line_words, lines)
        if follow:  # the step may have failed meanwhile
            failures = read_failures(opened.store, opened.resolved)
        if step.key in failures:
            yield f"failed: {failures[step.key]}"
