"""Models from a directory."""

from __future__ import annotations

from pathlib import Path

import pytest
from expunge_controller.errors import ExperimentError
from expunge_controller.experiment.loading import load_experiment
from expunge_controller.planning.resolve import resolve
from expunge_jobs.core.errors import BadTask
from expunge_jobs.inputs import model_folder, pinning
from expunge_jobs.store import StoreError, open_store
from expunge_jobs.tasks.references import Input

from tests.support.folders import model

QUICKSTART = Path(__file__).parents[2] / "examples" / "quickstart.yaml"


@pytest.mark.parametrize("lacks", ["config.json", "tokenizer.json", "model.safetensors"])
def test_a_model_directory_that_lacks_a_file_is_refused_before_anything_runs(tmp_path: Path, lacks: str) -> None:
    (model(tmp_path) / lacks).unlink()
    with pytest.raises(ExperimentError) as caught:
        resolve(load_experiment(QUICKSTART, [f"model={tmp_path}", "memorize=null"]))
    assert f"{tmp_path}: the model directory lacks" in str(caught.value)
    assert lacks in str(caught.value)


def test_a_model_that_changes_is_another_digest_and_refused_by_a_pinned_task(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    pinned = Input(uri=f"file://{tmp_path}", digest=model_folder.folder_digest(tmp_path))
    assert pinning.local_folder(pinned, tmp_path / "scratch") == tmp_path
    (tmp_path / "config.json").write_text("{} ")
    with pytest.raises(BadTask, match="has changed"):
        pinning.local_folder(pinned, tmp_path / "scratch")


def test_a_store_that_cannot_be_made_says_so() -> None:
    with pytest.raises(StoreError, match="not writable"):
        open_store("/proc/expunge").put("a/b", b"x")
