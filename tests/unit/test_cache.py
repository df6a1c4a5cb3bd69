"""A folder that outlives a step: fetched once by however many, checked, and never in the way."""

from __future__ import annotations

import fcntl
import hashlib
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from expunge_jobs.artifacts import cache
from expunge_jobs.artifacts.attempts import Attempt
from expunge_jobs.artifacts.cache import ModelCache
from expunge_jobs.artifacts.manifests import fetch
from expunge_jobs.runtime import shutdown
from expunge_jobs.store import Store, open_store
from expunge_jobs.tasks.references import ArtifactRef, Input
from expunge_jobs.tasks.tasks import StageTask

CONTENT = b"weights"
DIGEST = hashlib.sha256(CONTENT).hexdigest()


class Source:
    """Counts how often it is fetched."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.count, self.seconds = 0, seconds

    def __call__(self, to: Path) -> None:
        self.count += 1
        time.sleep(self.seconds)
        to.write_bytes(CONTENT)


def good(place: Path) -> bool:
    return place.read_bytes() == CONTENT


def test_several_at_once_fetch_it_once(tmp_path: Path) -> None:
    source = Source(0.1)
    places = [tmp_path / str(n) / "model.safetensors" for n in range(8)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda place: ModelCache(tmp_path / "cache").fetch(DIGEST, place, source, good), places))
    assert source.count == 1
    assert all(p.is_symlink() and p.read_bytes() == CONTENT for p in places)


def test_what_is_damaged_in_it_is_fetched_again(tmp_path: Path) -> None:
    source = Source()
    ModelCache(tmp_path / "cache").fetch(DIGEST, tmp_path / "one", source, good)
    (tmp_path / "cache" / DIGEST / "whole").write_bytes(b"foreign")
    ModelCache(tmp_path / "cache").fetch(DIGEST, tmp_path / "two", source, good)
    assert source.count == 2
    assert (tmp_path / "two").read_bytes() == CONTENT


def test_what_a_killed_step_left_is_cleared(tmp_path: Path) -> None:
    left = tmp_path / "cache" / DIGEST / "new" / ".whole.0123"
    left.parent.mkdir(parents=True)
    left.write_bytes(b"half")
    ModelCache(tmp_path / "cache").fetch(DIGEST, tmp_path / "one", Source(), good)
    assert not left.exists()
    assert (tmp_path / "one").read_bytes() == CONTENT


def test_a_cache_that_cannot_be_written_is_gone_round_and_that_is_said(
    tmp_path: Path,
) -> None:
    (tmp_path / "cache").write_text("a file")
    said: list[str] = []
    ModelCache(tmp_path / "cache", said.append).fetch(DIGEST, tmp_path / "one", Source(), good)
    assert f"the model cache {tmp_path / 'cache'} cannot be used" in said[0]
    assert not (tmp_path / "one").is_symlink()
    assert (tmp_path / "one").read_bytes() == CONTENT


def test_nobody_waits_for_ever_for_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "LOCK_SECONDS", 0.2)
    (tmp_path / "cache" / DIGEST).mkdir(parents=True)
    with (tmp_path / "cache" / DIGEST / "lock").open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        ModelCache(tmp_path / "cache").fetch(DIGEST, tmp_path / "one", Source(), good)
        assert not (tmp_path / "one").is_symlink()
        assert (tmp_path / "one").read_bytes() == CONTENT
        monkeypatch.setattr(shutdown, "_requested", True)
        with pytest.raises(shutdown.Terminated):
            ModelCache(tmp_path / "cache", check_stop=shutdown.check).fetch(DIGEST, tmp_path / "two", Source(), good)


def test_an_artifact_comes_through_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_store(str(tmp_path / "store"))
    task = StageTask(source=Input(uri="hf://org/name", digest="commit:0"))
    ref = ArtifactRef(kind="stage", key=task.key(), folder="model")
    (tmp_path / "out" / "model").mkdir(parents=True)
    (tmp_path / "out" / "model" / "model.safetensors").write_bytes(CONTENT)
    Attempt(store, ref, "one").publish(task, tmp_path / "out", {}, {}, "cpu", 1)
    monkeypatch.setattr(type(store), "local_path", _nowhere)
    folder = fetch(store, ref, tmp_path / "scratch", ModelCache(tmp_path / "cache"))
    assert (folder / "model.safetensors").resolve() == tmp_path / "cache" / DIGEST / "whole"


def _nowhere(store: Store, path: str) -> None:
    """As a bucket says it: there is no such local file."""
