"""The training loop step by step: what is drawn, at which rate, and the loss and gradient of a step in float64."""

from __future__ import annotations

import copy
import json
import math
from collections import Counter
from itertools import chain
from typing import Any

import pytest
import torch
from expunge_controller.execution.step_log import line_words
from expunge_jobs.modeling.adapters import attach_lora, lora_tensors
from expunge_jobs.modeling.encoding import Encoded
from expunge_jobs.modeling.packing import PACK_TOKENS
from expunge_jobs.runtime.context import StepContext
from expunge_jobs.training.trainer import Trainer
from torch import Tensor

from tests.jobs import tiny_models as tiny

ROWS = {"forget": tiny.FORGET, "retain": tiny.RETAIN}


def trainer(base: Any, words: Any, work: StepContext, seed: int = 5, **fields: Any) -> Trainer:
    settings = tiny.settings(**fields)
    rows: Any = {side: [tiny.encode(words, r) for r in given] for side, given in ROWS.items()}
    return Trainer(attach_lora(base, settings, seed), rows, settings, seed, work)


def drawn(made: Trainer, side: str) -> list[list[int]]:
    """The rows of one side by step."""
    return [[d.index for d in made.sampler.draw(n) if d.side == side] for n in range(made.steps)]


def by_epoch(made: Trainer, side: str) -> list[list[int]]:
    steps, size = drawn(made, side), made.steps_per_epoch
    return [list(chain(*steps[n : n + size])) for n in range(0, len(steps), size)]


def test_an_epoch_is_one_pass_over_forget(base: Any, words: Any, work: StepContext) -> None:
    epochs = by_epoch(trainer(base, words, work, epochs=4), "forget")
    assert all(sorted(e) == list(range(7)) for e in epochs)
    assert len({tuple(e) for e in epochs}) == 4, "each in an order of its own"


@pytest.mark.parametrize(
    ("batch", "accumulation", "sizes"), [(2, 2, [4, 3]), (1, 4, [4, 3]), (5, 1, [5, 2]), (9, 1, [7])]
)
def test_the_last_small_batch_is_used(
    base: Any, words: Any, work: StepContext, batch: int, accumulation: int, sizes: list[int]
) -> None:
    made = trainer(base, words, work, batch_size=batch, accumulation=accumulation, epochs=2)
    assert [len(s) for s in drawn(made, "forget")] == sizes * 2
    assert [len(s) for s in drawn(made, "retain")] == sizes * 2
    for step in range(made.steps):
        for side in ("forget", "retain"):
            counts = Counter(d.micro_batch for d in made.sampler.draw(step) if d.side == side)
            assert all(n <= batch for n in counts.values()) and len(counts) <= accumulation
            assert sorted(counts.values(), reverse=True)[:-1] == [batch] * (len(counts) - 1)


def test_retain_is_a_stream_of_its_own_that_runs_on(base: Any, words: Any, work: StepContext) -> None:
    """Every retain row is used, as often as any other but once; the published script never sees the last ones."""
    made = trainer(base, words, work, epochs=5)
    stream = list(chain(*drawn(made, "retain")))
    assert len(stream) == 35
    passes = [stream[n : n + 11] for n in range(0, 35, 11)]
    assert all(sorted(p) == list(range(11)) for p in passes[:3])
    assert len({tuple(p) for p in passes[:3]}) == 3
    assert set(Counter(stream).values()) == {3, 4}


def test_the_reference_is_asked_of_drawn_rows_alone(base: Any, words: Any, work: StepContext) -> None:
    """Of 11 retain rows one epoch of 7 forget rows draws 7; of two processes each asks of its own."""
    made = trainer(base, words, work, epochs=1, objective={"npo": 0.5, "kl": 0.5})
    made._ask_reference()
    for side, field in (("forget", "reference_nll"), ("retain", "reference_states")):
        asked = [n for n, s in enumerate(made.samples[side]) if getattr(s, field) is not None]
        assert asked == sorted(set(chain(*drawn(made, side))))
    assert len(asked) == 7 < len(made.samples["retain"])
    shares = [made.sampler.drawn(made.steps, rank, 2) for rank in (0, 1)]
    whole = made.sampler.drawn(made.steps)
    assert all(sorted(shares[0][side] + shares[1][side]) == whole[side] for side in ("forget", "retain"))


