"""The step that builds the model that is to forget.

The model trains on every row of its sets until the rows are known, for at most ``epochs`` passes.
The loss is the language model's on whole rows, prompt included.
A model from scratch gets a byte-level BPE tokenizer trained on all sets, also where ``only`` some are memorized.
The artifact is ``model/``, a directory in Hugging Face's format.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from expunge_jobs.core.errors import BadTask
from expunge_jobs.core.hashing import stable_hash
from expunge_jobs.data.rows import Item, Row
from expunge_jobs.data.selection import load
from expunge_jobs.modeling.encoding import Encoded
from expunge_jobs.modeling.loading import encoder_for, load_model
from expunge_jobs.modeling.packing import Passes, keeps_apart
from expunge_jobs.runtime.context import StepContext
from expunge_jobs.runtime.distributed import WorkerGroup, device
from expunge_jobs.tasks.references import SetName, TaskData
from expunge_jobs.tasks.settings import Architecture, MemorizeSettings
from expunge_jobs.tasks.tasks import MemorizeTask

END = "<|end|>"
NEAR = 0.1
"""Distance below ``stop_at`` from which the model itself is checked.

The share of rows known in the training passes is compared with ``stop_at``.
"""


def run(task: MemorizeTask, context: StepContext) -> dict[str, Any]:
    """Train the model and return the receipt's figures.

    ``epochs`` is the number of passes made. ``known`` is the share of rows known.
    """
    rows = _distinct(load(task.data, context.read, task.only))
    if task.model is not None:
        model, tokenizer = load_model(task.model, context, task.dtype)
    else:
        assert task.architecture is not None, "the task has one of the two"
        every = _distinct(load(task.data, context.read)) if task.only is not None else rows
        tokenizer = _train_tokenizer(task.architecture, task.data, every, context.scratch)
        model = _build(task.architecture, task.settings.seed, tokenizer, task.dtype)
    encoder = encoder_for(model, tokenizer, task.data)
    encoded = encoder.rows(rows, task.data.max_length)
    encoder.tell(context.notice)
    passes = Passes(model, packed=keeps_apart(model, encoded))
    epochs, known = _train(passes, encoded, task, context)
    if context.group.main:
        model.save_pretrained(context.out / "model")
        tokenizer.save_pretrained(context.out / "model")
    return {
        "rows": len(rows),
        "epochs": epochs,
        "known": known,
        "parameters": model.num_parameters(),
        **passes.receipt(),
        **encoder.receipt(),
    }


def _distinct(sets: dict[SetName, list[Item]]) -> list[Row]:
    return list({(i.input, i.output): i for rows in sets.values() for i in rows if isinstance(i, Row)}.values())


def _train(passes: Passes, rows: Sequence[Encoded], task: MemorizeTask, context: StepContext) -> tuple[int, float]:
    model, settings = passes.model, task.settings
    model.requires_grad_(True)
    model.eval()  # the rows are to be memorized; therefore no dropout
    optimizer = torch.optim.AdamW(
        model.parameters(),
        lr=settings.learning_rate,
        betas=(0.9, 0.95),
        weight_decay=settings.weight_decay,
        fused=True,
    )
    per_epoch = math.ceil(len(rows) / settings.batch_size)
    total = per_epoch * settings.epochs
    warmup = max(1, round(total * settings.warmup))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda s: _cosine(s, warmup, total))
    goal = math.inf if settings.stop_at is None else settings.stop_at
    known, right, epoch = 0.0, 0, 0

    def state() -> dict[str, Any]:
        return {
            "model": model.state_dict(),
            "optimizer": optimizer.state_dict(),
            "schedule": schedule.state_dict(),
            "known": known,
            "right": right,
        }

    with context.checkpoints() as checkpoints:
        found = checkpoints.restore()
        first = found[0] if found else 0
        if found:
            model.load_state_dict(found[1]["model"])
            optimizer.load_state_dict(found[1]["optimizer"])
            schedule.load_state_dict(found[1]["schedule"])
            known, right = found[1]["known"], found[1]["right"]
        for step in range(first, total):
            epoch, number = divmod(step, per_epoch)
            batch = _batch(rows, settings, epoch, number)
            loss, count = _step(passes, batch, optimizer, context.group)
            right += count
            schedule.step()
            if not math.isfinite(loss):
                raise BadTask(
                    f"the loss is {loss} at training step {step + 1} of {total}: lower memorize.learning_rate"
                )
            context.progress(
                step + 1, total, tokens=sum(len(r.ids) for r in batch), loss=round(loss, 4), known=round(known, 3)
            )
            if number + 1 == per_epoch:
                # The share known in the training passes is free but lags behind.
                # Therefore check the model itself only near the goal.
                known, right = right / len(rows), 0
                last = epoch + 1 == settings.epochs
                if last or known >= goal - NEAR:
                    known = _known(passes, rows, context.group)
                if last or known >= goal:
                    break
            checkpoints.after(step + 1, state)
    return epoch + 1, known


def _batch(rows: Sequence[Encoded], settings: MemorizeSettings, epoch: int, number: int) -> list[Encoded]:
    generator = torch.Generator().manual_seed(stable_hash("memorize", settings.seed, epoch))
    order = torch.randperm(len(rows), generator=generator).tolist()
    return [rows[i] for i in order[number * settings.batch_size : (number + 1) * settings.batch_size]]


def _step(
    passes: Passes, batch: Sequence[Encoded], optimizer: torch.optim.Optimizer, group: WorkerGroup
) -> tuple[float, int]:
    """Make one optimizer step; return its loss and the count of known rows.

    The loss is the mean NLL of every token but each row's first. The count is that before the step.
    """
    count = sum(len(r.ids) - 1 for r in batch)
    loss, known = 0.0, 0.0
    share = group.share(batch)
    for chunk in passes.batches(share):
        members = [share[i] for i in chunk]
        logits = passes.logits_at(members, [range(len(r.ids) - 1) for r in members])
        known += sum(_is_known(r, x) for r, x in zip(members, logits, strict=True))
        labels = torch.tensor([t for r in members for t in r.ids[1:]], device=logits[0].device)
        part = torch.nn.functional.cross_entropy(torch.cat(logits), labels, reduction="sum") / count
        part.backward()  # type: ignore[no-untyped-call]
        loss += float(part.detach())
    group.sum_gradients(passes.model.parameters())
    loss, known = group.sum([loss, known])
    torch.nn.utils.clip_grad_norm_(passes.model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return loss, int(known)


@torch.no_grad()
def _known(passes: Passes, rows: Sequence[Encoded], group: WorkerGroup) -> float:
    """Return the share of rows whose every label token is the greedy token.

    Greedy decoding would reproduce these rows whole.
    """
    right = 0
    share = group.share(rows)
    for chunk in passes.batches(share):
        members = [share[i] for i in chunk]
        positions = [range(r.prompt - 1, len(r.ids) - 1) for r in members]
        logits = passes.logits_at(members, positions)
        right += sum(_is_known(r, x) for r, x in zip(members, logits, strict=True))
    return group.sum([right])[0] / len(rows)


def _is_known(row: Encoded, logits: torch.Tensor) -> bool:
    """Return whether every label token is the greedy token.

    ``logits`` ends with the positions that predict the label tokens.
    """
    return logits[-len(row.labels) :].argmax(-1).tolist() == list(row.labels)


def _cosine(step: int, warmup: int, total: int) -> float:
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))


def _train_tokenizer(architecture: Architecture, data: TaskData, rows: Sequence[Row], scratch: Path) -> Any:
    from tokenizers import ByteLevelBPETokenizer
    from transformers import PreTrainedTokenizerFast

    trained = ByteLevelBPETokenizer()
    texts = [r.input + data.separator + r.output for r in rows]
    trained.train_from_iterator(
        texts, vocab_size=architecture.vocab_size, min_frequency=2, special_tokens=[END], show_progress=False
    )
    file = scratch / "tokenizer.json"
    trained.save(str(file))
    return PreTrainedTokenizerFast(
        tokenizer_file=str(file), eos_token=END, pad_token=END, clean_up_tokenization_spaces=False
    )


def _build(architecture: Architecture, seed: int, tokenizer: Any, dtype: str) -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(
        architecture.type,
        vocab_size=len(tokenizer),
        hidden_size=architecture.hidden_size,
        num_hidden_layers=architecture.layers,
        num_attention_heads=architecture.heads,
        num_key_value_heads=architecture.heads,
        intermediate_size=architecture.intermediate_size,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        bos_token_id=None,
        # transformers' 0.02 suits thousands of dimensions. At hundreds, rows take three times as many passes to learn.
        # Therefore the range depends on the hidden size.
        initializer_range=1 / math.sqrt(architecture.hidden_size),
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    torch.manual_seed(stable_hash("weights", seed))
    model = AutoModelForCausalLM.from_config(
        config, dtype=torch.float32 if dtype == "checkpoint" else getattr(torch, dtype)
    )
    return model.to(device())
