"""A store in a directory: what only a directory can get wrong. The protocol's own tests are in test_store.py."""

from __future__ import annotations

import errno
import os
import stat
import time
from pathlib import Path

import pytest
from expunge_jobs.artifacts.attempts import Attempt
from expunge_jobs.artifacts.manifests import fetch, read_manifest
from expunge_jobs.core.errors import BadTask
from expunge_jobs.store import StoreError, open_store
from expunge_jobs.tasks.references import ArtifactRef

from tests.store.test_store import race
from tests.support.samples import task


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def files(root: Path) -> list[str]:
    return sorted(p.relative_to(root).as_posix() for p in root.rglob("*") if p.is_file())


def test_folders_are_the_owners_alone(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        open_store(f"{tmp_path}/new/store").put("a/b/c", b"")
    finally:
        os.umask(before)
    assert [mode(tmp_path / f) for f in ("new", "new/store", "new/store/a", "new/store/a/b")] == [0o700] * 4


def test_a_write_leaves_nothing_beside_it(tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "s"))
    store.put("a/x", b"1")
    store.put("a/y", b"1", if_absent=True)
    source = tmp_path / "source"
    source.write_bytes(b"2")
    store.put_file("a/z", source)
    assert files(tmp_path / "s") == ["a/x", "a/y", "a/z"]


def test_delete_takes_empty_folders_with_it(tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "s"))
    store.put("a/b/c", b"")
    store.put("a/d", b"")
    store.delete(["a/b/c"])
    assert not (tmp_path / "s/a/b").exists()
    store.delete(["a/d"])
    assert (tmp_path / "s").is_dir() and not (tmp_path / "s/a").exists()


def test_a_file_where_the_store_belongs(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    store = open_store(str(tmp_path / "file/store"))
    with pytest.raises(StoreError, match="a file lies where a folder belongs") as caught:
        store.put("a", b"")
    assert store.uri in str(caught.value)


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_not_writable(tmp_path: Path) -> None:
    (tmp_path / "s").mkdir(mode=0o500)
    store = open_store(str(tmp_path / "s"))
    with pytest.raises(StoreError, match="not writable") as caught:
        store.put("a/b", b"")
    assert store.uri in str(caught.value) and "--store" in str(caught.value)


@pytest.mark.parametrize(
    ("number", "words"),
    [(errno.EROFS, "not writable"), (errno.EACCES, "not writable"), (errno.ENOSPC, "full"), (errno.EIO, "failed")],
)
def test_what_the_file_system_says_in_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, words: str
) -> None:
    def fail(descriptor: int) -> None:
        raise OSError(number, os.strerror(number))

    store = open_store(str(tmp_path / "s"))
    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(StoreError, match=words) as caught:
        store.put("a/b", b"x")
    assert store.uri in str(caught.value) and "a/b" in str(caught.value)
    assert files(tmp_path) == []


@pytest.mark.parametrize("writes", range(12))
def test_full_in_the_middle_of_an_artifact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, writes: int) -> None:
    """Whichever write fails, there is a whole artifact or none, and the next attempt makes one."""
    store = open_store(str(tmp_path / "store"))
    out = tmp_path / "out"
    out.mkdir()
    for name in ("a", "b", "c"):
        (out / name).write_text(name * 999)
    made = task("merge")
    ref = ArtifactRef(kind="merge", key=made.key())
    left = writes

    def fsync(descriptor: int) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    first = Attempt(store, ref, "first")
    first.begin("host", 1)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        full = None
        try:
            first.publish(made, out, {}, {}, "cpu", 1)
        except StoreError as error:
            full = str(error)
    assert (full is None) == (left >= 0)
    if full is not None:
        assert store.uri in full and "full" in full and "free some space" in full
    whole = read_manifest(store, ref) is not None
    sizes = {e.path.rpartition("/")[2]: e.size for e in store.list(first.folder)}
    assert all(size == 999 for size in sizes.values()), "a file is there whole or not at all"
    if whole:
        assert set(sizes) == {"a", "b", "c"}
    else:
        first.end("full", 1)
        second = Attempt(store, ref, "second")
        second.begin("host", 2)
        assert second.publish(made, out, {}, {}, "cpu", 1)
    got = fetch(store, ref, tmp_path / "in")
    assert {f: (got / f).read_text() for f in "abc"} == {f: f * 999 for f in "abc"}


def test_nobody_replaces_between_anothers_look_and_its_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_store(str(tmp_path / "s"))
    store.put("a", b"old")
    old = store.get("a")[1]
    replace = Path.replace

    def slow(self: Path, target: Path) -> Path:
        time.sleep(0.02)
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", slow)
    assert race([lambda n=n: store.put("a", f"new {n}".encode(), if_match=old) for n in range(8)]) == 1  # type: ignore[misc]


def test_addresses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert open_store("x").uri == open_store(f"file://{tmp_path}/x").uri == f"file://{tmp_path}/x"
    with pytest.raises(BadTask, match="did you mean 'file'"):
        open_store("fil:///x")
    for wrong in ("", "file://", "gopher://x"):
        with pytest.raises(BadTask, match="store"):
            open_store(wrong)
