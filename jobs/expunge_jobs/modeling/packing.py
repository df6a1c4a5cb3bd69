"""Rows side by side in one forward pass, kept apart."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from expunge_jobs.core.errors import BadTask, suggestion
from expunge_jobs.modeling.encoding import Encoded

PACK_TOKENS = 4096
"""Most tokens in one forward pass. Part of how floating-point sums group, so a constant, never the machine's choice."""


def decoder(model: Any) -> Any:
    """The part of a causal model below its head: its output's first element is the final hidden state."""
    found = model.get_decoder()
    return found if found is not None and found is not model else model.base_model


def pack(rows: Sequence[Encoded], where: torch.device) -> dict[str, Tensor]:
    """Rows one after the other as a batch of one; positions start again at each row, which keeps them apart."""
    ids = torch.tensor([[t for r in rows for t in r.ids]], device=where)
    positions = torch.tensor([[p for r in rows for p in range(len(r.ids))]], device=where)
    return {"input_ids": ids, "position_ids": positions}


def logits_at(model: Any, rows: Sequence[Encoded], positions: Sequence[range]) -> list[Tensor]:
    """float32 logits [positions, vocabulary] of each row at its own positions, in one packed pass.

    The head runs only at those positions, by the model's own path (scaling and soft caps included).
    """
    where = next(model.parameters()).device
    keep, start = [], 0
    for row, wanted in zip(rows, positions, strict=True):
        keep += [start + p for p in wanted]
        start += len(row.ids)
    logits = (
        model(**pack(rows, where), use_cache=False, logits_to_keep=torch.tensor(keep, device=where)).logits[0].float()
    )
    return list(torch.split(logits, [len(p) for p in positions]))


def hidden_at(model: Any, rows: Sequence[Encoded], positions: Sequence[range]) -> list[Tensor]:
    """The final hidden state [positions, width] of each row at its own positions, in one packed pass."""
    where = next(model.parameters()).device
    states = decoder(model)(**pack(rows, where), use_cache=False)[0][0]
    out, start = [], 0
    for row, wanted in zip(rows, positions, strict=True):
        out.append(states[start + wanted.start : start + wanted.stop].clone())
        start += len(row.ids)
    return out


@contextmanager
def captured(
    model: Any, names: Sequence[str], rows: Sequence[Encoded], positions: Sequence[range]
) -> Iterator[dict[str, list[Tensor]]]:
    """Inside, a packed pass over these rows leaves in the mapping what each named module gives: by row, [positions, width].

    Raises:
        BadTask: the model has no such module.
    """
    modules = dict(model.named_modules())
    found: dict[str, list[Tensor]] = {}
    handles = []
    for name in names:
        if name not in modules:
            raise BadTask(f"the model has no module '{name}'{suggestion(name, list(modules))}")

        def keep(module: Any, given: Any, out: Any, name: str = name) -> None:
            states = (out[0] if isinstance(out, tuple) else out)[0]
            starts = itertools.accumulate([0, *(len(r.ids) for r in rows)])
            found[name] = [states[s + p.start : s + p.stop] for s, p in zip(starts, positions, strict=False)]

        handles.append(modules[name].register_forward_hook(keep))
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def head_logits(model: Any, hidden: Tensor) -> Tensor:
    """float32 logits [n, vocabulary] of stored hidden states [n, width], by the model's own path from there on."""
    with _decoder_gives(decoder(model), hidden[None]):
        dummy = torch.zeros((1, hidden.shape[0]), dtype=torch.long, device=hidden.device)
        logits: Tensor = model(input_ids=dummy, use_cache=False).logits
    return logits[0].float()


@contextmanager
def _decoder_gives(module: Any, hidden: Tensor) -> Iterator[None]:
    from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions as Output  # GPT-2 reads them

    module.forward = lambda *args, **kwargs: Output(last_hidden_state=hidden)
    try:
        yield
    finally:
        del module.forward  # uncovers the class's own


def check_packing(model: Any, rows: Sequence[Encoded]) -> None:
    """Refuses a model in which packed rows see each other: a row beside a neighbour must give its logits alone.

    Raises:
        BadTask: the model ignores the positions that keep rows apart.
    """
    if len(rows) < 2:
        return
    pair = [min(rows, key=lambda r: len(r.ids)), max(rows, key=lambda r: len(r.ids))]
    with torch.no_grad():
        together = logits_at(model, pair, [range(len(r.ids)) for r in pair])
        alone = [logits_at(model, [r], [range(len(r.ids))])[0] for r in pair]
    # bfloat16 rounds to 3 significant digits; rows that see each other differ in the first.
    tolerance = 1e-3 if next(model.parameters()).dtype == torch.float32 else 0.1
    for a, b in zip(together, alone, strict=True):
        if float((a - b).abs().max()) > tolerance * float(b.abs().max().clamp(min=1.0)):
            raise BadTask(f"{type(model).__name__} does not keep packed rows apart: this model cannot be used yet")


def batches(rows: Sequence[Encoded], limit: int = PACK_TOKENS) -> Iterator[list[int]]:
    """Indices of consecutive rows that fit one packed pass."""
    chunk: list[int] = []
    size = 0
    for index, row in enumerate(rows):
        if chunk and size + len(row.ids) > limit:
            yield chunk
            chunk, size = [], 0
        chunk.append(index)
        size += len(row.ids)
    if chunk:
        yield chunk
