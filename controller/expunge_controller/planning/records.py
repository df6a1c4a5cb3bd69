"""Objects of an experiment in the store: its record, failures and mark.

experiments/<namespace>/<name>/<digest>.json             the request, for results and for people
experiments/<namespace>/<name>/<digest>/failed/<key>.json  why a step failed in the last run
experiments/<namespace>/<name>/<digest>/cancelled.json     the run was cancelled
"""

from __future__ import annotations

import json
from typing import Any

from expunge_jobs.artifacts.manifests import now
from expunge_jobs.core.hashing import canonical
from expunge_jobs.store import SMALL, Store
from expunge_jobs.tasks.tasks import KIND_VERSIONS

from expunge_controller.planning.plan import Step
from expunge_controller.planning.resolve import Resolved

REASON_CHARACTERS = 4000
"""Characters of a failure that ``read_failures`` returns. A writer of the store decides the stored length."""


def write_record(store: Store, resolved: Resolved) -> None:
    """Write ``experiments/<namespace>/<name>/<digest>.json``.

    The record keeps the request for results and for people.
    """
    rows = [
        {"trial": m.trial, "group": m.group, "seed": m.seed, "model": m.model, "role": m.role, "step": m.step}
        for m in resolved.plan.models
    ]
    more = {"models": rows, "report": KIND_VERSIONS["report"]}  # not part of the digest
    store.put(f"{resolved.folder}.json", canonical({**resolved.record, **more}).encode())


def write_failure(store: Store, resolved: Resolved, key: str, reason: str, pod: dict[str, Any]) -> None:
    """Record why a step failed, with what its pod says."""
    record = {"key": key, "reason": reason, "failed": now(), **({"pod": pod} if pod else {})}
    store.put(_failure(resolved, key), json.dumps(record).encode())


def left_by_last_run(store: Store, resolved: Resolved) -> tuple[list[str], list[Step]]:
    """Return what the last run left: all paths, and the steps that failed."""
    paths = [e.path for e in store.list(resolved.folder)]
    return paths, [s for s in resolved.plan.steps if _failure(resolved, s.key) in paths]


def mark_cancelled(store: Store, resolved: Resolved) -> None:
    """Write the cancellation mark of a run.

    The current runner ends when its steps vanish. The next run deletes the mark.
    """
    store.put(_cancelled(resolved), json.dumps({"cancelled": now()}).encode())


def is_cancelled(store: Store, resolved: Resolved) -> bool:
    """Return whether the run's cancellation mark exists."""
    return bool(store.present([_cancelled(resolved)]))


def read_failures(store: Store, resolved: Resolved) -> dict[str, str]:
    """Return the failures that this generation's last run recorded, by key."""
    out: dict[str, str] = {}
    paths = {_failure(resolved, key) for key in resolved.plan.by_key}  # ignore all other objects there
    for entry in list(store.list(f"{resolved.folder}/failed")):
        if entry.path in paths:
            record = json.loads(store.get(entry.path, SMALL)[0])
            out[str(record["key"])] = str(record["reason"])[:REASON_CHARACTERS]
    return out


def _failure(resolved: Resolved, key: str) -> str:
    return f"{resolved.folder}/failed/{key}.json"


def _cancelled(resolved: Resolved) -> str:
    return f"{resolved.folder}/cancelled.json"
