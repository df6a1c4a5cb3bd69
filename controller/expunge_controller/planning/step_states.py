"""The observed states of a plan's steps.

The sources are manifests in the store, steps held by a process, and failures. The module keeps nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from expunge_jobs.artifacts.manifests import manifest_path
from expunge_jobs.store import Store

from expunge_controller.planning.plan import Plan, Step

State = Literal["done", "running", "waiting", "to run", "failed", "blocked"]


@dataclass(frozen=True)
class StepStatus:
    """A step's state, and in words the reason why the step is not done."""

    state: State
    reason: str = ""


def done_keys(store: Store, steps: Iterable[Step]) -> set[str]:
    """Return the keys of the steps whose artifact is whole."""
    paths = {manifest_path(s.ref): s.key for s in steps}
    return {paths[p] for p in store.present(paths)}


def is_done(store: Store, step: Step) -> bool:
    """Return whether the step's manifest is in the store."""
    return bool(done_keys(store, [step]))


def wanted_keys(plan: Plan, done: set[str]) -> set[str]:
    """Return the keys of unfinished steps that an unfinished result needs.

    Results are evaluations and a report. A finished evaluation does not bring back an adapter that was deleted since.
    """
    wanted: set[str] = set()
    ask = [s.key for s in plan.steps if s.kind in ("evaluate", "report")]
    while ask:
        key = ask.pop()
        if key in done or key in wanted:
            continue
        wanted.add(key)
        ask += plan.by_key[key].needs
    return wanted


def statuses(
    plan: Plan,
    done: set[str],
    running: Mapping[str, str] | None = None,
    failed: Mapping[str, str] | None = None,
    idle: str = "everything it needs is there; `expunge run` starts it",
) -> dict[str, StepStatus]:
    """Return the state of every step.

    ``running`` has progress in words by key, ``failed`` has reasons by key. ``idle`` is the reason of a step that could
    start but has not.
    """
    running, failed = running or {}, failed or {}
    wanted = wanted_keys(plan, done)
    out: dict[str, StepStatus] = {}
    for step in plan.steps:  # a step comes after the steps that it needs
        missing = [k for k in step.needs if k not in done]
        broken = [k for k in missing if out[k].state in ("failed", "blocked")]
        if step.key in done:
            status = StepStatus("done")
        elif step.key in running:
            status = StepStatus("running", running[step.key])
        elif step.key in failed:
            status = StepStatus("failed", failed[step.key])
        elif step.key not in wanted:
            status = StepStatus("done", "not needed: everything that reads it is done")
        elif broken:
            status = StepStatus("blocked", f"needs {plan.by_key[broken[0]].name}, which failed or is blocked")
        elif missing:
            names = ", ".join(plan.by_key[k].name for k in missing)
            status = StepStatus("waiting", f"waiting for {names}")
        else:
            status = StepStatus("to run", idle)
        out[step.key] = status
    return out
