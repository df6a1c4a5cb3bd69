"""Where a fresh adapter starts, and on which modules: what a merge of A and B depends on."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from expunge_jobs.core.errors import BadTask
from expunge_jobs.modeling.adapters import attach_lora, lora_tensors
from torch import Tensor

from tests.jobs import tiny_models as tiny


def a_tensors(model: Any, seed: int = 5, **fields: Any) -> dict[str, Tensor]:
    lora = attach_lora(model, tiny.settings(**fields), seed)
    return {k: v.clone() for k, v in lora_tensors(lora.wrapped)[0].items()}


def test_a_starts_from_the_seed_and_the_modules_name_alone() -> None:
    plain = a_tensors(tiny.model())
    torch.manual_seed(99)
    others = [
        a_tensors(tiny.model(seed=8)),
        a_tensors(tiny.model().bfloat16()),
        a_tensors(tiny.model(), objective="gradient_ascent", learning_rate=1, batch_size=7, alpha=3, dropout=0.5),
        a_tensors(tiny.model(), targets=["up_proj", "q_proj"]),
    ]
    for other in others:
        assert other and all(torch.equal(other[k], plain[k]) for k in other)
    assert set(others[3]) < set(plain) == set(others[0])


def test_other_seeds_and_other_modules_start_elsewhere() -> None:
    one, two = a_tensors(tiny.model(), seed=1), a_tensors(tiny.model(), seed=2)
    assert not any(torch.equal(one[k], two[k]) for k in one)
    assert len({v.numpy().tobytes() for v in one.values()}) == len(one)


def test_a_is_uniform_and_b_zero() -> None:
    """LoRA's own start: within 1 / sqrt(in)."""
    lora = attach_lora(tiny.model(), tiny.settings(rank=16), 1)
    a, b = lora_tensors(lora.wrapped)
    for tensor in a.values():
        bound = 1 / math.sqrt(tensor.shape[1])
        assert tensor.dtype == torch.float32
        assert 0.9 * bound < float(tensor.abs().max()) <= bound
        assert float(tensor.std()) == pytest.approx(bound / math.sqrt(3), rel=0.1)
    assert not any(bool(t.any()) for t in b.values())


@pytest.mark.filterwarnings("ignore:fan_in_fan_out")
def test_every_linear_layer_but_the_head() -> None:
    for kind, count in (("olmo", 7), ("llama", 7), ("gpt2", 4)):
        found = a_tensors(tiny.model(kind, **({} if kind == "gpt2" else {"tie_word_embeddings": False})))
        assert len(found) == 2 * count and not any("head" in n for n in found)


def test_unknown_targets_are_named_with_those_there_are() -> None:
    with pytest.raises(BadTask, match="no linear layer 'c_attn'; its layers: down_proj, gate_proj, k_proj"):
        attach_lora(tiny.model(), tiny.settings(targets=["q_proj", "c_attn"]), 1)


def test_only_the_adapter_learns(base: Any) -> None:
    lora = attach_lora(base, tiny.settings(), 1)
    assert all((".lora_A." in n or ".lora_B." in n) == p.requires_grad for n, p in lora.wrapped.named_parameters())
