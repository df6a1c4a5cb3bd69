"""The training loop of a fine-tune.

The loop's state is the adapter, the optimizer, the schedule, the losses and the next step's number.
The reference is the same model with the adapter off.
The reference's outputs for the rows never change; therefore they are computed once.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from expunge_jobs.core.errors import BadTask
from expunge_jobs.core.hashing import stable_hash
from expunge_jobs.modeling import adapters
from expunge_jobs.modeling.encoding import Encoded
from expunge_jobs.modeling.packing import Passes, head_logits
from expunge_jobs.objectives import RowOutput, Side
from expunge_jobs.runtime.context import StepContext
from expunge_jobs.tasks.settings import FinetuneSettings
from expunge_jobs.training.sampling import SIDES, Draw, Sampler
from expunge_jobs.training.terms import SideNeeds, Term


@dataclass(slots=True)
class Sample:
    """An encoded row with the reference outputs that some term needs."""

    row: Encoded
    reference_nll: Tensor | None = None
    reference_states: Tensor | None = None
    """[positions, width]: the final hidden states, from which the head computes the logits again."""
    reference_hidden: dict[str, Tensor] = field(default_factory=dict)
    alternative: Sample | None = None

    @property
    def tokens(self) -> int:
        """Return the number of tokens that are read for the row."""
        return len(self.row.ids) + (self.alternative.tokens if self.alternative else 0)


JOINED_TOKENS = 512
"""Largest number of tokens in one pass of several micro-batches.

