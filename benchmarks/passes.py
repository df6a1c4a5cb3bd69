"""What a forward pass holds: time and memory of our passes against passes of 4,096 tokens.

    python benchmarks/passes.py

Prints the seconds of a probability pass over 200 rows, and the memory that one optimizer step adds for 16 x 1, 4 x 4
and 1 x 16 rows. Weights are random, with a vocabulary of 32,000.
"""

from __future__ import annotations

import multiprocessing
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from expunge_jobs.modeling import adapters, packing
from expunge_jobs.modeling.encoding import Encoded
from expunge_jobs.runtime.context import StepContext
from expunge_jobs.store import open_store
from expunge_jobs.tasks.settings import FinetuneSettings
from expunge_jobs.training import trainer

WHOLE = 4096
BATCHES = ((16, 1), (4, 4), (1, 16))


def model() -> Any:
    """Return a model of eight layers."""
    from transformers import AutoConfig, AutoModelForCausalLM

    sizes = {"hidden_size": 256, "intermediate_size": 672, "num_hidden_layers": 8, "num_attention_heads": 4}
    config = AutoConfig.for_model("olmo", vocab_size=32000, eos_token_id=0, pad_token_id=0, **sizes)
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)


def rows(count: int, length: int = 100) -> list[Encoded]:
    """Return rows of random tokens."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(1, 32000, (count, length), generator=generator).tolist()
    return [Encoded(tuple(r), length // 2) for r in ids]


@torch.no_grad()
def probability_seconds(limit: int) -> float:
    """Return the seconds of a pass over 200 rows, with so many tokens a pass."""
    made, given = model(), rows(200)
    passes = packing.Passes(made)
    began = time.perf_counter()
    for chunk in packing.batches(given, limit):
        members = [given[i] for i in chunk]
        for states in passes.hidden_at(members, [range(len(r.ids) - 1) for r in members]):
            packing.head_logits(made, states)
    return time.perf_counter() - began


def step_memory(batch: tuple[int, int], together: bool) -> float:
    """Return the GiB that one optimizer step adds; ``together``: as passes of 4,096 tokens."""
    if together:
        packing.PACK_TOKENS["cpu"] = trainer.JOINED_TOKENS = WHOLE
    settings = FinetuneSettings(objective={"nll": 1.0}, batch_size=batch[0], accumulation=batch[1], epochs=1)
    lora = adapters.attach_lora(model(), settings, 0)
    with tempfile.TemporaryDirectory() as folder:
        context = StepContext(open_store(folder), Path(folder) / "out", Path(folder) / "scratch")
        made = trainer.Trainer(lora, {"forget": rows(16), "retain": rows(16)}, settings, 0, context)
        before = _peak()
        made.step(0)
    return _peak() - before


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def _apart(function: Callable[..., float], *given: Any) -> float:
    """Return a function's value from a process of its own, whose peak is its own too."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, given)


def main() -> None:
    """Print each figure with its ratio."""
    torch.set_num_threads(2)
    ours, whole = _apart(probability_seconds, packing.PACK_TOKENS["cpu"]), _apart(probability_seconds, WHOLE)
    print(f"probability pass: {ours:.1f} s, {whole:.1f} s at {WHOLE:,} tokens: ratio {ours / whole:.2f}")
    for batch in BATCHES:
        ours, whole = _apart(step_memory, batch, False), _apart(step_memory, batch, True)
        print(f"{batch[0]} x {batch[1]}: {ours:.2f} GiB, {whole:.2f} GiB at {WHOLE:,} tokens: ratio {ours / whole:.2f}")


if __name__ == "__main__":
    main()
