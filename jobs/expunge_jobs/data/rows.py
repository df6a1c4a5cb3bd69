"""Parsing and validation of data files.

The module loads no torch; therefore bad rows are found before any step runs.

No message of this module contains a row's text or id. A message names a row by file and line.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from expunge_jobs.core.errors import BadTask
from expunge_jobs.core.hashing import stable_hash

MAX_PROBLEMS = 20
_HALF = re.compile("[\ud800-\udfff]")
_FIELDS = ("id", "input", "output", "task", "kind", "document", "subject", "question", "choices", "answer", "split")
_KIND_AT_END = re.compile(r"(sc|qa)\d+(?=\"?$)")


@dataclass(frozen=True, slots=True)
class Row:
    """A row of a data file.

    ``kind`` is ``sc``, a sentence completion (regurgitation), or ``qa``, a question (knowledge).
    """

    id: str
    document: str
    kind: Literal["sc", "qa"]
    task: str
    input: str
    output: str
    line: int = field(default=0, compare=False)
    """Line in the data file, for messages."""


@dataclass(frozen=True, slots=True)
class Document:
    """A whole text for membership inference."""

    id: str
    text: str


@dataclass(frozen=True, slots=True)
class Question:
    """A multiple-choice question of MMLU.

    The source is Hendrycks et al., arXiv 2009.03300. ``answer`` is 0 to 3.
    """

    id: str
    subject: str
    question: str
    choices: tuple[str, ...]
    answer: int
    split: Literal["dev", "test"]


Item = Row | Document | Question


class DataError(BadTask):
    """An unusable data file.

    ``problems`` holds the problems found, ``MAX_PROBLEMS`` at most. ``more`` is the number of problems that were not
    kept.
    """

    def __init__(self, problems: list[str], more: int = 0) -> None:
        self.problems = problems[:MAX_PROBLEMS]
        more += len(problems) - len(self.problems)
        super().__init__("\n".join([*self.problems, *([f"... and {more} more"] if more > 0 else [])]))


class _Problems:
    """The problems of a file.

    A file may have a million problems. Therefore only the first are kept in words, and the rest are counted.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.kept: list[str] = []
        self.more = 0

    def add(self, text: str, line: int | None = None) -> None:
        if len(self.kept) < MAX_PROBLEMS:
            self.kept.append(f"{self.name}:{line}: {text}" if line else f"{self.name}: {text}")
        else:
            self.more += 1

    def check(self) -> None:
        if self.kept:
            raise DataError(self.kept, self.more)


def parse(content: bytes, name: str, role: str = "forget", most: int | None = None) -> list[Item]:
    """Return the rows of a data file.

    The file is JSON Lines, or one JSON object of columns (``{"id": {...} | [...], ...}``). ``most`` is the largest
    number of rows that is accepted.

    Raises:
        DataError: every bad row, by file, line and field, never by content; or too many rows.
    """
    problems = _Problems(name)
    items: list[Item] = []
    seen: dict[str, int] = {}
    count = 0
    for line, record in _records(content, problems, most):
        count += 1
        if most is not None and count > most:
            raise DataError([f"{name}: more than {most:,} rows, which are not read here"])
        found: list[str] = []
        item = _item(record, found, role, line)
        for text in found:
            problems.add(text, line)
        if item is None:
            continue
        if item.id in seen and not isinstance(item, Question):  # MMLU's files have no ids and contain duplicates
            problems.add(f"id: the same id as in line {seen[item.id]}; each row has its own", line)
        seen.setdefault(item.id, line)
        items.append(item)
    if not count and not problems.kept:
        problems.add("no rows; allowed: JSON Lines with id, input, output, task")
    problems.check()
    return items


