"""A fine-tune of a model as large as published ones: our loop against a plain one of transformers and PEFT, as
published code has it (right-padded micro-batches, the reference asked again in every step). Weights are random:
figures are of time alone.

    python benchmarks/finetune.py [small | 1b | 7b]

Prints seconds an optimizer step and peak memory of both, what deterministic algorithms cost and what a checkpoint
costs; and trains once more, killed in the middle and gone on with: the adapter must be the same to the bit.
"""

from __future__ import annotations

import hashlib
import os
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from expunge_controller.experiment.loading import load_experiment
from expunge_controller.planning.resolve import resolve
from expunge_jobs.artifacts.attempts import Attempt
from expunge_jobs.data.rows import Row
from expunge_jobs.data.selection import load
from expunge_jobs.inputs.pinning import read_checked
from expunge_jobs.modeling import adapters
from expunge_jobs.modeling.encoding import Encoded, Encoder
from expunge_jobs.objectives import RowOutput
from expunge_jobs.runtime import distributed
from expunge_jobs.runtime.checkpoints import Checkpoints
from expunge_jobs.runtime.context import CHECKPOINT_SECONDS, StepContext
from expunge_jobs.step_runner import prepare_torch
from expunge_jobs.steps import memorize
from expunge_jobs.store import open_store
from expunge_jobs.tasks.references import ArtifactRef
from expunge_jobs.tasks.settings import Architecture
from expunge_jobs.tasks.tasks import FinetuneTask
from expunge_jobs.training import sampling
from expunge_jobs.training import trainer as trainer_module
from torch import Tensor
from torch.nn.functional import cross_entropy, pad

QUICKSTART = Path(__file__).parents[1] / "examples" / "quickstart.yaml"
SIZES = {  # OLMo's, of hidden, layers, heads and intermediate size, and how many rows of the vocabulary
    "small": (256, 4, 4, 1024, 4096),
    "1b": (2048, 16, 16, 8192, 50304),
    "7b": (4096, 32, 32, 11008, 50304),
}
ALWAYS, NEVER = 0.0, 1e9


class Killed(BaseException):
    """In place of SIGKILL."""


@dataclass
class Ran:
    """A training as it was seen from outside."""

    digest: str = ""
    loss: float = 0.0
    before: float = 0.0
    memory: float = 0.0
    ends: list[float] = field(default_factory=list)
    checkpoints: int = 0

    @property
    def all(self) -> float:
        """Seconds from the end of the first step to the end of the last."""
        return self.ends[-1] - self.ends[0]

    @property
    def step(self) -> float:
        """Seconds of a step."""
        return statistics.median(b - a for a, b in zip(self.ends, self.ends[1:], strict=False))


