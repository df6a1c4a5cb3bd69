"""Fine-tunes: where they start, what they read, what they leave, and when they give up."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from expunge_jobs.core.errors import BadTask
from expunge_jobs.inputs.model_folder import folder_digest
from expunge_jobs.modeling.adapters import Adapter, attach_lora
from expunge_jobs.runtime.context import StepContext
from expunge_jobs.steps import finetune
from expunge_jobs.tasks.settings import FinetuneSettings
from expunge_jobs.tasks.tasks import FinetuneTask
from expunge_jobs.training.trainer import Trainer

from tests.jobs import tiny_models as tiny

IDS = tuple(range(5, 25))


def task(base_folder: Path, folder: Path, seed: int = 5, **fields: Any) -> FinetuneTask:
    data = tiny.task_data(folder)
    return FinetuneTask(model=tiny.model_ref(base_folder), data=data, settings=tiny.settings(**fields), seed=seed)


def files(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture
def made(base_folder: Path, work: StepContext, tmp_path: Path) -> dict[str, Any]:
    return finetune.run(task(base_folder, tmp_path), work)


def test_what_a_fine_tune_leaves(made: dict[str, Any], work: StepContext) -> None:
    names = ["adapter", *(f"snapshots/epoch-{n}" for n in (1, 2, 3))]
    adapters = {n: Adapter(work.out / n) for n in names}
    assert set(files(work.out)) == {
        "losses.jsonl",
        *(f"{n}/{f}" for n in names for f in ("adapter_config.json", "adapter_model.safetensors")),
    }
    assert all(bool(t.any()) for t in adapters["adapter"].B.values()), "B is not zero"
    assert files(work.out / "adapter") == files(work.out / "snapshots/epoch-3")
    assert files(work.out / "snapshots/epoch-1") != files(work.out / "snapshots/epoch-2")
    lines = [json.loads(x) for x in (work.out / "losses.jsonl").read_text().splitlines()]
    assert [x["step"] for x in lines] == list(range(1, 7)), "7 rows at 4 a step are 2 steps, 3 epochs"
    assert all(set(x) == {"step", "loss", "npo", "nll", "kl"} for x in lines)
    for x in lines:
        assert x["loss"] == pytest.approx(0.4 * x["npo"] + 0.3 * x["nll"] + 0.3 * x["kl"], rel=1e-5)
    assert (made["steps"], made["losses"]) == (6, lines[-1])
    assert (made["forget_rows"], made["retain_rows"]) == (7, 11)
    assert made["norm"] == pytest.approx(adapters["adapter"].norm())
    assert (made["cut_inputs"], made["cut_outputs"]) == (0, 0)


def test_the_adapter_is_pefts_and_forgets(made: dict[str, Any], work: StepContext, base: Any, words: Any) -> None:
    from peft import PeftModel

    rows = [tiny.encode(words, r) for r in tiny.FORGET]

    def nll(model: Any) -> float:
        scores = [tiny.alone(model, r.ids).log_softmax(-1) for r in rows]
        return -sum(
            float(s[i - 1, r.ids[i]]) for s, r in zip(scores, rows, strict=True) for i in range(r.prompt, len(r.ids))
        )

    before = nll(base)
    loaded = PeftModel.from_pretrained(base, work.out / "adapter").eval()
    assert nll(loaded) > before + 5
    with loaded.disable_adapter():
        assert nll(loaded) == pytest.approx(before, rel=1e-6)


def test_two_specialists_share_their_start_alone(base_folder: Path, tmp_path: Path) -> None:
    figures = []
    for n, fields in enumerate(({}, {"objective": {"npo": 0.3, "nll": 0.4}, "learning_rate": 3e-3, "batch_size": 1})):
        work = tiny.work(tmp_path / str(n))
        figures.append(finetune.run(task(base_folder, tmp_path / str(n), **fields), work))
    work = tiny.work(tmp_path / "other")
    figures.append(finetune.run(task(base_folder, tmp_path / "other", seed=6, epochs=1, accumulation=1), work))
    assert figures[0]["a_start"] == figures[1]["a_start"] != figures[2]["a_start"]
    assert files(tmp_path / "0/out/adapter") != files(tmp_path / "1/out/adapter")


def test_the_same_seed_gives_the_same_bits(base_folder: Path, tmp_path: Path) -> None:
    made = []
    for n, seed in enumerate((5, 5, 6)):
        work = tiny.work(tmp_path / str(n))
        torch.manual_seed(n)
        finetune.run(task(base_folder, tmp_path / str(n), seed=seed, dropout=0.1), work)
        made.append(files(work.out))
    assert made[0] == made[1]
    assert made[0]["adapter/adapter_model.safetensors"] != made[2]["adapter/adapter_model.safetensors"]


def test_dropout_is_lora_s_own_and_is_on(base_folder: Path, tmp_path: Path) -> None:
    losses = []
    for n, dropout in enumerate((0.0, 0.3)):
        work = tiny.work(tmp_path / str(n))
        finetune.run(task(base_folder, tmp_path / str(n), dropout=dropout), work)
        losses.append([json.loads(x)["loss"] for x in (work.out / "losses.jsonl").read_text().splitlines()])
    # B is zero in the first two steps (the first has rate 0), so what goes into A does not matter yet.
    assert losses[0][:2] == pytest.approx(losses[1][:2], rel=1e-5)
    assert abs(losses[0][3] - losses[1][3]) > 1e-5


@pytest.mark.filterwarnings("ignore:.gradient_checkpointing_enable. is deprecated:FutureWarning")
def test_gradient_checkpointing_changes_no_loss(base_folder: Path, tmp_path: Path) -> None:
    losses, adapters = [], []
    for n, on in enumerate((False, True)):
        work = tiny.work(tmp_path / str(n))
        finetune.run(task(base_folder, tmp_path / str(n), gradient_checkpointing=on, dropout=0.1), work)
        losses.append([json.loads(x)["loss"] for x in (work.out / "losses.jsonl").read_text().splitlines()])
        adapters.append(Adapter(work.out / "adapter"))
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    for name, b in adapters[0].B.items():
        torch.testing.assert_close(b, adapters[1].B[name], rtol=1e-3, atol=1e-4)


@pytest.mark.filterwarnings("ignore:.gradient_checkpointing_enable. is deprecated:FutureWarning")
def test_gradient_checkpointing_is_on_when_asked(base: Any, words: Any, work: StepContext) -> None:
    """A layer's forward runs twice: once more in the backward pass."""
    calls = []
    base.model.layers[0].mlp.register_forward_pre_hook(lambda *_: calls.append(torch.is_grad_enabled()))
    base.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    one = trainer(base, words, work, objective={"nll": 1.0}, batch_size=4, accumulation=1)
    one.train()
    assert len(calls) == 2 * one.steps