def test_asking_the_reference_is_told(
    base: Any, words: Any, work: StepContext, capsys: pytest.CaptureFixture[str]
) -> None:
    trainer(base, words, work, epochs=1, objective={"npo": 0.5, "kl": 0.5})._ask_reference()
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (last["event"], last["phase"], last["step"], last["steps"]) == ("progress", "reference", 14, 14)
    assert line_words(json.dumps(last)).startswith("reference 14/14")


def test_what_is_drawn_follows_from_the_seed_alone(base: Any, words: Any, work: StepContext) -> None:
    one = trainer(copy.deepcopy(base), words, work)
    torch.manual_seed(99)
    same = trainer(copy.deepcopy(base), words, work, learning_rate=1, objective={"npo": 1.0, "kl": 0.1})
    other = trainer(copy.deepcopy(base), words, work, seed=6)
    assert drawn(one, "forget") == drawn(same, "forget") != drawn(other, "forget")
    assert drawn(one, "retain") == drawn(same, "retain") != drawn(other, "retain")


def test_length_does_not_matter_for_the_order(base: Any, words: Any, work: StepContext) -> None:
    plain = trainer(copy.deepcopy(base), words, work)
    turned = trainer(copy.deepcopy(base), words, work)
    turned.samples["forget"].reverse()
    assert drawn(plain, "forget") == drawn(turned, "forget")


def test_a_side_that_no_term_reads_is_not_drawn(base: Any, words: Any, work: StepContext) -> None:
    made = trainer(base, words, work, objective={"gradient_ascent": 1.0})
    assert drawn(made, "retain") == [[]] * made.steps and all(drawn(made, "forget"))


@pytest.mark.parametrize("epochs", [1, 2, 5])
def test_the_rate_warms_up_for_an_epoch_and_falls_to_zero(
    base: Any, words: Any, work: StepContext, epochs: int
) -> None:
    made = trainer(base, words, work, epochs=epochs, batch_size=1, accumulation=1, learning_rate=0.5)
    made._ask_reference()
    rates = []
    for step in range(made.steps):
        rates.append(made.optimizer.param_groups[0]["lr"])
        made.step(step)
    warm, total = 7, 7 * epochs
    plain = [0.5 * (n / warm if n < warm else (total - n) / (total - warm)) for n in range(total)]
    assert rates == pytest.approx(plain)


def test_the_optimizer_is_the_papers(base: Any, words: Any, work: StepContext) -> None:
    made = trainer(base, words, work, weight_decay=0.07)
    assert type(made.optimizer) is torch.optim.AdamW
    [group] = made.optimizer.param_groups
    assert (group["betas"], group["eps"], group["weight_decay"]) == ((0.9, 0.999), 1e-8, 0.07)


def log_p(model: Any, row: Encoded) -> Tensor:
    """float64 log-probabilities [positions, vocabulary] at every predicting position, the row alone, no batching."""
    logits: Tensor = model(input_ids=torch.tensor([list(row.ids)])).logits[0]
    return logits[:-1].log_softmax(-1)


def labels(scores: Tensor, row: Encoded) -> Tensor:
    """log p of each output token and the end token."""
    return torch.stack([scores[i - 1, row.ids[i]] for i in range(row.prompt, len(row.ids))])


