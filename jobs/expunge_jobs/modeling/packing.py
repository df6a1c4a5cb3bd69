"""Rows that share one forward pass and are kept apart."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor

from expunge_jobs.core.errors import BadTask, suggestion
from expunge_jobs.modeling.encoding import Encoded

PACK_TOKENS = {"cpu": 512, "cuda": 4096}
"""Largest number of tokens in one forward pass, by kind of device.

Attention between packed rows is masked and still costs time, most of all on a CPU. The number decides how
floating-point sums are grouped. Therefore it depends on the kind of device alone, never on the machine.
"""
SLICE = 256
"""Largest number of positions whose logits are computed at once, where a caller needs no logits of a whole row."""


def pack_tokens(where: torch.device) -> int:
    """Return the largest number of tokens in one pass on this device."""
    return PACK_TOKENS.get(where.type, PACK_TOKENS["cuda"])


def decoder(model: Any) -> Any:
    """Return the part of a causal model below its head.

    The first element of the decoder's output is the final hidden state.
    """
    for found in (model.get_decoder(), model.base_model):
        if found is not None and found is not model:
            return found
    embedding = model.get_input_embeddings()  # for a model that takes itself for its decoder, as Llama 4 does
    return next(child for child in model.children() if any(m is embedding for m in child.modules()))


def pack(rows: Sequence[Encoded], where: torch.device) -> dict[str, Tensor]:
    """Concatenate rows into a batch of one.

    Positions restart at each row. The restart keeps the rows apart.
    """
    ids = torch.tensor([[t for r in rows for t in r.ids]], device=where)
    positions = torch.tensor([[p for r in rows for p in range(len(r.ids))]], device=where)
    return {"input_ids": ids, "position_ids": positions}


class Passes:
    """The forward passes of a model over rows.

    Rows share a pass where the model keeps them apart (``packed``). In other models each row has a pass of its own.
    """

    def __init__(self, model: Any, *, packed: bool = True) -> None:
        self.model, self.packed = model, packed

    @property
    def limit(self) -> int:
        """Return the largest number of tokens in one pass."""
        return pack_tokens(self._where)

    def receipt(self) -> dict[str, int]:
        """Return the tokens of a pass, for the manifest.

        ``pack_tokens`` is 0 if each row has a pass of its own.
        """
        return {"pack_tokens": self.limit if self.packed else 0}

    @property
    def _where(self) -> torch.device:
        return next(self.model.parameters()).device  # type: ignore[no-any-return]

    def batches(self, rows: Sequence[Encoded]) -> Iterator[list[int]]:
        """Yield the indices of consecutive rows that fit one pass.

        A longer row goes alone.
        """
        return batches(rows, self.limit)

    def logits_at(self, rows: Sequence[Encoded], positions: Sequence[range]) -> list[Tensor]:
        """Return the logits of each row at its own positions.

        The logits of a row are float32 [positions, vocabulary]. The head runs only at those positions, by the model's
        own path (scaling and soft caps included).
        """
        out: list[Tensor] = []
        for members, wanted in self._shared(rows, positions):
            keep = torch.tensor([s + p for s, ps in zip(_starts(members), wanted, strict=False) for p in ps])
            given = self._given(members)
            logits = self.model(**given, use_cache=False, logits_to_keep=keep.to(self._where)).logits[0].float()
            out += torch.split(logits, [len(p) for p in wanted])
        return out

    def hidden_at(self, rows: Sequence[Encoded], positions: Sequence[range]) -> list[Tensor]:
        """Return the final hidden states of each row at its own positions.

        The states of a row are [positions, width].
        """
        out: list[Tensor] = []
        for members, wanted in self._shared(rows, positions):
            states = decoder(self.model)(**self._given(members), use_cache=False)[0][0]
            out += [states[s + p.start : s + p.stop].clone() for s, p in zip(_starts(members), wanted, strict=False)]
        return out

    @contextmanager
    def captured(
        self, names: Sequence[str], rows: Sequence[Encoded], positions: Sequence[range]
    ) -> Iterator[dict[str, list[Tensor]]]:
        """Capture the outputs of named modules while the rows pass.

        A call of ``logits_at`` or ``hidden_at`` with the same rows inside the block fills the mapping. Each module's
        value is a list with one tensor [positions, width] per row.

        Raises:
            BadTask: the model has no such module.
        """
        modules = dict(self.model.named_modules())
        found: dict[str, list[Tensor]] = {}
        handles = []
        passes = list(self._shared(rows, positions))
        for name in names:
            if name not in modules:
                raise BadTask(f"the model has no module '{name}'{suggestion(name, list(modules))}")
            found[name] = []

            def keep(module: Any, given: Any, out: Any, name: str = name, left: Any = None) -> None:
                members, wanted = next(left)
                states = out[0] if isinstance(out, tuple) else getattr(out, "last_hidden_state", out)
                total = sum(len(r.ids) for r in members)
                if not isinstance(states, Tensor) or states.dim() != 3 or states.shape[:2] != (1, total):
                    raise BadTask(f"the module '{name}' gives no state for each token, so no term can read it")
                found[name] += [
                    states[0][s + p.start : s + p.stop] for s, p in zip(_starts(members), wanted, strict=False)
                ]

            handles.append(modules[name].register_forward_hook(partial(keep, left=iter(passes))))
        try:
            yield found
            if unseen := [name for name in names if not found[name] and rows]:
                raise BadTask(f"the module '{unseen[0]}' gives nothing when the model runs, so no term can read it")
        finally:
            for handle in handles:
                handle.remove()

    def _shared(
        self, rows: Sequence[Encoded], positions: Sequence[range]
    ) -> Iterator[tuple[Sequence[Encoded], Sequence[range]]]:
        """Yield the rows and positions of each pass."""
        if self.packed:
            yield rows, positions
        else:
            yield from (([row], [wanted]) for row, wanted in zip(rows, positions, strict=True))

    def _given(self, rows: Sequence[Encoded]) -> dict[str, Tensor]:
        given = pack(rows, self._where)
        return given if self.packed else {"input_ids": given["input_ids"]}  # some models know no positions


def _starts(rows: Sequence[Encoded]) -> list[int]:
    return list(itertools.accumulate([0, *(len(r.ids) for r in rows)]))


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
    module.forward = lambda *args, **kwargs: _states(hidden)
    try:
        yield
    finally:
        del module.forward  # uncovers the class's own method


def _states(hidden: Tensor) -> Any:
    """Return a decoder's output with these final hidden states.

    All else that a head may read there is None.
    """
    from transformers.modeling_outputs import BaseModelOutputWithPast

    class States(BaseModelOutputWithPast):  # type: ignore[misc]
        def __getattr__(self, name: str) -> None:
            if name.startswith("__"):
                raise AttributeError(name)

    return States(last_hidden_state=hidden)


def keeps_apart(model: Any, rows: Sequence[Encoded]) -> bool:
    """Return whether packed rows do not see each other in this model.

    A row beside a neighbour must give the same logits as the row alone.
    """
    if len(rows) < 2:
        return True
    pair = [min(rows, key=lambda r: len(r.ids)), max(rows, key=lambda r: len(r.ids))]
    everywhere = [range(len(r.ids)) for r in pair]
    try:
        with torch.no_grad():
            together = Passes(model).logits_at(pair, everywhere)
    except TypeError:  # a model that takes no positions
        return False
    with torch.no_grad():
        alone = Passes(model, packed=False).logits_at(pair, everywhere)
    # bfloat16 rounds to 3 significant digits, and rows that see each other differ in the first digit.
    # Therefore 0.1 separates the two cases.
    tolerance = 1e-3 if next(model.parameters()).dtype == torch.float32 else 0.1
    return all(
        float((a - b).abs().max()) <= tolerance * float(b.abs().max().clamp(min=1.0))
        for a, b in zip(together, alone, strict=True)
    )


def batches(rows: Sequence[Encoded], limit: int) -> Iterator[list[int]]:
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
