"""Frozen outputs: results of a kind that change on purpose need a new version, or old artifacts pass for new ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from expunge_jobs.inputs.model_folder import folder_digest
from expunge_jobs.modeling.adapters import Adapter
from expunge_jobs.modeling.loading import load_base
from expunge_jobs.steps import evaluate, finetune, memorize, merge
from expunge_jobs.tasks.references import Input
from expunge_jobs.tasks.settings import Architecture, EvaluateSettings, MemorizeSettings
from expunge_jobs.tasks.tasks import EvaluateTask, FinetuneTask, MemorizeTask, MergeTask, WeightedAdapter

from tests.jobs import tiny_models as tiny

MESSAGE = "results changed: raise the version in KIND_VERSIONS (or the plugin's VERSION) when it is on purpose"


def same(found: dict[str, float], frozen: dict[str, float]) -> None:
    assert found == {k: pytest.approx(v, rel=1e-4, abs=1e-4) for k, v in frozen.items()}, MESSAGE


@pytest.fixture(scope="module")
def plain_folder(tmp_path_factory: pytest.TempPathFactory, words: Any) -> Path:
    """A model whose weights are a formula, so that no generator of random numbers is in them."""
    folder = tmp_path_factory.mktemp("plain")
    made = tiny.model("olmo", vocab=len(words))
    for number, parameter in enumerate(made.parameters()):
        at = torch.arange(parameter.numel(), dtype=torch.float64)
        parameter.data.copy_((torch.sin(at * (number + 1) * 0.7 + number) * 0.25).reshape(parameter.shape))
    made.save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


def specialist(
    folder: Path, model: Path, objective: dict[str, Any], rate: float
) -> tuple[Path, list[dict[str, float]]]:
    work = tiny.work(folder)
    settings = tiny.settings(objective=objective, learning_rate=rate, epochs=2)
    data = tiny.task_data(folder)
    finetune.run(FinetuneTask(model=tiny.model_ref(model), data=data, settings=settings, seed=5), work)
    return work.out / "adapter", [json.loads(x) for x in (work.out / "losses.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def specialists(tmp_path_factory: pytest.TempPathFactory, plain_folder: Path) -> list[tuple[Path, Any]]:
    top = tmp_path_factory.mktemp("specialists")
    return [
        specialist(top / "over", plain_folder, {"npo": 0.4, "kl": 0.4, "nll": 0.2}, 1e-2),
        specialist(top / "under", plain_folder, {"gradient_ascent": 0.1, "nll": 0.9}, 3e-3),
    ]


def test_memorize(tmp_path: Path) -> None:
    work = tiny.work(tmp_path)
    architecture = Architecture(vocab_size=320, hidden_size=16, layers=1, heads=2, intermediate_size=24)
    settings = MemorizeSettings(epochs=4, batch_size=4, learning_rate=1e-2)
    figures = memorize.run(
        MemorizeTask(data=tiny.task_data(tmp_path), settings=settings, architecture=architecture), work
    )
    model, words = load_base(work.out / "model", "checkpoint")
    rows = [tiny.encode(words, r) for r in tiny.FORGET]
    total = 0.0
    for row in rows:
        scores = tiny.alone(model, row.ids).log_softmax(-1)
        total -= sum(float(scores[i - 1, row.ids[i]]) for i in range(row.prompt, len(row.ids)))
    tokens = sum(len(r.ids) for r in rows)
    same({"nll": total, "tokens": tokens, "rows": figures["rows"], "parameters": figures["parameters"]}, MEMORIZE)


def test_finetune(specialists: list[tuple[Path, Any]]) -> None:
    for (folder, lines), frozen in zip(specialists, (OVER, UNDER), strict=True):
        same({**lines[-1], "norm": Adapter(folder).norm()}, frozen)


@pytest.mark.parametrize("method", ["ties", "linear", "magnitude_prune", "dare_ties", "dare_linear"])
def test_merge(specialists: list[tuple[Path, Any]], tmp_path: Path, method: str) -> None:
    work = tiny.work(tmp_path)
    adapters = tuple(
        WeightedAdapter(ref=Input(uri=f"file://{f}", digest=folder_digest(f)), weight=w)
        for (f, _), w in zip(specialists, (1.0, 0.5), strict=True)
    )
    parameters = {} if method == "linear" else {"density": 0.6}
    base = Input(uri="file:///nowhere", digest="x")
    figures = merge.run(MergeTask(base=base, adapters=adapters, method=method, parameters=parameters, seed=3), work)
    same({"norm": figures["norm"]}, {"norm": MERGE[method]})


def test_evaluate(plain_folder: Path, tmp_path: Path) -> None:
    work = tiny.work(tmp_path)
    data = tiny.task_data(tmp_path, {"forget": tiny.FORGET, "retain": tiny.RETAIN, "nonmembers": tiny.NONMEMBERS})
    settings = EvaluateSettings(batch_size=4, max_new_tokens=8)
    evaluate.run(EvaluateTask(model=tiny.model_ref(plain_folder), data=data, settings=settings), work)
    rows = [json.loads(x) for x in (work.out / "rows.jsonl").read_text().splitlines()]
    names = ("output_nll", "output_tokens", "extraction", "document_nll")
    same({n: sum(r.get(n) or 0.0 for r in rows) for n in names}, EVALUATE)


MEMORIZE = {"nll": 166.19736743, "tokens": 58.0, "rows": 18.0, "parameters": 7296.0}
OVER = {"step": 4.0, "loss": 7.46479625, "kl": 0.00434207, "nll": 9.16991329, "npo": 14.07269192, "norm": 0.52021374}
UNDER = {"step": 4.0, "loss": 7.63138137, "gradient_ascent": -7.2866931, "nll": 9.2889452, "norm": 0.20820128}
MERGE = {
    "ties": 0.39364928,
    "linear": 0.82196752,
    "magnitude_prune": 0.7436185,
    "dare_ties": 0.85159864,
    "dare_linear": 1.31408784,
}
EVALUATE = {"output_nll": 747.4960022, "output_tokens": 88.0, "extraction": 0.0, "document_nll": 212.88633156}