def plain_terms(policy: Any, reference: Any, made: Trainer, step: int) -> dict[str, Tensor]:
    """Each term of the step by the specification's words."""
    draws = made.sampler.draw(step)
    rows = {s: [made.samples[s][d.index].row for d in draws if d.side == s] for s in ("forget", "retain")}
    micro = [d.micro_batch for d in draws if d.side == "forget"]
    forget = [(labels(log_p(policy, r), r), labels(log_p(reference, r), r)) for r in rows["forget"]]
    retain = [(log_p(policy, r), log_p(reference, r), r) for r in rows["retain"]]

    def npo(p: Tensor, r: Tensor) -> Tensor:
        return -(2 / 0.1) * torch.log(torch.sigmoid(-0.1 * (p - r)))

    def mean(values: list[Tensor]) -> Tensor:
        return torch.stack(values).mean()

    def kl(p: Tensor, r: Tensor) -> Tensor:
        return (r.exp() * (r - p)).sum(-1)

    pooled = []
    for number in sorted(set(micro)):
        members = [f for f, m in zip(forget, micro, strict=True) if m == number]
        pooled.append(npo(torch.cat([p for p, _ in members]).mean(), torch.cat([r for _, r in members]).mean()))
    return {
        "npo sequence": mean([npo(p.sum(), r.sum()) for p, r in forget]),
        "npo token": mean([npo(p.mean(), r.mean()) for p, r in forget]),
        "npo pooled": mean(pooled),
        "gradient_ascent": mean([p.mean() for p, _ in forget]),
        "nll": mean([-labels(p, r).mean() for p, _, r in retain]),
        "kl all mean": mean([kl(p, q).mean() for p, q, _ in retain]),
        "kl output mean": mean([kl(p, q)[r.prompt - 1 :].mean() for p, q, r in retain]),
        "kl all published": sum((kl(p, q).sum() for p, q, _ in retain), torch.zeros(())) / (len(retain) * 256),
    }


def in_float64(made: Trainer) -> tuple[Any, Any]:
    """The policy as it is now and the model without its adapter, both whole copies in float64."""
    policy = copy.deepcopy(made.wrapped).double().eval()
    reference = copy.deepcopy(policy.unload())
    return copy.deepcopy(made.wrapped).double().eval(), reference


TERMS: list[tuple[dict[str, Any], list[str]]] = [
    ({"npo": 0.4, "nll": 0.3, "kl": 0.2}, ["npo sequence", "nll", "kl all mean"]),
    (
        {"npo": {"weight": 0.4, "normalization": "token"}, "kl": {"weight": 0.2, "positions": "output"}},
        ["npo token", "kl output mean"],
    ),
    (
        {
            "npo": {"weight": 0.4, "normalization": "pooled"},
            "nll": 0.3,
            "kl": {"weight": 0.2, "reduction": "published"},
        },
        ["npo pooled", "nll", "kl all published"],
    ),
    ({"gradient_ascent": 0.4, "nll": 0.3}, ["gradient_ascent", "nll"]),
]


@pytest.mark.parametrize(("objective", "names"), TERMS)
def test_loss_and_gradient_of_a_step_are_the_formulas(
    base: Any,
    words: Any,
    work: StepContext,
    monkeypatch: pytest.MonkeyPatch,
    objective: dict[str, Any],
    names: list[str],
) -> None:
    """After some steps, so that policy and reference differ; the last step of an epoch, so that its batch is small."""
    made = trainer(base, words, work, objective=objective)
    made._ask_reference()
    for step in range(3):
        made.step(step)
    policy, reference = in_float64(made)
    terms = plain_terms(policy, reference, made, 3)
    weights = {n: (v if isinstance(v, float) else v["weight"]) for n, v in objective.items()}
    loss = sum((weights[n.split()[0]] * terms[n] for n in names), torch.zeros(()))
    loss.backward()  # type: ignore[no-untyped-call]
    gradients: list[Tensor] = []
    clip = torch.nn.utils.clip_grad_norm_

    def spy(parameters: list[Any], norm: float) -> Any:
        gradients.extend(p.grad.clone() for p in parameters)
        assert norm == 1.0
        return clip(parameters, norm)

    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", spy)
    line = made.step(3)
    assert line["loss"] == pytest.approx(float(loss.detach()), rel=1e-4)
    for name in names:
        assert line[name.split()[0]] == pytest.approx(float(terms[name].detach()), rel=1e-4, abs=1e-6)
    plain = [p.grad for p in policy.parameters() if p.requires_grad]
    assert len(plain) == len(gradients) == 28
    for one, other in zip(gradients, plain, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=1e-3, atol=2e-5)


