"""Choosing documents, and telling forget from retain."""

from __future__ import annotations

import hashlib
import json
import random
from typing import Any

import pytest
from expunge_jobs.data.rows import DataError, Item, Row
from expunge_jobs.data.selection import load, select, shortfalls
from expunge_jobs.tasks.references import Input, RowsRef, TaskData
from hypothesis import given
from hypothesis import strategies as st

SOURCE = Input(uri="file:///data/f.jsonl", digest="sha256:0")


def ref(**fields: Any) -> RowsRef:
    return RowsRef(input=SOURCE, **fields)


def rows(*tasks: int) -> list[Item]:
    """So many documents for each task, two rows each."""
    return [
        Row(f"{task}-{n}{kind}", f"{task}-{n}", kind[:2], f"Task{task}", f"in {task} {n} {kind}", "out")  # type: ignore[arg-type]
        for task, count in enumerate(tasks, 1)
        for n in range(count)
        for kind in ("sc1", "qa10")
    ]


def documents(items: list[Item]) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for item in items:
        assert isinstance(item, Row)
        found.setdefault(item.task, set()).add(item.document)
    return found


sizes = st.lists(st.integers(1, 30), min_size=1, max_size=3)
shares = st.lists(st.integers(1, 12), min_size=1, max_size=4)


def cut(shares: list[int], seed: int) -> list[RowsRef]:
    """Sets of these sizes, one after the other, drawn from one file."""
    return [ref(seed=seed, skip=sum(shares[:n]), take=take, of=sum(shares)) for n, take in enumerate(shares)]


@given(sizes, shares, st.integers(0, 2**63 - 1))
def test_sets_of_one_file_never_meet_and_keep_their_shares(counts: list[int], shares: list[int], seed: int) -> None:
    items = rows(*counts)
    sets = [select(items, r) for r in cut(shares, seed)]
    ids = [i.id for s in sets for i in s]
    assert len(ids) == len(set(ids))
    for number, there in enumerate(counts, 1):
        found = [len(documents(s).get(f"Task{number}", ())) for s in sets]
        if there >= sum(shares):
            assert found == shares
        else:
            assert sum(found) == there, "where there are fewer, all are used"
            wanted = [there * s / sum(shares) for s in shares]
            assert all(abs(a - b) <= 1 for a, b in zip(found, wanted, strict=True))


@given(sizes, shares, st.integers(0, 99))
def test_documents_come_whole_and_in_the_files_order(counts: list[int], shares: list[int], seed: int) -> None:
    items = rows(*counts)
    for part in cut(shares, seed):
        chosen = select(items, part)
        assert chosen == [i for i in items if i in chosen]
        assert len(chosen) == 2 * sum(len(d) for d in documents(chosen).values())


@given(sizes, shares, st.randoms(use_true_random=False))
def test_the_files_order_does_not_matter(counts: list[int], shares: list[int], order: random.Random) -> None:
    items = rows(*counts)
    shuffled = list(items)
    order.shuffle(shuffled)
    for part in cut(shares, 3):
        assert {i.id for i in select(items, part)} == {i.id for i in select(shuffled, part)}


def test_a_document_keeps_its_place_when_others_come() -> None:
    """Of a file with enough documents: taking more adds to what was taken."""
    items = rows(30)
    few, more = select(items, ref(take=5, of=20)), select(items, ref(take=9, of=20))
    assert {i.id for i in few} < {i.id for i in more}


def test_the_seed_chooses() -> None:
    items = rows(30)
    assert select(items, ref(take=9, seed=1)) != select(items, ref(take=9, seed=2))
    assert select(items, ref(take=9, seed=1)) == select(items, ref(take=9, seed=1))


def test_the_choice_is_what_it_was() -> None:
    """SHA-256 of the seed and the document's id decides: the same documents on every machine, for ever."""
    ordered = sorted(
        (f"1-{n}" for n in range(12)), key=lambda d: hashlib.sha256(f"place\x1f5\x1f{d}".encode()).digest()
    )
    assert documents(select(rows(12), ref(take=3, seed=5)))["Task1"] == set(ordered[:3]) == {"1-11", "1-7", "1-9"}


def test_take_none_is_the_whole_file() -> None:
    assert select(rows(3, 1), ref()) == rows(3, 1)


def test_shortfalls_are_counted_by_task() -> None:
    assert shortfalls(rows(9, 3, 5), 5) == {"Task2": 3}
    assert shortfalls(rows(9), 9) == {}


def lines(items: list[Item]) -> bytes:
    fields = ("id", "input", "output", "task")
    return "".join(json.dumps({f: getattr(i, f) for f in fields}) + "\n" for i in items).encode()


def loaded(forget: list[Item], retain: list[Item], **fields: Any) -> dict[Any, list[Item]]:
    files = {"file:///data/f.jsonl": lines(forget), "file:///data/r.jsonl": lines(retain)}
    sets = {"forget": ref(), "retain": RowsRef(input=Input(uri="file:///data/r.jsonl", digest="x"))}
    return load(TaskData(sets=sets, **fields), lambda i: files[i.uri])


def row(identity: str, text: str) -> Item:
    return Row(f"{identity}sc1", identity, "sc", "T", text, "out")


def test_separate_sets_load() -> None:
    forget, retain = [row("a", "x")], [row("b", "y")]
    assert loaded(forget, retain) == {"forget": forget, "retain": retain}


@pytest.mark.parametrize("shared", [row("a", "other canary"), row("c", "canary")])
def test_a_row_in_both_sets_is_an_error(shared: Item) -> None:
    """By its id, or by its text under another id."""
    with pytest.raises(DataError) as caught:
        loaded([row("a", "canary")], [row("b", "y"), shared])
    message = str(caught.value)
    assert (
        "/data/r.jsonl:2: the row is in forget and in retain" in message and "data.overlap: drop_from_retain" in message
    )
    assert "canary" not in message and "asc1" not in message


def test_a_row_in_both_sets_is_dropped_from_retain() -> None:
    forget = [row("a", "x")]
    assert loaded(forget, [row("b", "y"), row("a", "z")], overlap="drop_from_retain") == {
        "forget": forget,
        "retain": [row("b", "y")],
    }


def test_nothing_left_to_retain() -> None:
    with pytest.raises(DataError, match="every retain row is in forget too"):
        loaded([row("a", "x")], [row("a", "x")], overlap="drop_from_retain")


def test_one_file_for_both_sets_by_shares() -> None:
    sets = {"forget": ref(take=2, of=4), "retain": ref(skip=2, take=2, of=4)}
    found = load(TaskData(sets=sets), lambda _: lines(rows(9)))
    assert len(found["forget"]) == len(found["retain"]) == 4
    assert not {i.id for i in found["forget"]} & {i.id for i in found["retain"]}


def test_a_set_without_documents_is_named() -> None:
    sets = {"forget": ref(take=9, of=10), "probe": ref(skip=9, take=1, of=10)}
    with pytest.raises(DataError, match="/data/f.jsonl: no rows are left for the set probe"):
        load(TaskData(sets=sets), lambda _: lines(rows(1)))


def test_only_some_sets() -> None:
    sets = {"forget": ref(take=2, of=4), "retain": ref(skip=2, take=2, of=4)}
    assert set(load(TaskData(sets=sets), lambda _: lines(rows(9)), only=("retain",))) == {"retain"}
