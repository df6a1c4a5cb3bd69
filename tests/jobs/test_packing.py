"""Packed rows: each gives what it gives alone, whatever lies beside it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from expunge_jobs.core.errors import BadTask
from expunge_jobs.modeling.encoding import Encoded
from expunge_jobs.modeling.packing import batches, check_packing, head_logits, hidden_at, logits_at

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
    for row, logits in zip(ROWS, logits_at(model, ROWS, everywhere(ROWS)), strict=True):
        torch.testing.assert_close(logits, tiny.alone(model, row.ids), rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_logits_at_some_positions(model: Any) -> None:
    positions = [range(2), range(3, 8), range(1), range(1, 15)]
    for row, wanted, logits in zip(ROWS, positions, logits_at(model, ROWS, positions), strict=True):
        torch.testing.assert_close(logits, tiny.alone(model, row.ids)[list(wanted)], rtol=1e-4, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("place", range(4))
def test_a_changed_neighbour_moves_no_other_row(model: Any, place: int) -> None:
    changed = list(ROWS)
    changed[place] = Encoded(tuple((t * 7 + 1) % 300 for t in ROWS[place].ids), ROWS[place].prompt)
    before, after = logits_at(model, ROWS, everywhere(ROWS)), logits_at(model, changed, everywhere(changed))
    for number, (one, other) in enumerate(zip(before, after, strict=True)):
        moved = float((one - other).abs().max())
        assert moved > 0.01 if number == place else moved == 0


def test_a_neighbour_gets_no_gradient(model: Any) -> None:
    """What one row says depends on no embedding of another row's tokens."""
    weights = model.get_input_embeddings().weight.requires_grad_(True)
    rows = [Encoded((50, 51, 52), 1), Encoded((60, 61, 62, 63), 1)]
    try:
        value = logits_at(model, rows, everywhere(rows))[1].logsumexp(-1).sum()
        # Through the head every token gets a gradient where the embeddings are tied: read the hidden states instead.
        value = hidden_at(model, rows, everywhere(rows))[1].square().mul(torch.arange(32)).sum()
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
    states = hidden_at(model, ROWS, positions)
    for logits, hidden in zip(logits_at(model, ROWS, positions), states, strict=True):
        torch.testing.assert_close(head_logits(model, hidden), logits, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(tiny.alone(model, ROWS[0].ids), logits_at(model, ROWS[:1], everywhere(ROWS[:1]))[0])


@torch.no_grad()
def test_stored_states_outlive_the_pass(model: Any) -> None:
    [first] = hidden_at(model, ROWS[:1], [range(2, 3)])
    assert first.untyped_storage().nbytes() == first.numel() * first.element_size()


def test_the_soft_cap_is_in_the_test() -> None:
    capped, free = tiny.model("gemma2"), tiny.model("gemma2", final_logit_softcapping=None)
    assert float(tiny.alone(capped, ROWS[1].ids).abs().max()) < 2
    assert float(tiny.alone(free, ROWS[1].ids).abs().max()) > 2


def test_a_model_that_keeps_rows_apart_passes(model: Any) -> None:
    check_packing(model, ROWS)
    check_packing(model, ROWS[:1])
    check_packing(model.bfloat16() if model.dtype == torch.float32 else model, ROWS)
    model.float()


@pytest.mark.parametrize("kind", ["olmo", "llama", "gpt2"])
@pytest.mark.parametrize("spread", [0.02, 0.2])
def test_a_model_that_ignores_positions_is_refused(kind: str, spread: float) -> None:
    model = tiny.model(kind, spread=spread)
    forward = model.forward
    model.forward = lambda input_ids, position_ids=None, **rest: forward(input_ids, **rest)
    with pytest.raises(BadTask, match="does not keep packed rows apart"):
        check_packing(model, ROWS)


@pytest.mark.parametrize("kind", ["mamba", "bloom"])
def test_a_recurrent_model_and_one_without_positions_are_refused(kind: str) -> None:
    with pytest.raises(BadTask, match="does not keep packed rows apart"):
        check_packing(tiny.model(kind), ROWS)


@pytest.mark.parametrize("limit", [1, 3, 12, 14, 30, 10**6])
def test_batches_are_consecutive_and_fit(limit: int) -> None:
    chunks = list(batches(ROWS, limit))
    assert [i for c in chunks for i in c] == list(range(len(ROWS)))
    assert all(len(c) == 1 or sum(len(ROWS[i].ids) for i in c) <= limit for c in chunks)
    for one, after in zip(chunks, chunks[1:], strict=False):
        assert sum(len(ROWS[i].ids) for i in one) + len(ROWS[after[0]].ids) > limit, "no smaller than need be"
    assert list(batches([], limit)) == []