def _records(content: bytes, problems: _Problems, most: int | None) -> Iterator[tuple[int, dict[str, Any]]]:
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError([f"{problems.name}: not UTF-8 text (byte {error.start})"]) from None
    # JSON such as {},{},{} takes 30 times its bytes once parsed; therefore limit the values. Rows have far fewer.
    if most is not None and (text.count(",") > 22 * most or text.count("{") + text.count("[") > 16 * most):
        raise DataError([f"{problems.name}: too many JSON values for {most:,} rows"])
    if whole := _whole(text):
        yield from _columns(whole, problems)
        return
    for number, line in enumerate(io.StringIO(text, newline="\n"), 1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            problems.add("not JSON; allowed: one JSON object a line", number)
            continue
        if isinstance(value, dict):
            yield number, value
        else:
            problems.add(f"found a JSON {type(value).__name__}; allowed: one JSON object a line", number)


def _whole(text: str) -> dict[str, Any] | None:
    """Return the columns if the file is one JSON object of columns.

    pandas writes such files. An object that is a single row has plain values and gives None.
    """
    head = text.lstrip()[:4096]
    if not re.match(r'\{\s*"(?:[^"\\]|\\.)*"\s*:\s*[\[{]', head):  # the first field is not a column
        return None
    try:
        whole = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if isinstance(whole, dict) and all(isinstance(v, dict | list) for v in whole.values()):
        return whole
    return None


def _columns(whole: dict[str, Any], problems: _Problems) -> Iterator[tuple[int, dict[str, Any]]]:
    first = next(iter(whole.values()))
    # pandas writes each column as an object keyed by row index; therefore the order of keys is irrelevant.
    indexed = all(isinstance(v, dict) and v.keys() == first.keys() for v in whole.values())
    columns = {
        k: [v[i] for i in first] if indexed else list(v.values()) if isinstance(v, dict) else v
        for k, v in whole.items()
    }
    lengths = {k: len(v) for k, v in columns.items()}
    if not indexed and (len(set(lengths.values())) != 1 or all(isinstance(v, dict) for v in whole.values())):
        # In a file of another kind, field names may be content; therefore name only known fields.
        named = [f"{k} {n}" for k, n in lengths.items() if k in _FIELDS]
        problems.add(f"columns with different rows: {', '.join(named) or 'none is a known field'}")
        return
    for i in range(next(iter(lengths.values()))):
        yield i + 1, {k: v[i] for k, v in columns.items()}


def _item(record: dict[str, Any], problems: list[str], role: str, line: int) -> Item | None:
    def text(field: str, empty: bool = False) -> str:
        value = record.get(field)
        if field not in record:
            problems.append(f"{field}: missing")
        elif not isinstance(value, str):
            problems.append(f"{field}: found {type(value).__name__}; allowed: text")
        elif _HALF.search(value):
            problems.append(f"{field}: half of a surrogate pair (\\ud800 to \\udfff by itself), which is no text")
        elif not empty and not value.strip():
            problems.append(f"{field}: empty")
        else:
            return value
        return ""

    if role == "mmlu":
        return _question(record, text, problems)
    if role in ("members", "nonmembers") and "document" in record and "output" not in record:
        values = text("id"), text("document")
        return None if problems else Document(*values)
    identity, source, output, task = text("id"), text("input"), text("output"), text("task")
    kind: Any = record.get("kind")
    suffix = _KIND_AT_END.search(identity)
    if kind is None:
        kind = suffix.group(1) if suffix else None
        if kind is None and identity:
            problems.append("id: does not end in sc<k> or qa<k>, so the row's kind is not known; say kind: sc or qa")
    elif kind not in ("sc", "qa"):
        problems.append("kind: allowed: sc, qa")
    if problems:
        return None
    document = identity[: suffix.start()] + identity[suffix.end() :] if suffix else identity
    return Row(identity, document, kind, task, source, output, line)


def _question(record: dict[str, Any], text: Callable[[str], str], problems: list[str]) -> Question | None:
    subject, question = text("subject"), text("question")
    choices, answer, split = record.get("choices"), record.get("answer"), record.get("split", "test")
    if not (isinstance(choices, list) and len(choices) == 4 and all(isinstance(c, str) for c in choices)):
        problems.append("choices: allowed: a list of four texts")
    if isinstance(answer, str) and answer in "ABCD" and len(answer) == 1:
        answer = "ABCD".index(answer)
    if isinstance(answer, bool) or answer not in (0, 1, 2, 3):
        problems.append("answer: allowed: 0 to 3 or A to D")
    if split not in ("dev", "test"):
        problems.append("split: allowed: dev, test")
    if problems or not isinstance(choices, list):
        return None
    identity = f"{split}/{subject}/{stable_hash(question, *choices)}"
    return Question(identity, subject, question, tuple(choices), int(answer or 0), split)


def address(uri: str) -> str:
    """Return a URI for display, without the scheme ``file://``."""
    return uri.removeprefix("file://")
