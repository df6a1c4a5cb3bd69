"""Plugins: what each states, and that the controller can read all of it where there is no torch."""

from __future__ import annotations

import subprocess
import sys

import pytest
from expunge_jobs import plugins
from pydantic import BaseModel

ALL = [(family, name) for family in plugins.FAMILIES for name in plugins.names(family)]

WITHOUT_TORCH = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "transformers", "peft", "safetensors", "tokenizers", "boto3", "kubernetes"):
            raise ImportError(f"{name} was imported")

sys.meta_path.insert(0, Refuse())
from expunge_jobs import __main__, plugins, step_runner, store
from expunge_jobs.artifacts import attempts
from expunge_jobs.core import errors
from expunge_jobs.data import rows
from expunge_jobs.inputs import builtin, pinning
from expunge_jobs.modeling import encoding
from expunge_jobs.results import scores, summary
from expunge_jobs.runtime import context
from expunge_jobs.store.schemes import file
from expunge_jobs.tasks import tasks
for family in plugins.FAMILIES:
    for name in plugins.names(family):
        plugins.load(family, name), plugins.version(family, name), plugins.description(family, name)
tasks.FinetuneSettings(objective={"npo": 0.4, "nll": 0.4, "kl": 0.2, "gradient_ascent": 0})
builtin.read("builtin://people/forget")
scores.compute_all([])
assert not {"torch", "transformers", "peft"} & set(sys.modules)
"""


def test_families() -> None:
    assert set(plugins.names("objectives")) >= {"npo", "nll", "kl", "gradient_ascent"}
    assert set(plugins.names("merge_methods")) >= {"ties", "linear", "magnitude_prune", "dare_linear", "dare_ties"}
    assert set(plugins.names("metrics")) >= {"regurgitation", "knowledge", "membership", "semeval", "collapse", "probe"}


@pytest.mark.parametrize(("family", "name"), ALL)
def test_each_states_a_version_and_a_description(family: str, name: str) -> None:
    assert plugins.version(family, name) >= 1
    line = plugins.description(family, name)
    assert 10 < len(line) <= 120 and line[0].isupper()


@pytest.mark.parametrize(("family", "name"), [a for a in ALL if a[0] == "objectives"])
def test_each_objective_states_what_it_reads(family: str, name: str) -> None:
    plugin = plugins.load(family, name)
    assert issubclass(plugin.Parameters, BaseModel)
    defaults = plugin.Parameters()
    assert defaults.weight == 1
    needs = plugin.needs(defaults)
    assert set(needs.sets) <= {"forget", "retain"}
    assert needs.reference <= {"nll", "logits", "hidden"}
    assert needs.positions in ("output", "all")
    assert callable(plugin.values)


@pytest.mark.parametrize(("family", "name"), [a for a in ALL if a[0] == "merge_methods"])
def test_each_merge_method_states_its_parameters(family: str, name: str) -> None:
    plugin = plugins.load(family, name)
    assert issubclass(plugin.Parameters, BaseModel)
    plugin.Parameters()
    assert name.startswith("dare_") == plugin.RANDOM
    assert callable(plugin.merge)


@pytest.mark.parametrize(("family", "name"), [a for a in ALL if a[0] == "metrics"])
def test_each_metric_computes(family: str, name: str) -> None:
    assert plugins.load(family, name).compute([])


@pytest.mark.parametrize(
    ("family", "name", "words"),
    [
        ("objectives", "npoo", "unknown objective 'npoo'; one of: gradient_ascent, kl, nll, npo; did you mean 'npo'?"),
        ("merge_methods", "tie", "did you mean 'ties'?"),
        ("metrics", "semevel", "did you mean 'semeval'?"),
        ("metrics", "__init__", "unknown metric '__init__'"),
        ("nonsense", "x", "nonsense"),
        ("store", "file", "store"),
    ],
)
def test_an_unknown_name_gets_the_nearest(family: str, name: str, words: str) -> None:
    with pytest.raises(ValueError) as caught:
        plugins.load(family, name)
    assert words in str(caught.value)


def test_no_near_word_no_suggestion() -> None:
    with pytest.raises(ValueError) as caught:
        plugins.load("objectives", "zzzzzz")
    assert "did you mean" not in str(caught.value)


def test_all_of_it_loads_without_torch() -> None:
    done = subprocess.run([sys.executable, "-c", WITHOUT_TORCH], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
