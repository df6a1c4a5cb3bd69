"""Steps that any process of this machine runs, as their locks and logs tell."""

from __future__ import annotations

from pathlib import Path

from expunge_jobs.artifacts.attempts import LOG, attempts
from expunge_jobs.artifacts.manifests import folder
from expunge_jobs.store import Store

from expunge_controller.execution.local.locks import Locks
from expunge_controller.execution.step_log import Event, Progress, newest_event, progress_words
from expunge_controller.planning.plan import Step

TAIL_BYTES = 8192
"""Bytes at the end of a log that are read for its newest event."""


def observe_running(store: Store, steps: list[Step]) -> dict[str, str]:
    """Return how far each step is that runs on this machine now, in words by key."""
    locks = Locks(store)
    return {s.key: progress_words(_newest_progress(store, s)) for s in steps if locks.held(s.key)}


def newest(log: Path, kind: str) -> Event:
    """Return the last event of a kind near the end of a log that may still be written; empty where there is none."""
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
