"""The logs of steps, read from the store."""

from __future__ import annotations

import json
from collections.abc import Iterator

from expunge_jobs.artifact import attempts, folder
from expunge_jobs.errors import nearest
from expunge_jobs.store import NotFound, Store

from expunge_controller.document import ExperimentError
from expunge_controller.executors.local import LOG, progress_words
from expunge_controller.plan import Plan, Step


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
        raise ExperimentError([f"no step '{wanted}'; one of: {shown}{nearest(wanted, names)}"])
    return found


def read_logs(store: Store, step: Step) -> Iterator[str]:
    """Every attempt's log, oldest first, with words for what is told as JSON."""
    for record in attempts(store, step.ref):
        yield f"--- {step.name} ({step.key[:12]}), attempt {record.attempt[:8]} of {record.started}"
        try:
            data, _ = store.get(f"{folder(step.ref)}/attempts/{record.attempt}/{LOG}")
        except NotFound:
            yield "(no log)"
            continue
        for line in data.decode(errors="replace").splitlines():
            yield _readable(line)


def _readable(line: str) -> str:
    try:
        event = json.loads(line)
    except ValueError:
        return line
    if not isinstance(event, dict) or "event" not in event:
        return line
    if event["event"] == "progress":
        return progress_words(event)
    rest = ", ".join(f"{k} {v}" for k, v in event.items() if k != "event")
    return f"{event['event']}: {rest}" if rest else str(event["event"])
