"""Observation of the running steps of this machine, by locks and logs."""

from __future__ import annotations

from pathlib import Path

from expunge_jobs.artifacts.attempts import LOG, attempts
from expunge_jobs.artifacts.manifests import folder
from expunge_jobs.store import Store

from expunge_controller.execution.local.locks import Locks
from expunge_controller.execution.step_log import Event, Progress, newest_event, progress_words
from expunge_controller.planning.plan import Step

TAIL_BYTES = 8192
"""Size of the log's end that is read for the newest event, in bytes."""


def observe_running(store: Store, steps: list[Step]) -> dict[str, str]:
    """Return the progress of each step running here, in words, by key."""
    locks = Locks(store)
    return {s.key: progress_words(_newest_progress(store, s)) for s in steps if locks.held(s.key)}


def newest(log: Path, kind: str) -> Event:
    """Return the last event of a kind near the end of a log.

    A process may still write the log. The event is empty if there is none of the kind.
    """
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - TAIL_BYTES))
            return newest_event(file.read().splitlines(), kind)
    except OSError:
        return {}


def _newest_progress(store: Store, step: Step) -> Progress:
    """Return the last progress of the step's newest attempt."""
    for record in reversed(attempts(store, step.ref)):
        log = store.local_path(f"{folder(step.ref)}/attempts/{record.attempt}/{LOG}")
        return newest(log, "progress") if log is not None else {}
    return {}
