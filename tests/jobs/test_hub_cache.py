"""Models from the hub's own cache, laid out here; no network."""

from __future__ import annotations

from pathlib import Path

import pytest
from expunge_controller.experiment.loading import load_experiment
from expunge_controller.planning.resolve import resolve
from expunge_jobs.artifacts.attempts import Attempt
from expunge_jobs.core.errors import BadTask
from expunge_jobs.inputs import pinning
from expunge_jobs.runtime.context import StepContext
from expunge_jobs.steps import stage
from expunge_jobs.store import open_store
from expunge_jobs.tasks.references import ArtifactRef, Input
from expunge_jobs.tasks.tasks import StageTask

from tests.support.folders import model

QUICKSTART = Path(__file__).parents[2] / "examples" / "quickstart.yaml"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache as huggingface_hub lays it out, with one model at one commit."""
    from huggingface_hub import constants

    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    folder = tmp_path / "models--org--name"
    snapshot = folder / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    model(snapshot)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(COMMIT)
    (folder / "refs" / "v1").write_text(COMMIT)
    return snapshot


def test_a_pinned_hub_model_is_the_cache_s_folder(hub: Path, tmp_path: Path) -> None:
    assert pinning.local_folder(Input(uri="hf://org/name@v1", digest=f"commit:{COMMIT}"), tmp_path) == hub


def test_the_key_holds_the_commit_and_not_the_revision(hub: Path) -> None:
    def keys(model: str) -> list[str]:
        *steps, report = resolve(load_experiment(QUICKSTART, [f"model={model}", "memorize=null"])).plan.steps
        assert report.kind == "report"  # its key holds the experiment's digest, so the words of the file
        return [s.key for s in steps]

    assert keys("hf://org/name") == keys("hf://org/name@v1")


def test_on_a_cluster_it_is_copied_first_and_no_other_key_changes(hub: Path) -> None:
    loaded = load_experiment(QUICKSTART, ["model=hf://org/name@v1", "memorize=null", "sweep={seed: [1, 2]}"])
    here, there = resolve(loaded), resolve(loaded, stage=True)
    assert there.digest == here.digest
    stage, *others = there.plan.steps
    assert (stage.kind, stage.name, stage.needs) == ("stage", "stage org/name@v1", ())
    assert stage.trials == here.plan.trials
    assert [s.key for s in others] == [s.key for s in here.plan.steps]
    assert all(stage.key in s.needs for s in others if s.kind != "report")


def test_the_copy_holds_the_model_and_is_read_in_place_of_the_hub(hub: Path, tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "store"))
    source = Input(uri="hf://org/name@v1", digest=f"commit:{COMMIT}")
    task = StageTask(source=source)
    attempt = Attempt(store, ArtifactRef(kind="stage", key=task.key()), "one")
    work = StepContext(store, tmp_path / "out", tmp_path / "scratch")
    work.out.mkdir()
    assert work.path(source) == hub
    figures = stage.run(task, work)
    assert figures == {"files": 3, "bytes": sum(f.stat().st_size for f in hub.iterdir())}
    assert attempt.publish(task, work.out, figures, {}, "cpu", 1)
    copy = work.path(source)
    assert copy.is_relative_to(tmp_path / "store")
    assert sorted(f.name for f in copy.iterdir()) == sorted(f.name for f in hub.iterdir())


def test_a_copy_of_what_is_no_model_is_refused(hub: Path, tmp_path: Path) -> None:
    (hub / "config.json").unlink()
    task = StageTask(source=Input(uri="hf://org/name", digest=f"commit:{COMMIT}"))
    with pytest.raises(BadTask, match=r"lacks config\.json"):
        stage.run(task, StepContext(open_store(str(tmp_path / "store")), tmp_path / "out", tmp_path / "scratch"))
    with pytest.raises(ValueError, match="stage copies from hf://"):
        StageTask(source=Input(uri="file:///model", digest="sha256:0"))
