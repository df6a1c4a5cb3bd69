"""Counts, reasons and conditions of an Experiment's status.

The conditions follow the Kubernetes API conventions. All functions here are pure. The details of each step are in its
Job and in the store. Therefore the status of a sweep of hundreds of trials has a few hundred bytes.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from expunge_controller.execution.kubernetes.diagnosis import cut
from expunge_controller.experiment.resource import Phase
from expunge_controller.planning.plan import Plan
from expunge_controller.planning.step_states import StepStatus

Object = dict[str, Any]
MOST_REASONS = 10


def summary(plan: Plan, states: Mapping[str, StepStatus]) -> Object:
    """Return counts, and at most ten reasons why steps are not done.

    The most frequent reasons come first.
    """
    by_state = Counter(s.state for s in states.values())
    unfinished = {t for s in plan.steps if states[s.key].state != "done" for t in s.trials}
    whole = len(plan.trials)
    return {
        "trials": f"{whole - len(unfinished)}/{whole}",
        "steps": f"{by_state['done']}/{len(plan.steps)}",
        "counts": {state.replace(" ", "-"): count for state, count in sorted(by_state.items())},
        "reasons": _reasons(plan, states),
    }


def _reasons(plan: Plan, states: Mapping[str, StepStatus]) -> list[Object]:
    """Return the most frequent reasons of unfinished steps.

    Steps that wait for other steps are left out, because their reasons add nothing to those of the other steps.
    """
    found: dict[str, list[str]] = defaultdict(list)
    for step in plan.steps:
        status = states[step.key]
        if status.reason and status.state in ("running", "to run", "failed"):
            found[status.reason].append(step.name)
    often = sorted(found.items(), key=lambda item: -len(item[1]))
    return [
        {"step": cut(names[0]), "reason": cut(reason), "count": len(names)} for reason, names in often[:MOST_REASONS]
    ]


def conditions(
    phase: Phase, message: str, generation: int, before: Sequence[Object], now: str, reason: str = ""
) -> list[Object]:
    """Return the conditions Complete, Failed and Progressing.

    The time of a condition is the time of its last change.
    """
    going = phase in ("Pending", "Running")
    wanted = [
        ("Complete", phase == "Complete"),
        ("Failed", phase in ("Failed", "Invalid", "Held")),
        ("Progressing", going and not reason),
    ]
    earlier = {c["type"]: c for c in before}
    out = []
    for kind, holds in wanted:
        status = "True" if holds else "False"
        same = earlier.get(kind, {}).get("status") == status
        out.append(
            {
                "type": kind,
                "status": status,
                "reason": reason or phase,
                "message": cut(message, 1024),
                "lastTransitionTime": earlier[kind]["lastTransitionTime"] if same else now,
                "observedGeneration": generation,
            }
        )
    return out
