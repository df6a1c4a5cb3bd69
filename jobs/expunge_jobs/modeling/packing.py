"""Rows that share one forward pass and are kept apart."""

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
"""Largest number of tokens in one forward pass.

The number decides how floating-point sums are grouped; therefore the machine never chooses the number.
"""


def decoder(model: Any) -> Any:
    """Return the part of a causal model below its head.

    The first element of the decoder's output is the final hidden state.
    """
    found = model.get_decoder()
    return found if found is not None and found is not model else model.base_model


def pack(rows: Sequence[Encoded], where: torch.device) -> dict[str, Tensor]:
    """Concatenate rows into a batch of one.

    Positions restart at each row. The restart keeps the rows apart.
    """
    ids = torch.tensor([[t for r in rows for t in r.ids]], device=where)
    positions = torch.tensor([[p for r in rows for p in range(len(r.ids))]], device=where)
    return {"input_ids": ids, "position_ids": positions}


def logits_at(model: Any, rows: Sequence[Encoded], positions: Sequence[range]) -> list[Tensor]:
    """Return the logits of each row at its own positions.

    The logits of a row are float32 [positions, vocabulary]. All rows share one packed pass.
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
    """Return the final hidden state of each row at its own positions.

    The state of a row is [positions, width]. All rows share one packed pass.
    """
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
    """Capture the outputs of named modules in a packed pass over the rows.

    A packed pass inside the block fills the mapping. Each module's value is a list with one tensor
    [positions, width] per row.

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
            states = out[0] if isinstance(out, tuple) else getattr(out, "last_hidden_state", out)
            total = sum(len(r.ids) for r in rows)
            if not isinstance(states, Tensor) or states.dim() != 3 or states.shape[:2] != (1, total):
                raise BadTask(f"the module '{name}' gives no state for each token, so no term can read it")
            states = states[0]
            starts = itertools.accumulate([0, *(len(r.ids) for r in rows)])
            found[name] = [states[s + p.start : s + p.stop] for s, p in zip(starts, positions, strict=False)]

        handles.append(modules[name].register_forward_hook(keep))
    try:
        yield found
        if unseen := [name for name in names if name not in found]:
            raise BadTask(f"the module '{unseen[0]}' gives nothing when the model runs, so no term can read it")
    finally:
        for handle in handles:
            handle.remove()


def head_logits(model: Any, hidden: Tensor) -> Tensor:
    """Return the float32 logits [n, vocabulary] of stored hidden states.

    The hidden states are [n, width]. The model's own path computes the logits from there on.
    """
    with _decoder_gives(decoder(model), hidden[None]):
        dummy = torch.zeros((1, hidden.shape[0]), dtype=torch.long, device=hidden.device)
        logits: Tensor = model(input_ids=dummy, use_cache=False).logits
    return logits[0].float()


@contextmanager
def _decoder_gives(module: Any, hidden: Tensor) -> Iterator[None]:
    from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions as Output  # GPT-2 reads both

    module.forward = lambda *args, **kwargs: Output(last_hidden_state=hidden)
    try:
        yield
    finally:
        del module.forward  # uncovers the class's own method


def check_packing(model: Any, rows: Sequence[Encoded]) -> None:
    """Refuse a model in which packed rows see each other.

    A row beside a neighbour must give the same logits as the row alone.

    Raises:
        BadTask: the model ignores the positions that keep rows apart.
    """
    if len(rows) < 2:
        return
    pair = [min(rows, key=lambda r: len(r.ids)), max(rows, key=lambda r: len(r.ids))]
    with torch.no_grad():
        together = logits_at(model, pair, [range(len(r.ids)) for r in pair])
        alone = [logits_at(model, [r], [range(len(r.ids))])[0] for r in pair]
    # bfloat16 rounds to 3 significant digits, and rows that see each other differ in the first digit.
    # Therefore 0.1 separates the two cases.
    tolerance = 1e-3 if next(model.parameters()).dtype == torch.float32 else 0.1
    for a, b in zip(together, alone, strict=True):
        if float((a - b).abs().max()) > tolerance * float(b.abs().max().clamp(min=1.0)):
            raise BadTask(f"{type(model).__name__} does not keep packed rows apart: this model cannot be used yet")


def batches(rows: Sequence[Encoded], limit: int = PACK_TOKENS) -> Iterator[list[int]]:
    """Yield the indices of consecutive rows that fit one packed pass.

    A row above the limit goes alone.
    """
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
