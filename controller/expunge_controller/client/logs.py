"""The logs of steps, read from the store."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from expunge_jobs.artifacts.attempts import attempts, read_log
from expunge_jobs.core.errors import nearest
from expunge_jobs.store import Store

from expunge_controller.errors import ExperimentError
from expunge_controller.execution.executor import progress_words
from expunge_controller.execution.kubernetes.observe import follow_pods
from expunge_controller.execution.local import observe_running
from expunge_controller.planning.plan import Plan, Step

if TYPE_CHECKING:
    from expunge_controller.kube_client.client import Cluster

POLL = 0.5
"""Seconds between two looks at a log that grows."""


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
        data = read_log(store, step.ref, record.attempt)
        if data is None:
            yield "(no log)"
            continue
        for line in data.decode(errors="replace").splitlines():
            yield _readable(line)


def follow(store: Store, step: Step, cluster: Cluster | None) -> Iterator[str]:
    """A step's log until nothing runs it any more: from its pods where there is a cluster and they are still there, else from
    the store."""
    if cluster is None:
        yield from _follow_here(store, step)
        return
    live = False
    for line in follow_pods(cluster, cluster.namespace, step):
        live = True
        yield _readable(line)
    if not live:
        yield from read_logs(store, step)


def _follow_here(store: Store, step: Step) -> Iterator[str]:
    told = 0
    while True:
        runs = step.key in observe_running(store, [step])
        lines = list(read_logs(store, step))
        yield from lines[told:]
        told = len(lines)
        if not runs:
            return
        time.sleep(POLL)


def _readable(line: str) -> str:
    try:
        event = json.loads(line)
    except (ValueError, RecursionError):
        return line
    if not isinstance(event, dict) or "event" not in event:
        return line
    if event["event"] == "progress":
        try:
            return progress_words(event)
        except (KeyError, TypeError, ValueError):  # no line of a step's: what else is in the log is shown all the same
            return line
    rest = ", ".join(f"{k} {v}" for k, v in event.items() if k != "event")
    return f"{event['event']}: {rest}" if rest else str(event["event"])