class Lab:
    """One model on the device, and fine-tunes of it."""

    def __init__(self, size: str, folder: Path) -> None:
        hidden, layers, heads, intermediate, vocabulary = SIZES[size]
        experiment = load_experiment(QUICKSTART, ["specialists.over.epochs=1", "specialists.over.preset=over_code"])
        task = next(s.task for s in resolve(experiment).plan.steps if s.kind == "finetune")
        assert isinstance(task, FinetuneTask)
        self.task, self.folder = task, folder
        sets = load(task.data, lambda ref: read_checked(ref, lambda: False))
        rows = {side: [i for i in sets[side] if isinstance(i, Row)] for side in sampling.SIDES}
        shape = Architecture(
            vocab_size=4096, hidden_size=hidden, layers=layers, heads=heads, intermediate_size=intermediate
        )
        words = memorize._train_tokenizer(shape, task.data, [*rows["forget"], *rows["retain"]], folder)
        self.base = self._build(shape, vocabulary, words.eos_token_id)
        encoder = Encoder(words, task.data, words.eos_token_id)
        self.rows = {side: encoder.rows(rows[side], task.data.max_length) for side in sampling.SIDES}

    def _build(self, shape: Architecture, vocabulary: int, end: int) -> Any:
        from transformers import AutoConfig, AutoModelForCausalLM

        config = AutoConfig.for_model(
            "olmo",
            vocab_size=vocabulary,
            hidden_size=shape.hidden_size,
            num_hidden_layers=shape.layers,
            num_attention_heads=shape.heads,
            num_key_value_heads=shape.heads,
            intermediate_size=shape.intermediate_size,
            tie_word_embeddings=False,
            bos_token_id=None,
            eos_token_id=end,
            pad_token_id=end,
        )
        torch.manual_seed(0)
        with torch.device(distributed.device()):
            made = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
        made.requires_grad_(False)
        return made.eval()

    @contextmanager
    def adapter(self) -> Iterator[adapters.Lora]:
        """The base with a fresh adapter, which goes at the end."""
        lora = adapters.attach_lora(self.base, self.task.settings, self.task.seed)
        try:
            yield lora
        finally:
            lora.wrapped.unload()

    def ours(self, store: str, kill_after: int | None = None, seconds: float = NEVER) -> Ran:
        """One attempt of the shipped trainer."""
        ran = Ran()
        opened, ref = open_store(str(self.folder / store)), ArtifactRef(kind=self.task.kind, key=self.task.key())
        with tempfile.TemporaryDirectory(dir=self.folder) as name, self.adapter() as lora:
            out, scratch = Path(name, "out"), Path(name, "scratch")
            out.mkdir()
            scratch.mkdir()
            work = StepContext(opened, out, scratch, 1, Attempt(opened, ref, Path(name).name), seconds)

            def progress(step: int, steps: int, tokens: int = 0, **figures: float) -> None:
                ran.ends.append(time.perf_counter())
                ran.loss = ran.loss or figures["loss"]
                if step == kill_after:
                    raise Killed

            write = Checkpoints._write

            def counted(*words: Any) -> None:
                write(*words)
                ran.checkpoints += 1

            work.progress = progress  # type: ignore[method-assign]
            Checkpoints._write = counted  # type: ignore[method-assign]
            _forget_memory()
            start = time.perf_counter()
            trainer = trainer_module.Trainer(lora, self.rows, self.task.settings, self.task.seed, work)
            try:
                trainer.train()
            except Killed:
                return ran
            finally:
                Checkpoints._write = write  # type: ignore[method-assign]
            ran.before, ran.memory = ran.ends[0] - start, _most_memory()
            trainer.save("adapter")
            ran.digest = hashlib.sha256((out / "adapter" / "adapter_model.safetensors").read_bytes()).hexdigest()
        return ran

    def plain(self, steps: int) -> Ran:
        """The same steps in the usual way."""
        ran = Ran()
        with self.adapter() as lora:
            settings = self.task.settings
            trainer = trainer_module.Trainer(
                lora,
                self.rows,
                settings,
                self.task.seed,
                StepContext(open_store(str(self.folder)), self.folder, self.folder),
            )
            _forget_memory()
            for step in range(steps):
                torch.manual_seed(step)
                trainer_module._train_mode(lora.wrapped)
                total = 0.0
                draws = trainer.sampler.draw(step)
                for number in sorted({d.micro_batch for d in draws}):
                    outputs: dict[str, list[RowOutput]] = {}
                    for side in sampling.SIDES:
                        mine = [self.rows[side][d.index] for d in draws if d.side == side and d.micro_batch == number]
                        outputs[side] = self._padded(lora.wrapped, mine)
                    loss = (
                        sum(t.weight * t.values(outputs[t.needs.sets[0]]).mean() for t in trainer.terms)
                        / settings.accumulation
                    )
                    assert isinstance(loss, Tensor)
                    loss.backward()  # type: ignore[no-untyped-call]
                    total += float(loss.detach())
                torch.nn.utils.clip_grad_norm_(trainer.parameters, settings.clip)
                trainer.optimizer.step()
                trainer.schedule.step()
                trainer.optimizer.zero_grad(set_to_none=True)
                ran.ends.append(time.perf_counter())
                ran.loss = ran.loss or total
            ran.memory = _most_memory()
        return ran

    def _padded(self, wrapped: Any, rows: Sequence[Encoded]) -> list[RowOutput]:
        longest = max(len(r.ids) for r in rows)
        ids = torch.stack([pad(torch.tensor(r.ids), (0, longest - len(r.ids))) for r in rows]).to(distributed.device())
        mask = torch.stack([pad(torch.ones(len(r.ids), dtype=torch.long), (0, longest - len(r.ids))) for r in rows]).to(
            distributed.device()
        )
        with torch.no_grad(), wrapped.disable_adapter():
            reference = wrapped(input_ids=ids, attention_mask=mask).logits.float()
        policy = wrapped(input_ids=ids, attention_mask=mask).logits.float()
        out = []
        for row, mine, theirs in zip(rows, policy, reference, strict=True):
            last = len(row.ids) - 1
            labels = torch.tensor(row.labels, device=mine.device)
            nll = [cross_entropy(x[row.prompt - 1 : last], labels, reduction="none") for x in (mine, theirs)]
            out.append(RowOutput(nll[0], mine[:last], nll[1], theirs[:last], 0))
        return out


def _forget_memory() -> None:
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def _most_memory() -> float:
    """GiB of the GPU; 0 without one."""
    return torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else 0.0


def main() -> None:
    size = sys.argv[1] if len(sys.argv) > 1 else ("1b" if torch.cuda.is_available() else "small")
    warnings.filterwarnings("ignore")
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # as a step has it
    device = prepare_torch(torch.get_num_threads())
    with tempfile.TemporaryDirectory() as name:
        lab = Lab(size, Path(name))
        parameters = sum(p.numel() for p in lab.base.parameters())
        print(
            f"{device}, torch {torch.__version__}: {parameters / 1e9:.2f}e9 parameters in bfloat16, "
            f"{len(lab.rows['forget'])} + {len(lab.rows['retain'])} rows"
        )
        lab.ours("warm", kill_after=3)
        whole = lab.ours("whole")
        steps = len(whole.ends)
        middle = steps // 2
        lab.ours("killed", kill_after=middle, seconds=ALWAYS)
        rest = lab.ours("killed")
        often = lab.ours("often", seconds=ALWAYS)
        plain = lab.plain(min(steps, 20))
        torch.use_deterministic_algorithms(False)
        free = lab.ours("free")
    assert 0 < len(rest.ends) < steps, "the killed one began again from the start"
    print(
        f"a step of ours {whole.step:.3f} s, plain {plain.step:.3f} s: ratio {whole.step / plain.step:.2f}; "
        f"reference and first step {whole.before:.1f} s, once; loss of the first step {whole.loss:.4f} and {plain.loss:.4f}; "
        f"peak memory {whole.memory:.1f} and {plain.memory:.1f} GiB"
    )
    print(f"deterministic algorithms against none: ratio {whole.step / free.step:.3f}")
    print(
        f"killed after step {middle} of {steps}, {len(rest.ends)} made by the second attempt: "
        f"{'the same bits' if rest.digest == whole.digest else 'OTHER BITS'}"
    )
    cost = (often.all - whole.all) / often.checkpoints
    print(
        f"{often.checkpoints} checkpoints beside training, each as soon as the last was written: one costs {cost:.3f} s, "
        f"{cost / CHECKPOINT_SECONDS:.3%} of the default interval of {CHECKPOINT_SECONDS:.0f} s (aim: under 2 %)"
    )
    if rest.digest != whole.digest:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
