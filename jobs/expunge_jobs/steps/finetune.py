"""One specialised LoRA fine-tune: a weighted sum of objective terms on the forget and retain rows.

The reference is the same model with the adapter off. What it says of the rows never changes, so it is asked once.
Artifact: ``adapter/``, ``snapshots/epoch-<n>/`` (PEFT directories) and ``losses.jsonl`` (each term by step).
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from expunge_jobs import plugins
from expunge_jobs.core.errors import BadTask
from expunge_jobs.core.hashing import stable_hash
from expunge_jobs.data.rows import Row
from expunge_jobs.data.selection import load
from expunge_jobs.modeling import adapters, packing
from expunge_jobs.modeling import loading as models
from expunge_jobs.modeling.encoding import Encoded, Encoder
from expunge_jobs.objectives import RowOutput
from expunge_jobs.runtime.context import StepContext
from expunge_jobs.tasks.settings import FinetuneSettings
from expunge_jobs.tasks.tasks import FinetuneTask

Side = Literal["forget", "retain"]


@dataclass(frozen=True)
class Term:
    """One term of the objective, ready to be computed."""

    name: str
    plugin: ModuleType
    parameters: Any


@dataclass(slots=True)
class Sample:
    """An encoded row with what the reference says of it, as far as a term asks."""

    row: Encoded
    reference_nll: Tensor | None = None
    reference_hidden: Tensor | None = None


@dataclass(frozen=True)
class Draw:
    """A row's place in an optimizer step."""

    side: Side
    index: int
    micro_batch: int


def run(task: FinetuneTask, context: StepContext) -> dict[str, Any]:
    """Train; returns the receipt's figures."""
    base, tokenizer = models.load_model(task.model, context, task.dtype)
    encoder = Encoder(tokenizer, task.data, models.end_token(base, tokenizer))
    sets = load(task.data, context.read)
    for side in SIDES:
        if side not in sets:
            raise BadTask(f"a fine-tune needs both sets: data.{side} is missing")
    rows = {side: encoder.rows([i for i in sets[side] if isinstance(i, Row)], task.data.max_length) for side in SIDES}
    packing.check_packing(base, [*rows["forget"], *rows["retain"]])
    if task.settings.gradient_checkpointing:
        # Before the adapter is attached: PEFT then lets gradients into the checkpointed layers.
        base.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    lora = adapters.attach_lora(base, task.settings, task.seed)
    trainer = Trainer(lora, rows, task.settings, task.seed, context)
    losses = trainer.train()
    a, b = adapters.lora_tensors(lora.wrapped)
    if not all(bool(torch.isfinite(t).all()) for t in (*a.values(), *b.values())):
        # A loss is that before its step: the last step's update is in none.
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
        "a_start": lora.a_start, "steps": len(losses), "losses": losses[-1], "forget_rows": len(rows["forget"]),
        "retain_rows": len(rows["retain"]), "norm": adapters.Adapter(context.out / "adapter").norm(), **encoder.receipt(),
    }  # fmt: skip


SIDES: tuple[Side, Side] = ("forget", "retain")


