"""An Experiment's status as data."""

from __future__ import annotations

import json
from pathlib import Path

from expunge_controller.experiment.loading import load_experiment
from expunge_controller.operator.conditions import conditions, summary
from expunge_controller.planning.resolve import resolve
from expunge_controller.planning.step_states import StepStatus, statuses

QUICKSTART = Path(__file__).parents[2] / "examples" / "quickstart.yaml"


def test_counts_and_reasons() -> None:
    plan = resolve(load_experiment(QUICKSTART)).plan
    memorize, others = plan.steps[0], plan.steps[1:]
    found = summary(plan, statuses(plan, set(), {memorize.key: "waiting for a node: 0/3 nodes are available"}))
    assert found["steps"] == f"0/{len(plan.steps)}"
    assert found["trials"] == "0/1"
    assert found["counts"] == {"running": 1, "waiting": len(others)}
    assert found["reasons"] == [
        {"step": "memorize", "reason": "waiting for a node: 0/3 nodes are available", "count": 1}
    ]
    done = summary(plan, statuses(plan, {s.key for s in plan.steps}))
    assert (done["trials"], done["reasons"]) == ("1/1", [])


def test_a_sweep_of_240_trials_has_a_small_status() -> None:
    seeds, densities = list(range(24)), [round(0.05 * n, 2) for n in range(1, 11)]
    sweep = [f"sweep={{seed: {seeds}, merge.density: {densities}}}"]
    plan = resolve(load_experiment(QUICKSTART, sweep)).plan
    states = {s.key: StepStatus("failed", f"out of memory at {n} " + "x" * 1000) for n, s in enumerate(plan.steps)}
    found = summary(plan, states)
    assert found["trials"] == "0/240"
    assert len(found["reasons"]) == 10
    said = conditions("Failed", "y" * 5000, 1, [], "2026-01-01T00:00:00Z")
    assert len(json.dumps(found | {"conditions": said})) < 8192


def test_a_condition_keeps_the_time_of_its_last_change() -> None:
    first = conditions("Running", "", 1, [], "2026-01-01T00:00:00Z")
    assert {c["type"]: c["status"] for c in first} == {"Complete": "False", "Failed": "False", "Progressing": "True"}
    later = conditions("Complete", "every model is evaluated", 1, first, "2026-01-02T00:00:00Z")
    times = {c["type"]: c["lastTransitionTime"][:10] for c in later}
    assert times == {"Complete": "2026-01-02", "Failed": "2026-01-01", "Progressing": "2026-01-02"}


def test_trouble_is_no_progress() -> None:
    found = {c["type"]: c for c in conditions("Running", "the store is away", 3, [], "now", reason="Unavailable")}
    assert (found["Progressing"]["status"], found["Progressing"]["reason"]) == ("False", "Unavailable")
    assert found["Failed"]["status"] == "False"
    assert found["Complete"]["observedGeneration"] == 3
