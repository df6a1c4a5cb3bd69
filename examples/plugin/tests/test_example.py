"""What the three compute, on tensors and rows made by hand, and that Expunge finds them."""

from __future__ import annotations

import math

import pytest
import torch
from expunge_jobs import plugins
from expunge_jobs.merge_methods import Deltas
from expunge_jobs.metrics import EvaluatedRow
from expunge_jobs.objectives import RowOutput

GENERATOR = torch.Generator()


@pytest.mark.parametrize(
    ("family", "name"), [("objectives", "simnpo"), ("merge_methods", "delta_mean"), ("metrics", "answer_length")]
)
def test_they_are_found_by_name(family: str, name: str) -> None:
    assert name in plugins.names(family)
    assert plugins.source(family, name).identity == f"{family}/expunge-example:{name}"
    assert plugins.description(family, name).endswith("(expunge-example)")


def test_simnpo_is_its_formula() -> None:
    call = plugins.PluginCall.of("objectives", "simnpo", {"beta": 2.0, "gamma": 0.5})
    rows = [RowOutput(torch.tensor([1.0, 3.0])), RowOutput(torch.tensor([0.5]))]
    found = call.plugin.values(call.parameters, rows)
    plain = [-(2 / 2.0) * math.log(1 / (1 + math.exp(-(2.0 * m - 0.5)))) for m in (2.0, 0.5)]
    assert found.tolist() == pytest.approx(plain, rel=1e-6)


def test_delta_mean_is_the_weighted_mean_and_bounded() -> None:
    one, two, base = torch.eye(3), 3 * torch.eye(3), torch.eye(3)
    given = Deltas("layer", [one, two], [1.0, 1.0], base, GENERATOR)
    loose = plugins.PluginCall.of("merge_methods", "delta_mean", {"largest": 10.0})
    tight = plugins.PluginCall.of("merge_methods", "delta_mean", {"largest": 0.5})
    assert torch.equal(loose.plugin.merge(given, loose.parameters), 2 * torch.eye(3))
    assert float(tight.plugin.merge(given, tight.parameters).norm()) == pytest.approx(0.5 * float(base.norm()))


def test_answer_length_is_a_share_of_the_rows_own() -> None:
    row = EvaluatedRow("forget", "1", "d", "qa", generation="two words", reference="four words are here")
    found = plugins.load("metrics", "answer_length").compute([row])
    assert found["answer_length/forget"] == 0.5
    assert found["answer_length/retain"].reason == "no answers in retain"