Accumulation is there to save memory. Therefore only micro-batches so small that they take none go together.
"""


class Trainer:
    """A trainer for the adapter of a model.

    ``alternatives`` are the rows of a set with other answers, if a term gives such answers. ``packed`` tells whether
    the model keeps packed rows apart.
    """

    def __init__(
        self,
        lora: adapters.Lora,
        rows: Mapping[Side, Sequence[Encoded]],
        settings: FinetuneSettings,
        seed: int,
        context: StepContext,
        alternatives: Mapping[Side, Sequence[Encoded]] | None = None,
        *,
        packed: bool = True,
    ) -> None:
        self.wrapped, self.model, self.targets = lora.wrapped, lora.wrapped.base_model.model, lora.targets
        self.passes = Passes(self.model, packed=packed)
        self.settings, self.seed, self.context, self.group = settings, seed, context, context.group
        self.terms = [Term.of(call) for call in settings.objective]
        self.needs = {side: SideNeeds.of(self.terms, side) for side in SIDES}
        self.samples = {side: [Sample(r) for r in rows[side]] for side in SIDES}
        for side, others in (alternatives or {}).items():
            for sample, other in zip(self.samples[side], others, strict=True):
                sample.alternative = Sample(other)
        sides = [s for s in SIDES if self.needs[s].terms]
        sizes = {side: len(rows[side]) for side in SIDES}
        self.sampler = Sampler(sizes, sides, settings.batch_size, settings.accumulation, seed)
        self.steps_per_epoch = self.sampler.steps_per_epoch
        self.steps = self.steps_per_epoch * settings.epochs
        self.parameters = [p for p in self.wrapped.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(
            self.parameters, lr=settings.learning_rate, betas=(0.9, 0.999), eps=1e-8, weight_decay=settings.weight_decay
        )
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, self._rate)

    def train(self) -> list[dict[str, float]]:
        """Run every step and return the terms' values by step.

        The trainer writes a snapshot of the adapter after each epoch.
        """
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

    def step(self, step: int) -> dict[str, float]:
        """Run one optimizer step; return the loss and each term's mean.

        The means are unweighted.
        """
        # Each step and each rank has its own seed; therefore dropout does not depend on earlier steps.
        torch.manual_seed(stable_hash("dropout", self.seed, step, *([self.group.rank] if self.group.rank else [])))
        _train_mode(self.wrapped)
        draws = self.sampler.draw(step)
        self._tokens = sum(self._sample(d).tokens for d in draws)
        counts = {t.name: t.count(draws, [self._sample(d).row for d in draws]) for t in self.terms}
        values = dict.fromkeys(counts, 0.0)
        for chunk in self._chunks([d for d in draws if d.micro_batch % self.group.size == self.group.rank]):
            outputs = self._forward(chunk)
            loss: Tensor | None = None
            for term in self.terms:
                mine = [o for o in outputs if o.side in term.needs.sets]
                if not mine:
                    continue
                value = term.values(mine).sum() / counts[term.name]
                values[term.name] += float(value.detach())
                if term.weight:
                    part = term.weight * value
                    loss = part if loss is None else loss + part
            if loss is not None:
                loss.backward()  # type: ignore[no-untyped-call]
        self.group.sum_gradients(self.parameters)
        values = dict(zip(counts, self.group.sum([values[n] for n in counts]), strict=True))
        torch.nn.utils.clip_grad_norm_(self.parameters, self.settings.clip)
        self.optimizer.step()
        self.schedule.step()
        self.optimizer.zero_grad(set_to_none=True)
        return {"loss": sum(t.weight * values[t.name] for t in self.terms), **values}

    def save(self, name: str) -> None:
        """Save the current adapter as a PEFT directory below the artifact."""
        config = adapters.adapter_config(self.settings.rank, self.settings.alpha, self.settings.dropout, self.targets)
        adapters.write_adapter(self.context.out / name, config, *adapters.lora_tensors(self.wrapped))

    def _state(self, losses: list[dict[str, float]]) -> dict[str, Any]:
        return {
            "adapter": {n: p for n, p in self.wrapped.named_parameters() if p.requires_grad},
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "losses": losses,
        }

    def _resume(self, found: tuple[int, dict[str, Any]] | None) -> tuple[int, list[dict[str, float]]]:
        """Load a checkpoint; return the next step and the earlier losses."""
        if found is None:
            return 0, []
        step, state = found
        self.wrapped.load_state_dict(state["adapter"], strict=False)
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        return step, state["losses"]

    def _rate(self, step: int) -> float:
        """Return the factor of the learning rate at a step.

        The factor rises linearly over the first epoch and then falls linearly to 0
        (transformers' ``get_linear_schedule_with_warmup``).
        """
        warmup = self.steps_per_epoch
        if step < warmup:
            return step / warmup
        return max(0.0, (self.steps - step) / max(1, self.steps - warmup))

    def _chunks(self, draws: Sequence[Draw]) -> Iterator[list[Draw]]:
        """Yield the rows of each forward pass.

        A pass holds one micro-batch, or several small ones. A micro-batch above the limit of a pass is divided, unless
        a term reads micro-batches as a whole.
        """
        by_micro: dict[int, list[Draw]] = defaultdict(list)
        for draw in draws:
            by_micro[draw.micro_batch].append(draw)
        divisible = all(len(t.needs.sets) == 1 and t.needs.averaged_over != "micro_batches" for t in self.terms)
        parts = [p for n in sorted(by_micro) for p in (self._divided(by_micro[n]) if divisible else [by_micro[n]])]
        chunk: list[Draw] = []
        size = 0
        for part in parts:
            tokens = sum(self._sample(d).tokens for d in part)
            if chunk and size + tokens > JOINED_TOKENS:
                yield chunk
                chunk, size = [], 0
            chunk, size = chunk + part, size + tokens
        if chunk:
            yield chunk

    def _divided(self, draws: Sequence[Draw]) -> Iterator[list[Draw]]:
        part: list[Draw] = []
        size = 0
        for draw in draws:
            tokens = self._sample(draw).tokens
            if part and size + tokens > self.passes.limit:
                yield part
                part, size = [], 0
            part, size = [*part, draw], size + tokens
        yield part

    def _sample(self, draw: Draw) -> Sample:
        return self.samples[draw.side][draw.index]

    def _forward(self, draws: Sequence[Draw]) -> list[RowOutput]:
        """Return the outputs of policy and reference for the drawn rows.

        One packed pass covers the rows and their other answers.
        """
        asked = [(d.side, self._sample(d)) for d in draws]
        asked += [(side, s.alternative) for side, s in asked if s.alternative is not None]
        rows = [s.row for _, s in asked]
        positions = [self.needs[side].positions(s.row) for side, s in asked]
        modules = tuple(dict.fromkeys(h for side in SIDES for h in self.needs[side].hidden))
        with self.passes.captured(modules, rows, positions) as hidden:
            logits = self.passes.logits_at(rows, positions)
        outputs = []
        for number, ((side, sample), mine) in enumerate(zip(asked, logits, strict=True)):
            reference = None
            if sample.reference_states is not None:
                with torch.no_grad():
                    reference = head_logits(self.model, sample.reference_states)
            outputs.append(
                RowOutput(
                    nll=_label_nll(sample.row, mine),
                    logits=mine,
                    reference_nll=sample.reference_nll,
                    reference_logits=reference,
                    micro_batch=draws[number].micro_batch if number < len(draws) else 0,
                    side=side,
                    hidden={name: states[number] for name, states in hidden.items()},
                    reference_hidden=sample.reference_hidden,
                )
            )
        others = iter(outputs[len(draws) :])
        for draw, output in zip(draws, outputs, strict=False):
            if self._sample(draw).alternative is not None:
                output.alternative = next(others)
        return outputs[: len(draws)]

    @torch.no_grad()
    def _ask_reference(self) -> None:
        """Ask the reference about the rows that this process will draw.

        A resumed run asks about the same rows in the same passes; therefore it gets the same bits.
        """
        drawn = self.sampler.drawn(self.steps, self.group.rank, self.group.size)
        asked: dict[Side, list[Sample]] = {}
        for side in SIDES:
            if self.needs[side].reference:
                mine = [self.samples[side][i] for i in drawn[side]]
                asked[side] = [x for s in mine for x in (s, s.alternative) if x is not None]
        done, total = 0, sum(map(len, asked.values()))
        self.wrapped.eval()
        with self.wrapped.disable_adapter():
            for side, samples in asked.items():
                needs = self.needs[side]
                for chunk in self.passes.batches([s.row for s in samples]):
                    members = [samples[i] for i in chunk]
                    rows = [s.row for s in members]
                    positions = [needs.positions(r) for r in rows]
                    modules = needs.hidden if "hidden" in needs.reference else ()
                    with self.passes.captured(modules, rows, positions) as hidden:
                        states = self.passes.hidden_at(rows, positions)
                    for number, sample in enumerate(members):
                        if "nll" in needs.reference:
                            sample.reference_nll = _label_nll(sample.row, head_logits(self.model, states[number]))
                        if "logits" in needs.reference:
                            sample.reference_states = states[number]
                        sample.reference_hidden = {name: found[number] for name, found in hidden.items()}
                    done += len(members)
                    self.context.progress(done, total, phase="reference")


def _label_nll(row: Encoded, logits: Tensor) -> Tensor:
    """Return -log p of each label token, as a tensor [labels].

    ``logits`` ends with the positions that predict the label tokens.
    """
    labels = torch.tensor(row.labels, device=logits.device)
    return cross_entropy(logits[-len(row.labels) :], labels, reduction="none")


def _train_mode(wrapped: Any) -> None:
    """Turn LoRA's dropout on and the base's own dropout off.

    The policy without its adapter therefore stays the reference.
    """
    wrapped.eval()
    for name, module in wrapped.named_modules():
        if "lora_dropout" in name:
            module.train()
        elif hasattr(module, "gradient_checkpointing"):
            module.training = module.gradient_checkpointing  # of the module alone, not of its children