def trainer(base: Any, words: Any, work: StepContext, seed: int = 5, **fields: Any) -> Trainer:
    settings: FinetuneSettings = tiny.settings(**fields)
    rows: Any = {
        "forget": [tiny.encode(words, r) for r in tiny.FORGET],
        "retain": [tiny.encode(words, r) for r in tiny.RETAIN],
    }
    return Trainer(attach_lora(base, settings, seed), rows, settings, seed, work)


def test_a_nan_loss_names_its_step(base_folder: Path, tmp_path: Path, work: StepContext) -> None:
    with pytest.raises(BadTask, match=r"the loss is (nan|inf|-inf) at training step 3 of 6: lower learning_rate"):
        finetune.run(task(base_folder, tmp_path, learning_rate=1e30), work)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_an_adapter_that_the_last_step_spoils_is_no_result(
    base_folder: Path, tmp_path: Path, work: StepContext, monkeypatch: pytest.MonkeyPatch, value: float
) -> None:
    """The loss of a step is that before its update: after the last one there is none to see it."""
    step = Trainer.step

    def spoil(self: Trainer, number: int) -> dict[str, float]:
        line = step(self, number)
        if number == self.steps - 1:
            self.parameters[3].data[0, 0] = value
        return line

    monkeypatch.setattr(Trainer, "step", spoil)
    with pytest.raises(BadTask, match="not finite after training step 6 of 6"):
        finetune.run(task(base_folder, tmp_path), work)
    assert not (work.out / "adapter").exists()


def test_a_b_that_stays_zero_is_no_result(base_folder: Path, tmp_path: Path, work: StepContext) -> None:
    """One step, and the warm-up starts at 0."""
    with pytest.raises(BadTask, match="every B matrix is still zero"):
        finetune.run(task(base_folder, tmp_path, epochs=1, accumulation=4), work)


@pytest.mark.parametrize("side", ["forget", "retain"])
def test_a_missing_set_is_named(base_folder: Path, tmp_path: Path, work: StepContext, side: str) -> None:
    made = task(base_folder, tmp_path)
    left = {k: v for k, v in made.data.sets.items() if k != side}
    data = made.data.model_copy(update={"sets": left})
    with pytest.raises(BadTask, match=f"data.{side} is missing"):
        finetune.run(made.model_copy(update={"data": data}), work)


def test_a_start_model_with_an_adapter_is_the_reference(
    base_folder: Path, made: dict[str, Any], work: StepContext, tmp_path: Path
) -> None:
    """A second round of forgetting: the first adapter is folded in, and forgetting starts from there."""
    from expunge_jobs.modeling.loading import load_model
    from expunge_jobs.tasks.references import AdapterRef, Input, ModelRef

    folder = work.out / "adapter"
    adapter = Input(uri=f"file://{folder}", digest=folder_digest(folder))
    first = tiny.model_ref(base_folder)
    again = ModelRef(base=first.base, adapters=(AdapterRef(ref=adapter),))
    second = tiny.work(tmp_path / "second")
    finetune.run(task(base_folder, tmp_path).model_copy(update={"model": again}), second)
    loss = json.loads((second.out / "losses.jsonl").read_text().splitlines()[0])
    assert loss["npo"] == pytest.approx(20 * math.log(2), rel=1e-5) and loss["kl"] == pytest.approx(0, abs=1e-5)
    folded, plain = load_model(again, work, "float32")[0], load_model(first, work, "float32")[0]
    assert float((tiny.alone(folded, IDS) - tiny.alone(plain, IDS)).abs().max()) > 0.1
    assert copy.copy(made)["norm"] > 0
