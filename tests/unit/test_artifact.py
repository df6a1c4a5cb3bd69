"""Artifacts: a manifest if and only if the artifact is whole; the first to finish wins; damage is seen."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from expunge_jobs.artifacts.attempts import Attempt, End, attempts, sha256_of
from expunge_jobs.artifacts.damage import find_damaged, give_up_damaged, mark_damaged
from expunge_jobs.artifacts.manifests import Manifest, fetch, folder, manifest_path, read_manifest
from expunge_jobs.core.errors import DamagedInput
from expunge_jobs.store import NotFound, Store, StoreError
from expunge_jobs.store.schemes.file import FileStore
from expunge_jobs.tasks.references import ArtifactRef

from tests.support.samples import task

MADE = task("merge")
REF = ArtifactRef(kind="merge", key=MADE.key())


class Remote(FileStore):
    """A store whose objects are not in this machine's file system."""

    def local_path(self, path: str) -> Path | None:
        super().local_path(path)
        return None


@pytest.fixture(params=["local", "remote"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    return FileStore(tmp_path / "store") if request.param == "local" else Remote(tmp_path / "store")


@pytest.fixture
def out(tmp_path: Path) -> Path:
    made = tmp_path / "out"
    (made / "adapter").mkdir(parents=True)
    (made / "adapter/weights").write_bytes(b"weights" * 99)
    (made / "adapter/config").write_bytes(b"{}")
    (made / "rows.jsonl").write_bytes(b"")
    return made


def publish(store: Store, out: Path, name: str = "one", **figures: Any) -> bool:
    attempt = Attempt(store, REF, name)
    attempt.begin("host", 7)
    return attempt.publish(MADE, out, figures, {"torch": "2"}, "cpu", 3)


def test_a_published_artifact_comes_back(store: Store, out: Path, tmp_path: Path) -> None:
    assert publish(store, out, norm=1.5)
    got = fetch(store, REF, tmp_path / "in")
    assert {p.relative_to(got).as_posix(): p.read_bytes() for p in got.rglob("*") if p.is_file()} == {
        p.relative_to(out).as_posix(): p.read_bytes() for p in out.rglob("*") if p.is_file()
    }
    adapter = fetch(store, REF.model_copy(update={"folder": "adapter"}), tmp_path / "in2")
    assert sorted(p.name for p in adapter.iterdir()) == ["config", "weights"]


def test_the_manifest_is_the_receipt(store: Store, out: Path) -> None:
    publish(store, out, norm=1.5)
    manifest = read_manifest(store, REF)
    assert manifest is not None
    assert manifest.task == json.loads(MADE.to_json())
    assert (manifest.kind, manifest.key, manifest.attempt) == ("merge", REF.key, "one")
    assert (manifest.figures, manifest.versions, manifest.device, manifest.threads) == (
        {"norm": 1.5},
        {"torch": "2"},
        "cpu",
        3,
    )
    assert manifest.started <= manifest.ended
    assert {f.path: (f.size, f.sha256) for f in manifest.files} == {
        p.relative_to(out).as_posix(): (p.stat().st_size, sha256_of(p)) for p in out.rglob("*") if p.is_file()
    }


def test_no_manifest_before_the_end(store: Store, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every file is there before the manifest is written."""
    seen = []
    put = store.put

    def spy(path: str, data: bytes, **how: Any) -> None:
        if path == manifest_path(REF):
            seen.append(sorted(e.path for e in store.list(f"{folder(REF)}/attempts/one")))
            assert how == {"if_absent": True}
        put(path, data, **how)

    monkeypatch.setattr(store, "put", spy)
    assert read_manifest(store, REF) is None
    publish(store, out)
    assert [[p.rpartition("one/")[2] for p in s] for s in seen] == [["adapter/config", "adapter/weights", "rows.jsonl"]]


def test_the_first_wins_and_the_loser_takes_its_files_away(store: Store, out: Path, tmp_path: Path) -> None:
    assert publish(store, out, "one")
    (out / "adapter/weights").write_bytes(b"other")
    assert not publish(store, out, "two")
    manifest = read_manifest(store, REF)
    assert manifest is not None and manifest.attempt == "one"
    assert list(store.list(f"{folder(REF)}/attempts/two")) == []
    assert (fetch(store, REF, tmp_path / "in") / "adapter/weights").read_bytes() == b"weights" * 99
    assert [r.attempt for r in attempts(store, REF)] == ["one", "two"]


def test_one_that_finds_its_own_manifest_has_won(store: Store, out: Path, tmp_path: Path) -> None:
    """A manifest written before the answer was lost."""
    publish(store, out, "one")
    assert Attempt(store, REF, "one").publish(MADE, out, {}, {}, "cpu", 1)
    fetch(store, REF, tmp_path / "in")


def test_attempts_are_counted_by_their_records(store: Store, out: Path) -> None:
    assert attempts(store, REF) == []
    for name in ("b", "a", "c"):
        Attempt(store, REF, name).begin("host", 1)
    Attempt(store, REF, "a").end("failed", 1)
    store.put(f"{folder(REF)}/attempts/a/adapter/config.json", b"{}")
    assert sorted(r.attempt for r in attempts(store, REF)) == ["a", "b", "c"]
    assert attempts(store, REF) == sorted(attempts(store, REF), key=lambda r: r.started)
    assert attempts(store, ArtifactRef(kind="merge", key=REF.key[:-1])) == []


def test_not_there(store: Store, tmp_path: Path) -> None:
    with pytest.raises(DamagedInput, match="is not there: run the experiment again"):
        fetch(store, REF, tmp_path)


@pytest.mark.parametrize("how", ["changed", "cut", "missing"])
def test_damage_names_the_file_and_what_to_do(store: Store, out: Path, tmp_path: Path, how: str) -> None:
    publish(store, out)
    path = f"{folder(REF)}/attempts/one/adapter/weights"
    if how == "missing":
        store.delete([path])
    else:
        data = store.get(path)[0]
        store.put(path, data[:-1] + b"!" if how == "changed" else data[:-1])
    for ref in (REF, REF.model_copy(update={"folder": "adapter"})):
        with pytest.raises(DamagedInput) as caught:
            fetch(store, ref, tmp_path / "in")
        message = str(caught.value)
        assert f"{store.uri}/{path}" in message
        assert f"delete {store.uri}/{manifest_path(REF)} and run again" in message
    store.delete([manifest_path(REF)])
    assert publish(store, out, "two")
    assert (fetch(store, REF, tmp_path / "in2") / "adapter/weights").read_bytes() == b"weights" * 99


def damage(store: Store, out: Path) -> None:
    """One attempt's weights are not what it wrote, and a step has said so."""
    publish(store, out)
    store.put(f"{folder(REF)}/attempts/one/adapter/weights", b"other")
    for error in find_damaged(store, [REF]):
        mark_damaged(store, error)


def test_what_a_step_found_damaged_is_given_up_and_made_anew(store: Store, out: Path) -> None:
    damage(store, out)
    assert "adapter/weights is not what was written" in give_up_damaged(store, REF)
    assert read_manifest(store, REF) is None
    assert publish(store, out, "two")
    assert give_up_damaged(store, REF) == "", "the new one is whole"
    assert list(find_damaged(store, [REF])) == []


def test_what_somebody_has_made_anew_meanwhile_stays(store: Store, out: Path) -> None:
    damage(store, out)
    store.delete([manifest_path(REF)])
    publish(store, out, "two")
    assert give_up_damaged(store, REF) == ""
    manifest = read_manifest(store, REF)
    assert manifest is not None and manifest.attempt == "two"


def test_a_manifest_that_is_none_is_given_up_too(store: Store) -> None:
    store.put(manifest_path(REF), b"{}")
    for error in find_damaged(store, [REF]):
        mark_damaged(store, error)
    assert "is not a manifest" in give_up_damaged(store, REF)
    assert read_manifest(store, REF) is None


def test_only_the_wanted_folder_is_read(store: Store, out: Path, tmp_path: Path) -> None:
    publish(store, out)
    store.delete([f"{folder(REF)}/attempts/one/rows.jsonl"])
    fetch(store, REF.model_copy(update={"folder": "adapter"}), tmp_path / "in")


@pytest.mark.parametrize("data", [b"", b"{}", b"[]", b"\xff", b'{"format": 99}'])
def test_a_manifest_that_is_none(store: Store, data: bytes) -> None:
    store.put(manifest_path(REF), data)
    with pytest.raises(DamagedInput, match="is not a manifest: delete it and run again") as caught:
        read_manifest(store, REF)
    assert manifest_path(REF) in str(caught.value)


def test_an_end_says_how_and_leaves_no_files(store: Store, out: Path) -> None:
    attempt = Attempt(store, REF, "one")
    attempt.begin("host", 1)
    store.put_file(f"{attempt.folder}/adapter/weights", out / "adapter/weights")
    store.put(f"{attempt.folder}/log.jsonl", b"{}")
    attempt.end("the loss is nan", exit_code=65)
    end = End.model_validate_json(store.get(f"{attempt.folder}/end.json")[0])
    assert (end.reason, end.exit_code, end.signal) == ("the loss is nan", 65, None)
    left = [e.path.removeprefix(attempt.folder) for e in store.list(attempt.folder)]
    assert left == ["/end.json", "/log.jsonl"]
    assert [r.attempt for r in attempts(store, REF)] == ["one"]
    assert read_manifest(store, REF) is None


def test_whoever_says_first_how_an_attempt_ended_is_believed(store: Store) -> None:
    """Of a team, one process fails and the others then fail for want of it."""
    attempt = Attempt(store, REF, "one")
    attempt.say_end("the loss is nan", 65)
    attempt.end("a connection was closed", 1)
    end = End.model_validate_json(store.get(f"{attempt.folder}/end.json")[0])
    assert (end.exit_code, end.reason) == (65, "the loss is nan")


def test_a_winner_has_no_end(store: Store, out: Path) -> None:
    publish(store, out)
    with pytest.raises(NotFound):
        store.get(f"{folder(REF)}/attempts/one/end.json")


def test_a_manifest_round_trips(store: Store, out: Path) -> None:
    publish(store, out)
    manifest = read_manifest(store, REF)
    assert manifest is not None
    assert Manifest.model_validate_json(manifest.model_dump_json()) == manifest


def test_what_is_published_stays_whatever_comes_after(store: Store, tmp_path: Path) -> None:
    """TERM after the manifest, or a runner that finds its step killed: the artifact is whole, and stays."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "weights").write_bytes(b"12345")
    attempt = Attempt(store, REF, "one")
    attempt.begin("host", 1)
    assert attempt.publish(task("merge"), tmp_path / "out", {}, {}, "cpu", 1)
    for each in (attempt, Attempt(store, REF, "one")):
        each.end("stopped by SIGTERM", exit_code=143)
    assert (fetch(store, REF, tmp_path / "in") / "weights").read_bytes() == b"12345"


def test_a_manifest_whose_fate_is_unknown_leaves_its_files(store: Store, tmp_path: Path) -> None:
    class Moody:
        def __getattr__(self, name: str) -> object:
            return getattr(store, name)

        def put(self, path: str, data: bytes, **condition: bool) -> None:
            if path.endswith("manifest.json"):
                raise StoreError("no answer")
            store.put(path, data, **condition)  # type: ignore[arg-type]

    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "weights").write_bytes(b"12345")
    attempt = Attempt(Moody(), REF, "one")  # type: ignore[arg-type]
    with pytest.raises(StoreError):
        attempt.publish(task("merge"), tmp_path / "out", {}, {}, "cpu", 1)
    attempt.end("no answer", exit_code=1)
    assert store.present([f"{attempt.folder}/weights"])
