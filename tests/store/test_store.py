"""What every store promises, by its protocol alone: the fixture ``store`` decides which one."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from expunge_jobs.store import Conflict, NotFound, Store, StoreError, TooLarge, check_conditional_writes, open_store

WRONG_PATHS = ["", "/", "/a", "a/", "a//b", "..", "../a", "a/..", "a/../b", "a/../../b", ".", "a/./b"]


def race(jobs: list[Callable[[], None]]) -> int:
    """Runs all at once; how many were not told of a conflict."""
    barrier, won, other = threading.Barrier(len(jobs)), [], []

    def run(job: Callable[[], None]) -> None:
        barrier.wait()
        try:
            job()
            won.append(job)
        except Conflict:
            pass
        except BaseException as error:
            other.append(error)

    threads = [threading.Thread(target=run, args=(j,)) for j in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert other == []
    return len(won)


def test_get_gives_what_was_put(store: Store) -> None:
    for data in (b"", b"one", bytes(range(256)) * 999):
        store.put("a/b", data)
        assert store.get("a/b")[0] == data


def test_versions_follow_the_bytes(store: Store) -> None:
    store.put("a", b"one")
    first = store.get("a")[1]
    assert store.get("a")[1] == first
    store.put("a", b"two")
    assert store.get("a")[1] != first


def test_what_is_not_there(store: Store, tmp_path: Path) -> None:
    store.put("a/b", b"")
    for path in ("x", "a/c", "x/y/z"):
        with pytest.raises(NotFound, match=path):
            store.get(path)
        with pytest.raises(NotFound, match=path):
            store.get_file(path, tmp_path / "to")
    assert not (tmp_path / "to").exists()


def test_files_travel_both_ways(store: Store, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(bytes(range(256)) * 9999)
    store.put_file("a/b", source)
    store.get_file("a/b", tmp_path / "new/folder/to")
    assert (tmp_path / "new/folder/to").read_bytes() == source.read_bytes() == store.get("a/b")[0]
    source.write_bytes(b"less")
    store.put_file("a/b", source)
    assert store.get("a/b")[0] == b"less"


def test_if_absent(store: Store) -> None:
    store.put("a/b", b"first", if_absent=True)
    with pytest.raises(Conflict, match="a/b"):
        store.put("a/b", b"second", if_absent=True)
    assert store.get("a/b")[0] == b"first"
    store.delete(["a/b"])
    store.put("a/b", b"third", if_absent=True)
    assert store.get("a/b")[0] == b"third"


def test_if_match(store: Store) -> None:
    store.put("a", b"one")
    old = store.get("a")[1]
    store.put("a", b"two", if_match=old)
    with pytest.raises(Conflict, match="a"):
        store.put("a", b"three", if_match=old)
    assert store.get("a")[0] == b"two"
    store.delete(["a"])
    with pytest.raises(Conflict):
        store.put("a", b"three", if_match=old)
    assert list(store.list("a")) == []


@pytest.mark.parametrize("again", range(5))
def test_one_of_sixteen_is_first(store: Store, again: int) -> None:
    jobs = [lambda n=n: store.put("a/b", f"{n:02}".encode() * 9, if_absent=True) for n in range(16)]
    assert race(jobs) == 1  # type: ignore[arg-type]
    assert store.get("a/b")[0] in {f"{n:02}".encode() * 9 for n in range(16)}
    assert [e.path for e in store.list("a")] == ["a/b"]


@pytest.mark.parametrize("again", range(5))
def test_one_of_sixteen_replaces(store: Store, again: int) -> None:
    store.put("a/b", b"old")
    old = store.get("a/b")[1]
    jobs = [lambda n=n: store.put("a/b", f"new {n}".encode(), if_match=old) for n in range(16)]
    assert race(jobs) == 1  # type: ignore[arg-type]
    assert store.get("a/b")[0].startswith(b"new ")


def test_a_reader_sees_all_of_a_write_or_none(store: Store) -> None:
    values = {b"a" * 200_000, b"b" * 300_000}
    store.put("x", b"a" * 200_000)
    done = threading.Event()
    seen: set[bytes] = set()

    def read() -> None:
        while not done.is_set():
            seen.add(store.get("x")[0])

    reader = threading.Thread(target=read)
    reader.start()
    for _ in range(15):
        for value in sorted(values):
            store.put("x", value)
    done.set()
    reader.join()
    assert seen and seen <= values


def test_present(store: Store) -> None:
    for path in ("a/b", "a/c/d"):
        store.put(path, b"")
    assert store.present(["a/b", "a/c/d", "a/x", "a", "a/c", "y/z"]) == {"a/b", "a/c/d"}
    assert store.present([]) == set()


def test_a_store_that_can_be_used(store: Store) -> None:
    store.put("a", b"")
    store.check()
    for _ in range(2):  # what the first leaves is what the second finds
        check_conditional_writes(store)
    assert store.present(["probe"]) == {"probe"}


def test_list_is_sorted_and_whole(store: Store) -> None:
    paths = ["a/b/2", "a/b/10", "a/b/c/d/e", "a/z", "a/B"]
    for path in paths:
        store.put(path, b"x" * len(path))
    found = list(store.list("a"))
    assert [e.path for e in found] == sorted(paths)
    assert all(e.size == len(e.path) and e.modified > 1.7e9 for e in found)


def test_list_keeps_to_its_folder(store: Store) -> None:
    for path in ("a/b/c", "a/bc/d", "a/b.json", "ab/c"):
        store.put(path, b"")
    assert [e.path for e in store.list("a/b")] == ["a/b/c"]
    assert [e.path for e in store.list("a/b/c")] == []
    assert [e.path for e in store.list("a/x")] == []


def test_delete(store: Store) -> None:
    for path in ("a/b", "a/c", "a/d/e"):
        store.put(path, b"")
    store.delete(["a/b", "a/d/e", "a/nothing", "no/thing/at/all"])
    assert [e.path for e in store.list("a")] == ["a/c"]
    store.delete([])
    store.delete(["a/b"])
    with pytest.raises(NotFound):
        store.get("a/b")


@pytest.mark.parametrize("path", WRONG_PATHS)
def test_wrong_paths_are_refused(store: Store, tmp_path: Path, path: str) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"")
    for act in (
        lambda: store.get(path),
        lambda: store.put(path, b""),
        lambda: store.get_file(path, tmp_path / "to"),
        lambda: store.put_file(path, source),
        lambda: list(store.list(path)),
        lambda: store.delete([path]),
        lambda: store.present([path]),
        lambda: store.local_path(path),
    ):
        with pytest.raises(StoreError, match="no path in a store"):
            act()
    assert sorted(p.name for p in tmp_path.iterdir() if p.is_file()) == ["source"]


def test_a_local_path_holds_the_object(store: Store) -> None:
    store.put("a/b", b"x")
    place = store.local_path("a/b")
    assert place is None or place.read_bytes() == b"x"


def test_what_is_read_whole_may_have_a_bound(store: Store, tmp_path: Path) -> None:
    store.put("a/b", bytes(1001))
    assert store.get("a/b")[0] == bytes(1001)
    bounded = open_store(store.uri, largest=1000)
    with pytest.raises(TooLarge, match="a/b has 1,001 bytes; at most 1,000 are read here"):
        bounded.get("a/b")
    bounded.put("a/b", bytes(1000))
    assert bounded.get("a/b")[0] == bytes(1000)
