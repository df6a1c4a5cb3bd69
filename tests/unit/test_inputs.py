"""Models from a directory and from the hub's own cache, laid out here; no network."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from expunge_controller.document import ExperimentError
from expunge_controller.experiment import load_experiment
from expunge_controller.resolve import resolve
from expunge_jobs import inputs
from expunge_jobs.errors import BadTask
from expunge_jobs.store import StoreError, open_store
from expunge_jobs.task import Input

QUICKSTART = Path(__file__).parents[2] / "examples" / "quickstart.yaml"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache as huggingface_hub lays it out, with one model at one commit."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    folder = tmp_path / "models--org--name"
    snapshot = folder / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        (snapshot / name).write_text("{}")
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(COMMIT)
    (folder / "refs" / "v1").write_text(COMMIT)
    return snapshot


@pytest.mark.parametrize("revision", ["", "@main", "@v1", f"@{COMMIT}"])
def test_a_hub_model_is_pinned_to_its_commit(hub: Path, revision: str) -> None:
    assert inputs.hub_commit(f"hf://org/name{revision}") == COMMIT


def test_a_pinned_hub_model_is_the_cache_s_folder(hub: Path, tmp_path: Path) -> None:
    assert inputs.local_folder(Input(uri="hf://org/name@v1", digest=f"commit:{COMMIT}"), tmp_path) == hub


def test_the_key_holds_the_commit_and_not_the_revision(hub: Path) -> None:
    def keys(model: str) -> list[str]:
        return [s.key for s in resolve(load_experiment(QUICKSTART, [f"model={model}", "memorize=null"])).plan.steps]

    assert keys("hf://org/name") == keys("hf://org/name@v1")


def test_a_hub_model_that_nobody_knows(hub: Path) -> None:
    with pytest.raises(BadTask, match="neither the hub nor its cache here knows"):
        inputs.hub_commit("hf://org/other")
    with pytest.raises(BadTask, match="hf://org/name@revision"):
        inputs.hub_commit("hf://name")


@pytest.mark.parametrize("lacks", ["config.json", "tokenizer.json", "model.safetensors"])
def test_a_model_directory_that_lacks_a_file_is_refused_before_anything_runs(tmp_path: Path, lacks: str) -> None:
    for name in {"config.json", "tokenizer.json", "model.safetensors"} - {lacks}:
        (tmp_path / name).write_text(json.dumps({}))
    with pytest.raises(ExperimentError) as caught:
        resolve(load_experiment(QUICKSTART, [f"model={tmp_path}", "memorize=null"]))
    assert f"{tmp_path}: the model directory lacks" in str(caught.value)
    assert lacks in str(caught.value)


def test_a_model_that_changes_is_another_digest_and_refused_by_a_pinned_task(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    pinned = Input(uri=f"file://{tmp_path}", digest=inputs.folder_digest(tmp_path))
    assert inputs.local_folder(pinned, tmp_path / "scratch") == tmp_path
    (tmp_path / "config.json").write_text("{} ")
    with pytest.raises(BadTask, match="has changed"):
        inputs.local_folder(pinned, tmp_path / "scratch")


def test_a_store_that_cannot_be_made_says_so() -> None:
    with pytest.raises(StoreError, match="not writable"):
        open_store("/proc/expunge").put("a/b", b"x")
