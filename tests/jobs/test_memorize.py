"""When memorizing ends: at the share of rows that is asked for, or with the last epoch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from expunge_jobs.steps import memorize
from expunge_jobs.tasks.settings import Architecture, MemorizeSettings
from expunge_jobs.tasks.tasks import MemorizeTask

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
