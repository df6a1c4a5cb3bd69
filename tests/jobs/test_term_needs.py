"""What a term may ask for: hidden states, both sets, other answers, an average of its own. Each beside a plain
computation.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from expunge_jobs import plugins
from expunge_jobs.core.errors import BadTask
from expunge_jobs.modeling.adapters import attach_lora
from expunge_jobs.objectives import Needs, RowOutput, TermParameters
from expunge_jobs.runtime.context import StepContext
from expunge_jobs.steps import finetune
from expunge_jobs.tasks.references import Input, ModelRef, TaskData
from expunge_jobs.tasks.tasks import FinetuneTask
from expunge_jobs.training.trainer import Trainer
from torch import Tensor

from tests.jobs import tiny_models as tiny

LAYER = "model.layers.0"
Use = Callable[..., None]


@pytest.fixture
def use(monkeypatch: pytest.MonkeyPatch) -> Use:
    """Makes ``mine`` the name of an objective that is given as functions."""
    load = plugins.load

    def use(needs: Needs, values: Callable[[Any, Sequence[RowOutput]], Tensor], **more: Any) -> None:
        plugin = SimpleNamespace(VERSION=1, Parameters=TermParameters, needs=lambda _: needs, values=values, **more)
        monkeypatch.setattr(plugins, "load", lambda family, name: plugin if name == "mine" else load(family, name))

    return use


def trainer(base: Any, words: Any, work: StepContext, alternatives: Any = None, **fields: Any) -> Trainer:
    settings = tiny.settings(objective={"mine": 1.0}, **fields)
    rows: Any = {s: [tiny.encode(words, r) for r in g] for s, g in (("forget", tiny.FORGET), ("retain", tiny.RETAIN))}
    return Trainer(attach_lora(base, settings, 5), rows, settings, 5, work, alternatives)


def drawn(made: Trainer, side: str) -> list[int]:
    return [d.index for d in made.sampler.draw(0) if d.side == side]


def layer_output(model: Any, ids: tuple[int, ...]) -> Tensor:
    """[tokens, width]: what the layer gives for a row by itself."""
    found: Tensor = model(input_ids=torch.tensor([list(ids)]), output_hidden_states=True).hidden_states[1][0]
    return found


def test_hidden_states_of_a_named_layer_and_the_reference_s(base: Any, words: Any, work: StepContext, use: Use) -> None:
    seen: list[RowOutput] = []

    def values(_: Any, rows: Sequence[RowOutput]) -> Tensor:
        seen.extend(rows)
        return torch.stack([(r.hidden[LAYER] - r.reference_hidden[LAYER] - 1).square().mean() for r in rows])

    use(Needs(sets=("forget",), positions="all", reference=frozenset({"hidden"}), hidden=(LAYER,)), values)
    plain = copy.deepcopy(base)
    made = trainer(base, words, work)
    made._ask_reference()
    line = made.step(0)
    for index, row in zip(drawn(made, "forget"), seen, strict=True):
        encoded = tiny.encode(words, tiny.FORGET[index])
        torch.testing.assert_close(
            row.reference_hidden[LAYER], layer_output(plain, encoded.ids)[:-1], rtol=1e-4, atol=1e-5
        )
        assert row.hidden[LAYER].requires_grad
        assert not row.reference_hidden[LAYER].requires_grad
    assert line["mine"] == pytest.approx(1.0, rel=1e-4), "B is zero: policy and reference are one"
    made.step(1)  # the first step's learning rate is 0
    assert made.step(2)["mine"] < 1.0, "a gradient reaches the adapter"


def test_a_layer_that_is_not_there_is_named(base: Any, words: Any, work: StepContext, use: Use) -> None:
    use(Needs(sets=("forget",), hidden=("model.layer.0",)), lambda _, rows: torch.stack([r.nll.sum() for r in rows]))
    with pytest.raises(BadTask, match=r"no module 'model.layer.0'; did you mean 'model.layers.0'"):
        trainer(base, words, work).step(0)


def test_both_sets(base: Any, words: Any, work: StepContext, use: Use) -> None:
    sides: list[str] = []

    def values(_: Any, rows: Sequence[RowOutput]) -> Tensor:
        sides.extend(r.side for r in rows)
        return torch.stack([r.nll.mean() * (1 if r.side == "retain" else -1) for r in rows])

    use(Needs(sets=("forget", "retain")), values)
    made = trainer(copy.deepcopy(base), words, work)
    line = made.step(0)
    assert sorted(sides) == ["forget"] * 4 + ["retain"] * 4
    plain = [
        sign * nll(base, words, rows[i]).mean()
        for side, rows, sign in (("forget", tiny.FORGET, -1), ("retain", tiny.RETAIN, 1))
        for i in drawn(made, side)
    ]
    assert line["mine"] == pytest.approx(float(torch.stack(plain).mean()), rel=1e-4)


@pytest.mark.parametrize("over", ["rows", "labels", "micro_batches"])
def test_it_says_itself_how_its_values_are_averaged(
    base: Any, words: Any, work: StepContext, use: Use, over: Any
) -> None:
    def values(_: Any, rows: Sequence[RowOutput]) -> Tensor:
        if over == "labels":
            return torch.cat([r.nll for r in rows])
        if over == "rows":
            return torch.stack([r.nll.sum() for r in rows])
        numbers = sorted({r.micro_batch for r in rows})
        return torch.stack([torch.cat([r.nll for r in rows if r.micro_batch == n]).mean() for n in numbers])

    use(Needs(sets=("forget",), averaged_over=over), values)
    made = trainer(copy.deepcopy(base), words, work)
    line = made.step(0)
    each = [nll(base, words, tiny.FORGET[i]) for i in drawn(made, "forget")]
    plain = {
        "rows": torch.stack([e.sum() for e in each]).mean(),
        "labels": torch.cat(each).mean(),
        "micro_batches": (torch.cat(each[:2]).mean() + torch.cat(each[2:]).mean()) / 2,
    }
    assert line["mine"] == pytest.approx(float(plain[over]), rel=1e-4)


def test_other_answers_beside_the_rows_own(base: Any, words: Any, work: StepContext, use: Use) -> None:
    """The difference of a row's two answers, of which the reference says its own."""

    def values(_: Any, rows: Sequence[RowOutput]) -> Tensor:
        out = []
        for row in rows:
            assert row.alternative is not None and row.alternative.reference_nll is not None
            out.append(row.alternative.nll.sum() - row.nll.sum() + 0 * row.alternative.reference_nll.sum())
        return torch.stack(out)

    say = lambda _, row: f"I know no {row.kind}"  # noqa: E731
    use(Needs(sets=("forget",), reference=frozenset({"nll"}), alternative=True), values, alternative=say)
    task = FinetuneTask(
        model=ModelRef(base=Input(uri="file:///not-read", digest="sha256:0")),
        data=TaskData(sets={}),
        settings=tiny.settings(objective={"mine": 1.0}),
        seed=5,
    )
    others = finetune.alternatives(task, {"forget": tiny.FORGET, "retain": tiny.RETAIN}, tiny.encoder(words))
    assert set(others) == {"forget"}
    made = trainer(copy.deepcopy(base), words, work, others)
    made._ask_reference()
    line = made.step(0)
    plain = []
    for index in drawn(made, "forget"):
        row = tiny.FORGET[index]
        other = replace(row, output=f"I know no {row.kind}")
        plain.append(nll(base, words, other).sum() - nll(base, words, row).sum())
        assert made.samples["forget"][index].alternative is not None
    assert line["mine"] == pytest.approx(float(torch.stack(plain).mean()), rel=1e-4)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (lambda _, rows: torch.stack([r.nll.mean() for r in rows]).mean(), r"a tensor of \[\], not one value for each"),
        (
            lambda _, rows: torch.cat([r.nll for r in rows]),
            r"a tensor of \[\d+\], not one value for each of the \d+ rows",
        ),
        (lambda _, rows: torch.ones(len(rows)), "values without a gradient"),
        (lambda _, rows: [r.nll.mean() for r in rows], "a list, not a tensor"),
    ],
)
def test_values_that_do_not_fit_are_named(
    base: Any, words: Any, work: StepContext, use: Use, values: Any, said: str
) -> None:
    use(Needs(sets=("forget",)), values)
    with pytest.raises(BadTask, match=f"the objective 'mine': values gives {said}"):
        trainer(copy.deepcopy(base), words, work).step(0)


