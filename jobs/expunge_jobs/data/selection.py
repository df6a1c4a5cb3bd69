"""Selection of a set's rows from a data file."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping

from expunge_jobs.core.hashing import stable_hash
from expunge_jobs.data.rows import DataError, Item, Row, address, parse
from expunge_jobs.tasks.references import Input, RowsRef, SetName, TaskData


def select(items: list[Item], ref: RowsRef) -> list[Item]:
    """Return the items of ``ref``'s documents in file order (see ``RowsRef``)."""
    if ref.take is None:
        return items
    by_task: dict[str, set[str]] = defaultdict(set)
    for item in items:
        by_task[_task(item)].add(_document(item))
    wanted: set[tuple[str, str]] = set()
    for task, documents in by_task.items():
        ordered = sorted(documents, key=lambda d: (stable_hash("place", ref.seed, d), d))
        of = ref.of or ref.skip + ref.take
        scale = min(1.0, len(ordered) / of)
        first, last = round(ref.skip * scale), round((ref.skip + ref.take) * scale)
        wanted.update((task, d) for d in ordered[first:last])
    return [i for i in items if (_task(i), _document(i)) in wanted]


def shortfalls(items: list[Item], of: int) -> dict[str, int]:
    """Return the tasks with fewer than ``of`` documents, and their counts."""
    counts = Counter(task for task, _ in {(_task(i), _document(i)) for i in items})
    return {task: n for task, n in sorted(counts.items()) if n < of}


def load(
    data: TaskData,
    read: Callable[[Input], bytes],
    only: tuple[SetName, ...] | None = None,
    parse: Callable[[bytes, str, str], list[Item]] = parse,
) -> dict[SetName, list[Item]]:
    """Return the selected rows of the task's sets.

    ``only`` restricts the sets. ``read`` returns the bytes of an input, verified against its digest. ``parse`` returns
    the rows of these bytes. A row in both forget and retain is refused or dropped from retain, according to
    ``data.overlap``.

    Raises:
        DataError: as ``parse``; or a row in forget and in retain that ``overlap`` does not allow.
    """
    sets: dict[SetName, list[Item]] = {}
    for name, ref in data.sets.items():
        sets[name] = select(parse(read(ref.input), address(ref.input.uri), name), ref)
        if not sets[name]:
            raise DataError([f"{address(ref.input.uri)}: no rows are left for the set {name}: too few documents"])
    if "forget" in sets and "retain" in sets:
        sets["retain"] = _without_overlap(sets, data)
    return {n: rows for n, rows in sets.items() if only is None or n in only}


def _without_overlap(sets: Mapping[SetName, list[Item]], data: TaskData) -> list[Item]:
    forget_ids = {i.id for i in sets["forget"]}
    forget_texts = {(i.input, i.output) for i in sets["forget"] if isinstance(i, Row)}

    def shared(item: Item) -> bool:
        return item.id in forget_ids or (isinstance(item, Row) and (item.input, item.output) in forget_texts)

    kept = [i for i in sets["retain"] if not shared(i)]
    lost = len(sets["retain"]) - len(kept)
    name = address(data.sets["retain"].input.uri)
    if lost and data.overlap == "refuse":
        line = next(i.line for i in sets["retain"] if isinstance(i, Row) and shared(i))
        said = f"{name}:{line}: the row is in forget and in retain (such rows: {lost})"
        raise DataError([f"{said}; remove them, or say data.overlap: drop_from_retain"])
    if not kept:
        raise DataError([f"{name}: every retain row is in forget too: nothing is left to retain"])
    return kept


def _task(item: Item) -> str:
    return item.task if isinstance(item, Row) else ""


def _document(item: Item) -> str:
    return item.document if isinstance(item, Row) else item.id
