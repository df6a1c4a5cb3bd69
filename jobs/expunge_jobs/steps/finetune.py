"""The step that makes one specialised LoRA fine-tune.

The loss is a weighted sum of objective terms on the forget and retain rows.
The artifact is ``adapter/``, ``snapshots/epoch-<n>/`` (PEFT directories) and ``losses.jsonl`` (each term by step).
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import torch

from expunge_jobs.core.errors import BadTask
from expunge_jobs.data.rows import Row
from expunge_jobs.data.selection import load
from expunge_jobs.modeling import adapters
from expunge_jobs.modeling import loading as models
from expunge_jobs.modeling.encoding import Encoded, Encoder
from expunge_jobs.modeling.packing import keeps_apart
from expunge_jobs.objectives import Side
from expunge_jobs.plugins import PluginCall
from expunge_jobs.runtime.context import StepContext
from expunge_jobs.tasks.tasks import FinetuneTask
from expunge_jobs.training.sampling import SIDES
from expunge_jobs.training.terms import SideNeeds, Term
from expunge_jobs.training.trainer import Trainer

MOST_WEIGHTS = 0.95
"""Share of the weights below which the user is told what ``all-linear`` leaves out."""


def run(task: FinetuneTask, context: StepContext) -> dict[str, Any]:
    """Train the adapter and return the receipt's statistics."""
    base, tokenizer = models.load_model(task.model, context, task.dtype)
    encoder = models.encoder_for(base, tokenizer, task.data)
    sets = load(task.data, context.read)
    for side in SIDES:
        if side not in sets:
            raise BadTask(f"a fine-tune needs both sets: data.{side} is missing")
    given = {side: [i for i in sets[side] if isinstance(i, Row)] for side in SIDES}
    rows = {side: encoder.rows(given[side], task.data.max_length) for side in SIDES}
    others = alternatives(task, given, encoder)
    packed = keeps_apart(base, [*rows["forget"], *rows["retain"]])
    if task.settings.gradient_checkpointing:
        # PEFT lets gradients into layers that are checkpointed before the adapter is attached.
        # Therefore enable checkpointing first.
        base.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    lora = adapters.attach_lora(base, task.settings, task.seed)
    share = adapters.adapted_share(lora.wrapped)
    if task.settings.targets == "all-linear" and share < MOST_WEIGHTS:
        without = ": experts and their routers are left out" if adapters.has_experts(base) else ""
        context.notice(f"the adapter changes {share:.0%} of the weights, embeddings and head aside{without}")
    encoder.tell(context.notice)
    trainer = Trainer(lora, rows, task.settings, task.seed, context, others, packed=packed)
    losses = trainer.train()
    a, b = adapters.lora_tensors(lora.wrapped)
    if not all(bool(torch.isfinite(t).all()) for t in (*a.values(), *b.values())):
        # A loss is measured before its step, so that no loss reflects the last update; therefore check the tensors.
        raise BadTask(
            f"the adapter is not finite after training step {trainer.steps} of {trainer.steps}: lower learning_rate"
        )
    if not any(bool(t.any()) for t in b.values()):
        raise BadTask(
            "every B matrix is still zero after training: the adapter changes nothing; raise learning_rate or epochs"
        )
    trainer.save("adapter")
    (context.out / "losses.jsonl").write_text("".join(json.dumps(line) + "\n" for line in losses))
    return {
        "a_start": lora.a_start,
        "steps": len(losses),
        "losses": losses[-1],
        "forget_rows": len(rows["forget"]),
        "retain_rows": len(rows["retain"]),
        "norm": adapters.Adapter(context.out / "adapter").norm(),
        "adapted_share": share,
        **trainer.passes.receipt(),
        **encoder.receipt(),
    }


def alternatives(task: FinetuneTask, rows: dict[Side, list[Row]], encoder: Encoder) -> dict[Side, list[Encoded]]:
    """Encode the rows with the other answers that a term gives, by set.

    A set is absent if no term gives answers for that set.

    Raises:
        BadTask: two terms give answers for one set.
    """
    terms = [Term.of(call) for call in task.settings.objective]
    out: dict[Side, list[Encoded]] = {}
    for side in SIDES:
        giving = [t for t in SideNeeds.of(terms, side).terms if t.needs.alternative]
        if len(giving) > 1:
            raise BadTask(
                f"the terms {giving[0].name} and {giving[1].name} both give other answers for {side}: take one"
            )
        if giving:
            call = giving[0].call
            other = [replace(r, output=_alternative(call, r)) for r in rows[side]]
            out[side] = encoder.rows(other, task.data.max_length)
    return out


def _alternative(call: PluginCall, row: Row) -> str:
    found = call.plugin.alternative(call.parameters, row)
    if not isinstance(found, str) or not found.strip():
        what = "an empty text" if isinstance(found, str) else f"a {type(found).__name__}"
        raise BadTask(f"the objective '{call.name}': alternative gives {what} for the row in line {row.line}")
    return found
