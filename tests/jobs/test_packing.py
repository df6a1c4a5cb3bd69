"""Packed rows: each gives what it gives alone, whatever lies beside it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from expunge_jobs.modeling.encoding import Encoded
from expunge_jobs.modeling.packing import Passes, batches, head_logits, keeps_apart

from tests.jobs import tiny_models as tiny

ROWS = [
    Encoded((5, 6, 7), 1),
    Encoded((9, 8, 7, 6, 5, 4, 3, 2, 11), 4),
    Encoded((6, 6), 1),
    Encoded(tuple(range(20, 36)), 2),
]


def everywhere(rows: list[Encoded]) -> list[range]:
    return [range(len(r.ids)) for r in rows]


@pytest.fixture(scope="module", params=tiny.KINDS)
def model(request: pytest.FixtureRequest) -> Any:
    return tiny.model(request.param)


@torch.no_grad()
def test_packed_logits_are_those_of_each_row_alone(model: Any) -> None:
    for row, logits in zip(ROWS, Passes(model).logits_at(ROWS, everywhere(ROWS)), strict=True):
        torch.testing.assert_close(logits, tiny.alone(model, row.ids), rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_logits_at_some_positions(model: Any) -> None:
    positions = [range(2), range(3, 8), range(1), range(1, 15)]
    for row, wanted, logits in zip(ROWS, positions, Passes(model).logits_at(ROWS, positions), strict=True):
        torch.testing.assert_close(logits, tiny.alone(model, row.ids)[list(wanted)], rtol=1e-4, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("place", range(4))
def test_a_changed_neighbour_moves_no_other_row(model: Any, place: int) -> None:
    changed = list(ROWS)
    changed[place] = Encoded(tuple((t * 7 + 1) % 300 for t in ROWS[place].ids), ROWS[place].prompt)
    before, after = (
        Passes(model).logits_at(ROWS, everywhere(ROWS)),
        Passes(model).logits_at(changed, everywhere(changed)),
    )
    for number, (one, other) in enumerate(zip(before, after, strict=True)):
        moved = float((one - other).abs().max())
        assert moved > 0.01 if number == place else moved == 0


def test_a_neighbour_gets_no_gradient(model: Any) -> None:
    """What one row says depends on no embedding of another row's tokens."""
    weights = model.get_input_embeddings().weight.requires_grad_(True)
    rows = [Encoded((50, 51, 52), 1), Encoded((60, 61, 62, 63), 1)]
    try:
        value = Passes(model).logits_at(rows, everywhere(rows))[1].logsumexp(-1).sum()
        # Through the head every token gets a gradient where the embeddings are tied: read the hidden states instead.
        value = Passes(model).hidden_at(rows, everywhere(rows))[1].square().mul(torch.arange(32)).sum()
        value.backward()
        assert weights.grad is not None
        assert bool(weights.grad[60:64].any(-1).all()) and not bool(weights.grad[50:53].any())
    finally:
        weights.requires_grad_(False)
        weights.grad = None


@torch.no_grad()
def test_logits_of_stored_states_are_the_models_own(model: Any) -> None:
    """Scaling and soft caps included; the model is as it was afterwards."""
    positions = [range(1, 3), range(8), range(2), range(4, 16)]
    states = Passes(model).hidden_at(ROWS, positions)
    for logits, hidden in zip(Passes(model).logits_at(ROWS, positions), states, strict=True):
        torch.testing.assert_close(head_logits(model, hidden), logits, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(
        tiny.alone(model, ROWS[0].ids), Passes(model).logits_at(ROWS[:1], everywhere(ROWS[:1]))[0]
    )


@torch.no_grad()
def test_stored_states_outlive_the_pass(model: Any) -> None:
    [first] = Passes(model).hidden_at(ROWS[:1], [range(2, 3)])
    assert first.untyped_storage().nbytes() == first.numel() * first.element_size()


def test_the_soft_cap_is_in_the_test() -> None:
    capped, free = tiny.model("gemma2"), tiny.model("gemma2", final_logit_softcapping=None)
    assert float(tiny.alone(capped, ROWS[1].ids).abs().max()) < 2
    assert float(tiny.alone(free, ROWS[1].ids).abs().max()) > 2


def test_a_model_that_keeps_rows_apart_passes(model: Any) -> None:
    assert keeps_apart(model, ROWS)
    assert keeps_apart(model, ROWS[:1])
    assert keeps_apart(model.bfloat16() if model.dtype == torch.float32 else model, ROWS)
    model.float()


@pytest.mark.parametrize("kind", ["olmo", "llama", "gpt2"])
@pytest.mark.parametrize("spread", [0.02, 0.2])
def test_a_model_that_ignores_positions_does_not(kind: str, spread: float) -> None:
    model = tiny.model(kind, spread=spread)
    forward = model.forward
    model.forward = lambda input_ids, position_ids=None, **rest: forward(input_ids, **rest)
    assert not keeps_apart(model, ROWS)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["mamba", "bloom"])
def test_where_rows_are_not_kept_apart_each_has_its_own_pass(kind: str) -> None:
    model = tiny.model(kind)
    assert not keeps_apart(model, ROWS)
    passes = Passes(model, packed=False)
    name = next(n for n, _ in model.named_modules() if n.endswith(("layers.1", "h.1")))
    with passes.captured([name], ROWS, everywhere(ROWS)) as captured:
        found = passes.logits_at(ROWS, everywhere(ROWS))
    for row, logits, states in zip(ROWS, found, captured[name], strict=True):
        torch.testing.assert_close(logits, tiny.alone(model, row.ids))
        assert len(states) == len(row.ids)
    assert passes.receipt() == {"pack_tokens": 0}


@pytest.mark.parametrize("limit", [1, 3, 12, 14, 30, 10**6])
def test_batches_are_consecutive_and_fit(limit: int) -> None:
    chunks = list(batches(ROWS, limit))
    assert [i for c in chunks for i in c] == list(range(len(ROWS)))
    assert all(len(c) == 1 or sum(len(ROWS[i].ids) for i in c) <= limit for c in chunks)
    for one, after in zip(chunks, chunks[1:], strict=False):
        assert sum(len(ROWS[i].ids) for i in one) + len(ROWS[after[0]].ids) > limit, "no smaller than need be"
    assert list(batches([], limit)) == []