@pytest.mark.parametrize(
    ("needs", "said"),
    [
        (lambda _: {"sets": ("forget",)}, "needs gives a dict, not Needs"),
        (lambda _: Needs(sets=("forget", "forgt")), r"needs fails: ValueError: Needs.sets has 'forgt'; allowed"),  # type: ignore[arg-type]
        (lambda _: Needs(sets=("forget",), reference="nll"), "Needs.reference has"),  # type: ignore[arg-type]
        (lambda _: Needs(sets=("forget",), alternative=True), "needs alternatives, but has no function alternative"),
        (lambda p: p.gain, "needs fails: AttributeError"),
    ],
)
def test_needs_that_are_none_are_named(
    base: Any, words: Any, work: StepContext, monkeypatch: pytest.MonkeyPatch, needs: Any, said: str
) -> None:
    plugin = SimpleNamespace(VERSION=1, Parameters=TermParameters, needs=needs, values=None)
    load = plugins.load
    monkeypatch.setattr(plugins, "load", lambda family, name: plugin if name == "mine" else load(family, name))
    with pytest.raises(BadTask, match=f"the objective 'mine'.*{said}"):
        trainer(base, words, work)


@pytest.mark.parametrize(("answer", "said"), [("  ", "an empty text"), (None, "a NoneType")])
def test_an_alternative_that_is_none_names_the_row(words: Any, use: Use, answer: Any, said: str) -> None:
    use(Needs(sets=("forget",), alternative=True), lambda _, rows: torch.zeros(0), alternative=lambda _, row: answer)
    task = FinetuneTask(
        model=ModelRef(base=Input(uri="file:///not-read", digest="sha256:0")),
        data=TaskData(sets={}),
        settings=tiny.settings(objective={"mine": 1.0}),
        seed=5,
    )
    with pytest.raises(BadTask, match=f"the objective 'mine': alternative gives {said} for the row in line"):
        finetune.alternatives(task, {"forget": tiny.FORGET, "retain": tiny.RETAIN}, tiny.encoder(words))


def nll(model: Any, words: Any, row: Any) -> Tensor:
    """[labels]: -log p of a row's label tokens, from a plain forward pass."""
    encoded = tiny.encode(words, row)
    logits = tiny.alone(model, encoded.ids)[encoded.prompt - 1 : -1]
    return torch.nn.functional.cross_entropy(logits, torch.tensor(encoded.labels), reduction="none")
