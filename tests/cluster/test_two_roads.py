"""The same file by the command's road and through a real API server: the same keys."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from expunge_controller.experiment.loading import load_experiment, load_resource
from expunge_controller.experiment.presets import PRESETS
from expunge_controller.planning.resolve import resolve
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.control_plane import ControlPlane
from tests.support.operating import install_definition
from tests.support.runs import TINY

QUICKSTART = Path(__file__).parents[2] / "examples" / "quickstart.yaml"
RATES = st.sampled_from(["1e-4", "7.0e-4", "0.001", "5E-3", "1", "2.5e-3"])
"""As text, since YAML readers differ on them."""


@pytest.fixture(scope="module")
def defined(plane: ControlPlane) -> ControlPlane:
    install_definition(plane)
    return plane


def through(plane: ControlPlane, text: str) -> dict[str, Any]:
    """As the API server gives it back: read by kubectl, checked, and with its defaults."""
    words = ("create", "--dry-run=server", "--validate=strict", "-o", "json", "-n", "default", "-f", "-")
    found: dict[str, Any] = json.loads(plane.kubectl(*words, give=text))
    return found


def keys(loaded: Any) -> list[tuple[str, str]]:
    return [(s.name, s.key) for s in resolve(loaded).plan.steps]


specialists = st.fixed_dictionaries(
    {"preset": st.sampled_from(sorted(PRESETS)), "learning_rate": RATES, "rank": st.just(4)},
    optional={
        "epochs": st.integers(1, 9),
        "alpha": st.sampled_from(["4", "512", "1.5", "5.12e2", ".5e1"]),
        "dropout": st.sampled_from(["0", "0.1"]),
        "objective": st.sampled_from(["npo", "{npo: 0.4, nll: 0.6}", "{npo: {weight: 4e-1, beta: 16}, kl: .2}"]),
        "clip": st.sampled_from(["1", "1e0", "0.5"]),
        "gradient_checkpointing": st.booleans(),
    },
)
experiments = st.fixed_dictionaries(
    {"over": specialists, "under": specialists},
    optional={
        "stop_at": st.sampled_from(["null", "1", "0.9"]),
        "warmup": st.sampled_from(["0", "5e-2"]),
        "density": st.sampled_from(["1", "0.8", "8e-1"]),
        "method": st.sampled_from(["ties", "linear", "dare_ties"]),
        "weights": st.sampled_from(["{over: 0.6}", "{}", "{over: 1, under: 2}"]),
        "seed": st.integers(0, 2**40),
        "sweep": st.sampled_from(["{seed: [0, 1]}", "{merge.weights.over: [1, 5e-1]}", "{specialists.over.rank: [4]}"]),
        "controls": st.sampled_from(["[]", "[0.5]", "[5e-1, 2]", "[norm]"]),
        "documents": st.integers(1, 3),
    },
)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(experiments)
def test_one_key_by_both_roads(
    defined: ControlPlane, tmp_path_factory: pytest.TempPathFactory, drawn: dict[str, Any]
) -> None:
    text = written(drawn)
    file = tmp_path_factory.mktemp("roads") / "experiment.yaml"
    file.write_text(text)
    here = load_experiment(file)
    there = load_resource(through(defined, text))
    assert keys(there) == keys(here), text


def test_the_quickstart_by_both_roads(defined: ControlPlane) -> None:
    assert keys(load_resource(through(defined, QUICKSTART.read_text()))) == keys(load_experiment(QUICKSTART))


def written(drawn: dict[str, Any]) -> str:
    """The tiny experiment with what was drawn, as a person would write it: numbers as they were typed."""
    spec = yaml.load(TINY, Loader=yaml.BaseLoader)["spec"]  # every value stays the text that it is
    spec["specialists"] = {n: drawn[n] for n in ("over", "under")}
    for name, path in (
        ("stop_at", ("memorize",)),
        ("warmup", ("memorize",)),
        ("density", ("merge",)),
        ("method", ("merge",)),
        ("weights", ("merge",)),
        ("controls", ("evaluate",)),
        ("documents", ("data",)),
        ("seed", ()),
        ("sweep", ()),
    ):
        if name in drawn:
            here = spec
            for part in path:
                here = here[part]
            here[name] = drawn[name]
    if spec["merge"]["method"] == "linear":
        spec["merge"].pop("density", None)
    return f"apiVersion: expunge.dev/v1alpha1\nkind: Experiment\nmetadata: {{name: tiny}}\nspec: {plain(spec)}\n"


def plain(value: Any) -> str:
    """YAML in one line, text as it stands."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{k}: {plain(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(plain, value)) + "]"
    text = str(value).lower() if isinstance(value, bool) else str(value)
    return f"'{text}'" if "://" in text else text
