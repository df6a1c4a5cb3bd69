"""Logs of steps as the store has them."""

from __future__ import annotations

from collections.abc import Iterator

from expunge_jobs.artifacts.attempts import attempts, read_log
from expunge_jobs.store import Store

from expunge_controller.planning.plan import Step


def stored_lines(store: Store, step: Step) -> Iterator[str]:
    """Every attempt's log, the oldest first, each after a line that says whose it is."""
    for record in attempts(store, step.ref):
        yield f"--- {step.name} ({step.key[:12]}), attempt {record.attempt[:8]} of {record.started}"
        data = read_log(store, step.ref, record.attempt)
        if data is None:
            yield "(no log)"
            continue
        yield from data.decode(errors="replace").splitlines()
