"""Each objective term against its formula, written out plainly in float64."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from expunge_jobs import plugins
from expunge_jobs.objectives import RowOutput
from torch import Tensor

LABELS, POSITIONS, VOCAB = (3, 1, 5, 2), (6, 4, 5, 9), 11


def outputs(seed: int = 0, grad: bool = False) -> list[RowOutput]:
    """Four rows in two micro-batches (three and one), with what policy and reference say of them."""
    torch.manual_seed(seed)
    out = []
    for n, (labels, positions) in enumerate(zip(LABELS, POSITIONS, strict=True)):
        logits, reference = torch.randn(2, positions, VOCAB) * 2
        targets = torch.randint(VOCAB, (labels,))
        pick = [torch.nn.functional.cross_entropy(x[-labels:], targets, reduction="none") for x in (logits, reference)]
        out.append(RowOutput(pick[0].requires_grad_(grad), logits.requires_grad_(grad), pick[1], reference, n // 3))
    return out


def values(name: str, rows: list[RowOutput], **parameters: Any) -> list[float]:
    plugin = plugins.load("objectives", name)
    found: Tensor = plugin.values(plugin.Parameters(**parameters), rows)
    return [float(v) for v in found]


def npo(policy: float, reference: float, beta: float) -> float:
    """-(2/beta) log sigmoid(-beta (log p_policy - log p_reference))"""
    return -(2 / beta) * math.log(1 / (1 + math.exp(beta * (policy - reference))))


def log_p(nll: Tensor | None) -> list[float]:
    assert nll is not None
    return [-float(v) for v in nll.detach().double()]


@pytest.mark.parametrize("beta", [0.1, 1.0, 3.0])
def test_npo_of_the_sequence(beta: float) -> None:
    rows = outputs()
    plain = [npo(sum(log_p(r.nll)), sum(log_p(r.reference_nll)), beta) for r in rows]
    assert values("npo", rows, beta=beta) == pytest.approx(plain, rel=1e-5)
    assert values("npo", rows, beta=beta, normalization="sequence") == values("npo", rows, beta=beta)


@pytest.mark.parametrize("beta", [0.1, 1.0])
def test_npo_of_the_token(beta: float) -> None:
    rows = outputs()
    plain = [
        npo(sum(log_p(r.nll)) / n, sum(log_p(r.reference_nll)) / n, beta) for r, n in zip(rows, LABELS, strict=True)
    ]
    assert values("npo", rows, beta=beta, normalization="token") == pytest.approx(plain, rel=1e-5)


@pytest.mark.parametrize("beta", [0.1, 1.0])
def test_npo_pooled_has_one_ratio_a_micro_batch(beta: float) -> None:
    """The published code's: the loss of a batch is the mean over all its label tokens."""
    rows = outputs()
    plain = []
    for members in (rows[:3], rows[3:]):
        policy = [v for r in members for v in log_p(r.nll)]
        reference = [v for r in members for v in log_p(r.reference_nll)]
        plain.append(npo(sum(policy) / len(policy), sum(reference) / len(reference), beta))
    assert values("npo", rows, beta=beta, normalization="pooled") == pytest.approx(plain, rel=1e-5)
    assert values("npo", rows[::-1], beta=beta, normalization="pooled") == pytest.approx(plain, rel=1e-5)


@pytest.mark.parametrize("normalization", ["sequence", "token", "pooled"])
def test_npo_falls_as_a_row_is_forgotten_and_starts_at_a_known_value(normalization: str) -> None:
    rows = outputs()
    for r in rows:
        r.reference_nll = r.nll.clone()
    assert values("npo", rows, normalization=normalization) == pytest.approx(
        [20 * math.log(2)] * len(values("npo", rows, normalization=normalization))
    )
    worse = [RowOutput(r.nll + 5, reference_nll=r.nll, micro_batch=r.micro_batch) for r in rows]
    assert max(values("npo", worse, normalization=normalization)) < 20 * math.log(2)


