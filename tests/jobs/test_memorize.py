"""When memorizing ends: at the share of rows that is asked for, or with the last epoch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from expunge_jobs.steps import memorize
from expunge_jobs.tasks.settings import Architecture, MemorizeSettings
from expunge_jobs.tasks.tasks import MemorizeTask
from safetensors.torch import load_file

from tests.jobs import tiny_models as tiny

EPOCHS = 60


def _run(folder: Path, stop_at: float | None, epochs: int = EPOCHS) -> dict[str, Any]:
    folder.mkdir(exist_ok=True)
    architecture = Architecture(vocab_size=320, hidden_size=32, layers=1, heads=2, intermediate_size=64)
    settings = MemorizeSettings(epochs=epochs, batch_size=2, learning_rate=1e-2, stop_at=stop_at)
    task = MemorizeTask(data=tiny.task_data(folder), settings=settings, architecture=architecture)
    return memorize.run(task, tiny.work(folder))


def test_it_stops_once_every_row_is_known(tmp_path: Path) -> None:
    figures = _run(tmp_path, 1.0)
    assert figures["known"] == 1.0
    assert figures["epochs"] < EPOCHS


def test_a_model_that_saw_less_has_the_same_tokens_and_start(tmp_path: Path) -> None:
    """What a reference is compared with: only what it was trained on differs."""
    architecture = Architecture(vocab_size=320, hidden_size=32, layers=1, heads=2, intermediate_size=64)
    settings = MemorizeSettings(epochs=1, batch_size=2, learning_rate=1e-30)
    sets = {"forget": tiny.FORGET, "retain": [*tiny.RETAIN, tiny.FORGET[0]]}
    whole = tiny.task_data(tmp_path, sets, overlap="drop_from_retain")
    part = whole.model_copy(update={"sets": {"retain": whole.sets["retain"]}})
    made, counts = [], []
    for number, fields in enumerate(({"data": whole}, {"data": whole, "only": ("retain",)}, {"data": part})):
        context = tiny.work(tmp_path / str(number))
        counts.append(
            memorize.run(MemorizeTask(settings=settings, architecture=architecture, **fields), context)["rows"]
        )
        folder = context.out / "model"
        made.append(((folder / "tokenizer.json").read_text(), load_file(folder / "model.safetensors")))
    assert made[0][0] == made[1][0] != made[2][0]
    assert counts == [18, 11, 12], "a row of forget in retain is no row that it may see"
    for name, weight in made[0][1].items():
        assert torch.allclose(weight, made[1][1][name], atol=1e-12), name


def test_a_smaller_share_is_known_sooner(tmp_path: Path) -> None:
    some, all_of_them = _run(tmp_path / "some", 0.3), _run(tmp_path / "all", 1.0)
    assert 0.3 <= some["known"] < 1.0
    assert some["epochs"] < all_of_them["epochs"]


def test_null_trains_every_epoch_though_all_is_known(tmp_path: Path) -> None:
    figures = _run(tmp_path, None)
    assert (figures["known"], figures["epochs"]) == (1.0, EPOCHS)


def test_the_last_epoch_ends_it_though_little_is_known(tmp_path: Path) -> None:
    figures = _run(tmp_path, 1.0, epochs=1)
    assert figures["epochs"] == 1
    assert figures["known"] == pytest.approx(0.0)
