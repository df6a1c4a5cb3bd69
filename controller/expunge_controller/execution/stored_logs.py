"""Logs of steps, read from the store."""

from __future__ import annotations

from collections.abc import Iterator

from expunge_jobs.artifacts.attempts import attempts, read_log
from expunge_jobs.store import Store

from expunge_controller.planning.plan import Step


def stored_lines(store: Store, step: Step) -> Iterator[str]:
    """Yield the log lines of every attempt, oldest attempt first.

    A line with the step's name, key, attempt and start time precedes each log.
    """
    for record in attempts(store, step.ref):
        yield f"--- {step.name} ({step.key[:12]}), attempt {record.attempt[:8]} of {record.started}"
        data = read_log(store, step.ref, record.attempt)
        if data is None:
            yield "(no log)"
            continue
        yield from data.decode(errors="replace").splitlines()