def test_npo_stays_finite_far_away() -> None:
    far = [RowOutput(torch.tensor([n]), reference_nll=torch.tensor([m])) for n, m in ((1e4, 0.0), (0.0, 1e4))]
    assert values("npo", far) == pytest.approx([0, 2e4])


def test_npo_gradient_is_the_weighted_one_of_gradient_ascent() -> None:
    """Zhang et al. 2024, eq. 4: 2 p^b / (p^b + ref^b) grad log p."""
    rows = outputs(grad=True)
    plugin = plugins.load("objectives", "npo")
    plugin.values(plugin.Parameters(beta=0.5), rows).sum().backward()
    for r in rows:
        policy, reference = math.exp(0.5 * sum(log_p(r.nll))), math.exp(0.5 * sum(log_p(r.reference_nll)))
        weight = 2 * policy / (policy + reference)
        assert r.nll.grad is not None
        assert r.nll.grad.tolist() == pytest.approx([-weight] * len(r.nll), rel=1e-4)


def test_nll_and_gradient_ascent_are_means_over_label_tokens() -> None:
    rows = outputs()
    means = [-sum(log_p(r.nll)) / len(r.nll) for r in rows]
    assert values("nll", rows) == pytest.approx(means, rel=1e-6)
    assert values("gradient_ascent", rows) == pytest.approx([-m for m in means], rel=1e-6)


def kl_each(row: RowOutput) -> list[float]:
    """KL(reference || policy) at each position, by the definition."""
    assert row.logits is not None and row.reference_logits is not None
    out = []
    for policy, reference in zip(row.logits.double().tolist(), row.reference_logits.double().tolist(), strict=True):
        q, p = ([math.exp(x) / sum(math.exp(y) for y in z) for x in z] for z in (policy, reference))
        out.append(sum(b * math.log(b / a) for a, b in zip(q, p, strict=True)))
    return out


@pytest.mark.parametrize("positions", ["all", "output"])
@pytest.mark.parametrize("reduction", ["mean", "published"])
def test_kl(positions: str, reduction: str) -> None:
    rows = outputs()
    plain = []
    for row in rows:
        each = kl_each(row) if positions == "all" else kl_each(row)[-len(row.nll) :]
        plain.append(sum(each) / (256 if reduction == "published" else len(each)))
    assert values("kl", rows, positions=positions, reduction=reduction) == pytest.approx(plain, rel=1e-4)


def test_kl_has_the_reference_first() -> None:
    """It is not symmetric: a policy that gives up what the reference says pays much."""
    sure, even = torch.tensor([[9.0, 0.0, 0.0]]), torch.zeros(1, 3)
    [forward] = values("kl", [RowOutput(torch.zeros(1), even, None, sure)])
    [backward] = values("kl", [RowOutput(torch.zeros(1), sure, None, even)])
    assert forward == pytest.approx(math.log(3), abs=0.01) and backward > 4


def test_kl_of_the_same_is_zero() -> None:
    rows = outputs()
    for r in rows:
        r.logits = r.reference_logits
    assert values("kl", rows) == pytest.approx([0] * 4, abs=1e-6)


def test_no_gradient_reaches_the_reference() -> None:
    rows = outputs(grad=True)
    for name in ("npo", "kl"):
        plugin = plugins.load("objectives", name)
        assert plugin.values(plugin.Parameters(), rows).requires_grad
    assert all(not r.reference_nll.requires_grad for r in rows if r.reference_nll is not None)


def test_what_each_term_reads() -> None:
    for name, parameters, reads in (
        ("npo", {}, "output"),
        ("nll", {}, "output"),
        ("gradient_ascent", {}, "output"),
        ("kl", {}, "all"),
        ("kl", {"positions": "output"}, "output"),
    ):
        plugin = plugins.load("objectives", name)
        assert plugin.needs(plugin.Parameters(**parameters)).positions == reads