def test_the_reference_is_the_model_without_its_adapter(base: Any, words: Any, work: StepContext) -> None:
    """Asked once before training; asked again afterwards it says the same."""
    before = {
        r.id: labels(tiny.alone(base, tiny.encode(words, r).ids)[:-1].log_softmax(-1), tiny.encode(words, r))
        for r in tiny.FORGET
    }
    made = trainer(base, words, work)
    made.train()
    for row, sample in zip(tiny.FORGET, made.samples["forget"], strict=True):
        assert sample.reference_nll is not None and not sample.reference_nll.requires_grad
        torch.testing.assert_close(-sample.reference_nll, before[row.id], rtol=1e-4, atol=1e-5)
    kept = [s.reference_nll for s in made.samples["forget"]]
    made._ask_reference()
    assert all(torch.equal(a, s.reference_nll) for a, s in zip(kept, made.samples["forget"], strict=True))  # type: ignore[arg-type]
    assert all(s.reference_states is not None and s.reference_states.shape[1] == 32 for s in made.samples["retain"])


@pytest.mark.parametrize(("batch", "accumulation"), [(1, 4), (2, 2), (4, 1)])
@pytest.mark.parametrize("normalization", ["sequence", "token"])
def test_accumulation_equals_the_large_batch(
    base: Any, words: Any, work: StepContext, batch: int, accumulation: int, normalization: str
) -> None:
    objective = {"npo": {"weight": 0.4, "normalization": normalization}, "nll": 0.3, "kl": 0.3}
    results = []
    for fields in ({"batch_size": batch, "accumulation": accumulation}, {"batch_size": 4, "accumulation": 1}):
        made = trainer(copy.deepcopy(base), words, work, objective=objective, epochs=2, **fields)
        results.append(([x["loss"] for x in made.train()], lora_tensors(made.wrapped)[1]))
    assert results[0][0] == pytest.approx(results[1][0], rel=1e-4)
    for name, b in results[0][1].items():
        torch.testing.assert_close(b, results[1][1][name], rtol=1e-2, atol=1e-4)


def test_small_passes_equal_one_large_one(
    base: Any, words: Any, work: StepContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Small micro-batches go together, and large ones are divided; that changes no value."""
    whole = [x["loss"] for x in trainer(copy.deepcopy(base), words, work, batch_size=1, accumulation=4).train()]
    monkeypatch.setattr("expunge_jobs.training.trainer.JOINED_TOKENS", 5)
    small = trainer(copy.deepcopy(base), words, work, batch_size=1, accumulation=4)
    assert len(list(small._chunks(small.sampler.draw(0)))) == 4
    assert [x["loss"] for x in small.train()] == pytest.approx(whole, rel=1e-4)
    assert all(math.isfinite(x) for x in whole)
    large = trainer(copy.deepcopy(base), words, work, batch_size=4, accumulation=1)
    whole = [x["loss"] for x in large.train()]
    monkeypatch.setitem(PACK_TOKENS, "cpu", 5)
    divided = trainer(copy.deepcopy(base), words, work, batch_size=4, accumulation=1)
    assert len(list(divided._chunks(divided.sampler.draw(0)))) == 8, "a row each"
    assert [x["loss"] for x in divided.train()] == pytest.approx(whole, rel=1e-4)