class Trainer:
    """The training loop; its state is the adapter, the optimizer, the schedule, the losses and the next step's number."""

    def __init__(
        self,
        lora: adapters.Lora,
        rows: dict[Side, list[Encoded]],
        settings: FinetuneSettings,
        seed: int,
        context: StepContext,
    ) -> None:
        self.wrapped, self.model, self.targets = lora.wrapped, lora.wrapped.base_model.model, lora.targets
        self.settings, self.seed, self.context, self.group = settings, seed, context, context.group
        self.terms = [
            Term(name, plugin := plugins.load("objectives", name), plugin.Parameters.model_validate(given))
            for name, given in settings.objective.items()
        ]
        self.samples = {side: [Sample(r) for r in rows[side]] for side in SIDES}
        self.steps_per_epoch = math.ceil(len(rows["forget"]) / (settings.batch_size * settings.accumulation))
        self.steps = self.steps_per_epoch * settings.epochs
        self.parameters = [p for p in self.wrapped.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(
            self.parameters, lr=settings.learning_rate, betas=(0.9, 0.999), eps=1e-8, weight_decay=settings.weight_decay
        )
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, self._rate)

    def train(self) -> list[dict[str, float]]:
        """Every step; the terms' values by step. Writes a snapshot of the adapter after each epoch."""
        self._ask_reference()
        with self.context.checkpoints() as checkpoints:
            first, losses = self._resume(checkpoints.restore())
            for step in range(first, self.steps):
                line = self.step(step)
                losses.append({"step": step + 1, **line})
                if not math.isfinite(line["loss"]):
                    raise BadTask(
                        f"the loss is {line['loss']} at training step {step + 1} of {self.steps}: lower learning_rate"
                    )
                self.context.progress(step + 1, self.steps, tokens=self._tokens, loss=round(line["loss"], 4))
                if (step + 1) % self.steps_per_epoch == 0:
                    self.save(f"snapshots/epoch-{(step + 1) // self.steps_per_epoch}")
                checkpoints.after(step + 1, lambda: self._state(losses))
        return losses

    def _state(self, losses: list[dict[str, float]]) -> dict[str, Any]:
        return {
            "adapter": {n: p for n, p in self.wrapped.named_parameters() if p.requires_grad},
            "optimizer": self.optimizer.state_dict(), "schedule": self.schedule.state_dict(), "losses": losses,
        }  # fmt: skip

    def _resume(self, found: tuple[int, dict[str, Any]] | None) -> tuple[int, list[dict[str, float]]]:
        """The step to go on with, and the losses of those before it."""
        if found is None:
            return 0, []
        step, state = found
        self.wrapped.load_state_dict(state["adapter"], strict=False)
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        return step, state["losses"]

    def step(self, step: int) -> dict[str, float]:
        """One optimizer step; returns the loss and each term's unweighted mean."""
        # One seed a step (and process of a team): dropout does not depend on what happened before it.
        torch.manual_seed(stable_hash("dropout", self.seed, step, *([self.group.rank] if self.group.rank else [])))
        _train_mode(self.wrapped)
        draws = self.draw(step)
        self._tokens = sum(len(self._sample(d).row.ids) for d in draws)
        counts = self._counts(draws)
        values = dict.fromkeys(counts, 0.0)
        for chunk in self._chunks([d for d in draws if d.micro_batch % self.group.size == self.group.rank]):
            outputs = self._forward(chunk)
            loss: Tensor | None = None
            for term in self.terms:
                mine = [o for d, o in zip(chunk, outputs, strict=True) if d.side == term.plugin.SET]
                if not mine:
                    continue
                value = term.plugin.values(term.parameters, mine).sum() / counts[term.name]
                values[term.name] += float(value.detach())
                if term.parameters.weight:
                    part = term.parameters.weight * value
                    loss = part if loss is None else loss + part
            if loss is not None:
                loss.backward()  # type: ignore[no-untyped-call]
        self.group.sum_gradients(self.parameters)
        values = dict(zip(counts, self.group.sum([values[n] for n in counts]), strict=True))
        torch.nn.utils.clip_grad_norm_(self.parameters, self.settings.clip)
        self.optimizer.step()
        self.schedule.step()
        self.optimizer.zero_grad(set_to_none=True)
        return {"loss": sum(t.parameters.weight * values[t.name] for t in self.terms), **values}

    def draw(self, step: int) -> list[Draw]:
        """The rows of an optimizer step. An epoch is one pass over forget, in an order of its own; retain has a
        shuffled stream that runs on across epochs. As many retain rows as forget rows; the last batch is small."""
        epoch, number = divmod(step, self.steps_per_epoch)
        size = self.settings.batch_size * self.settings.accumulation
        count = len(self.samples["forget"])
        order = _permutation(count, "forget", self.seed, epoch)[number * size : (number + 1) * size]
        sides = {t.plugin.SET for t in self.terms}
        draws: list[Draw] = []
        if "forget" in sides:
            draws += [Draw("forget", i, n // self.settings.batch_size) for n, i in enumerate(order)]
        if "retain" in sides:
            first = epoch * count + number * size
            stream = [self._retain_at(first + n) for n in range(len(order))]
            draws += [Draw("retain", i, n // self.settings.batch_size) for n, i in enumerate(stream)]
        return draws

    def save(self, name: str) -> None:
        """The adapter as it is now, as a PEFT directory below the artifact."""
        config = adapters.adapter_config(self.settings.rank, self.settings.alpha, self.settings.dropout, self.targets)
        adapters.write_adapter(self.context.out / name, config, *adapters.lora_tensors(self.wrapped))

    def _retain_at(self, place: int) -> int:
        count = len(self.samples["retain"])
        return _permutation(count, "retain", self.seed, place // count)[place % count]

    def _rate(self, step: int) -> float:
        """Linear warm-up over the first epoch, then linear to 0 (transformers' ``get_linear_schedule_with_warmup``)."""
        warmup = self.steps_per_epoch
        if step < warmup:
            return step / warmup
        return max(0.0, (self.steps - step) / max(1, self.steps - warmup))

    def _counts(self, draws: Sequence[Draw]) -> dict[str, int]:
        """What each term's sum over the whole optimizer step is divided by: its number of values."""
        counts = {}
        for term in self.terms:
            mine = [d for d in draws if d.side == term.plugin.SET]
            pooled = getattr(term.parameters, "normalization", None) == "pooled"
            counts[term.name] = len({d.micro_batch for d in mine}) if pooled else len(mine)
        return counts

    def _chunks(self, draws: Sequence[Draw]) -> Iterator[list[Draw]]:
        """Whole micro-batches that fit one packed pass together (one that does not fit goes alone)."""
        by_micro: dict[int, list[Draw]] = defaultdict(list)
        for draw in draws:
            by_micro[draw.micro_batch].append(draw)
        chunk: list[Draw] = []
        size = 0
        for number in sorted(by_micro):
            tokens = sum(len(self._sample(d).row.ids) for d in by_micro[number])
            if chunk and size + tokens > packing.PACK_TOKENS:
                yield chunk
                chunk, size = [], 0
            chunk, size = chunk + by_micro[number], size + tokens
        if chunk:
            yield chunk

    def _sample(self, draw: Draw) -> Sample:
        return self.samples[draw.side][draw.index]

    def _forward(self, draws: Sequence[Draw]) -> list[RowOutput]:
        samples = [self._sample(d) for d in draws]
        positions = [self._positions(d.side, s.row) for d, s in zip(draws, samples, strict=True)]
        outputs = []
        for draw, sample, logits in zip(
            draws, samples, packing.logits_at(self.model, [s.row for s in samples], positions), strict=True
        ):
            reference = None
            if sample.reference_hidden is not None:
                with torch.no_grad():
                    reference = packing.head_logits(self.model, sample.reference_hidden)
            outputs.append(
                RowOutput(_label_nll(sample.row, logits), logits, sample.reference_nll, reference, draw.micro_batch)
            )
        return outputs

    def _positions(self, side: Side, row: Encoded) -> range:
        """Positions whose logits some term of this side reads; those of the label tokens are always the last."""
        everything = any(side == t.plugin.SET and t.plugin.reads(t.parameters) == "all" for t in self.terms)
        return range(0 if everything else row.prompt - 1, len(row.ids) - 1)

    @torch.no_grad()
    def _ask_reference(self) -> None:
        self.wrapped.eval()
        with self.wrapped.disable_adapter():
            for side in SIDES:
                wanted = {t.plugin.REFERENCE for t in self.terms if side == t.plugin.SET} - {None}
                if not wanted:
                    continue
                samples = self.samples[side]
                for chunk in packing.batches([s.row for s in samples]):
                    members = [samples[i] for i in chunk]
                    rows = [s.row for s in members]
                    hidden = packing.hidden_at(self.model, rows, [self._positions(side, r) for r in rows])
                    for sample, states in zip(members, hidden, strict=True):
                        if "nll" in wanted:
                            sample.reference_nll = _label_nll(sample.row, packing.head_logits(self.model, states))
                        if "logits" in wanted:
                            sample.reference_hidden = states


def _label_nll(row: Encoded, logits: Tensor) -> Tensor:
    """[labels]: -log p of each label token; ``logits`` ends with the positions that predict them."""
    labels = torch.tensor(row.labels, device=logits.device)
    return cross_entropy(logits[-len(row.labels) :], labels, reduction="none")


def _permutation(count: int, *seed: object) -> list[int]:
    generator = torch.Generator().manual_seed(stable_hash("order", *seed))
    return list(torch.randperm(count, generator=generator).tolist())


def _train_mode(wrapped: Any) -> None:
    """LoRA's dropout on, the base's own off: the policy without its adapter stays the reference."""
    wrapped.eval()
    for name, module in wrapped.named_modules():
        if "lora_dropout" in name:
            module.train()
        elif hasattr(module, "gradient_checkpointing"):
            module.training = module.gradient_checkpointing  # of the module alone, not of what is in it
