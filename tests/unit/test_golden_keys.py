"""Keys of experiments as they were: a rename of a module, class or field must not change one.

A key that changes makes every finished step of every store be done again. Where results change on purpose, a version in
``KIND_VERSIONS`` or of a plugin is raised, and EXPUNGE_GOLDEN=1 writes the file anew; then read what changed.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from expunge_controller.experiment.loading import load_experiment
from expunge_controller.planning.plan import make_plan, with_report
from expunge_controller.planning.trial_plan import inputs_of

GOLDEN = Path(__file__).parent / "golden"
KEYS = GOLDEN / "keys.json"
EXPERIMENTS: dict[str, tuple[str, ...]] = {
    "as the file has it": (),
    "a sweep of seeds and densities": ("sweep.seed=[1, 2]", "sweep.merge.density=[0.2, 1.0]"),
    "a model of the hub and of a bucket": (
        "model=hf://org/name@main",
        "memorize=null",
        "dtype=bfloat16",
        "specialists.own={adapter: s3://bucket/inputs/x/own}",
        "merge.weights={own: 0.5}",
    ),
    "every set": (
        "data.members=s3://bucket/members.jsonl",
        "data.mmlu=s3://bucket/mmlu.jsonl",
        'data.separator=""',
        "data.template=chat",
        "data.max_length=64",
        "data.overlap=drop_from_retain",
    ),
    "the rest of a file": (
        "data={forget: /f.jsonl, retain: /r.jsonl, documents: 3, seed: 7, probe: {from: retain, documents: 2}}",
        "data.nonmembers={from: forget, documents: 1}",
    ),
    "other objectives": (
        "specialists.over={objective: {gradient_ascent: 0.3, nll: 0.7}, gradient_checkpointing: true, targets: [q_proj, v_proj], rank: 32}",
        "specialists.under={objective: {npo: {weight: 1, beta: 0.5, normalization: sequence}}, targets: [q_proj, v_proj], rank: 32}",
        "baselines={a: {preset: npo}, b: {memorize: {epochs: 3}}}",
    ),
    "dare": ("merge={method: dare_ties, density: 0.5}", "sweep.seed=[1, 2]"),
    "linear": ("merge={method: linear}", "evaluate={controls: [0.25, 0.75], batch_size: 8, max_new_tokens: 16}"),
    "magnitude": ("merge={method: magnitude_prune, density: 0.5}",),
    "dare linear": ("merge={method: dare_linear, density: 0.5}",),
}


def keys(*overrides: str) -> dict[str, str]:
    """By step, with every input pinned to the same digest for the same address."""
    loaded = load_experiment(GOLDEN / "experiment.yaml", list(overrides))
    pins: dict[str, str] = {}
    for trial in loaded.trials:
        for group in inputs_of(trial.spec):
            for uri in group.values():
                pins[uri] = f"commit:{'0' * 40}" if uri.startswith("hf://") else f"sha256:{uri.rsplit('/', 1)[-1]}"
    plan = with_report(make_plan(loaded, pins, stage=True), f"experiments/x/y/{'0' * 64}.json")
    return {s.name: s.key for s in plan.steps}


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_a_key_is_what_it_was(name: str) -> None:
    found = keys(*EXPERIMENTS[name])
    golden: dict[str, Any] = json.loads(KEYS.read_text()) if KEYS.exists() else {}
    if os.environ.get("EXPUNGE_GOLDEN") == "1":
        golden[name] = found
        KEYS.write_text(json.dumps(golden, indent=1) + "\n")
    assert found == golden[name]
