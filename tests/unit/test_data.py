"""Reading data files: both formats, kinds from ids, and each bad row by file, line and field, never by content."""

from __future__ import annotations

import json
from typing import Any

import pytest
from expunge_jobs.core.errors import BadTask
from expunge_jobs.data.rows import DataError, Document, Item, Question, Row, parse

CANARY = "xyzzy-canary"


def record(**fields: Any) -> dict[str, Any]:
    """A good row, but for ``fields``; one that is ... is left out."""
    row = {"id": "doc1sc1", "input": "in", "output": "out", "task": "Task1", **fields}
    return {k: v for k, v in row.items() if v is not ...}


def lines(*records: Any) -> bytes:
    return "".join(json.dumps(r) + "\n" for r in records).encode()


def problems(content: bytes, role: str = "forget") -> list[str]:
    with pytest.raises(DataError) as caught:
        parse(content, "rows.jsonl", role)
    assert isinstance(caught.value, BadTask)
    assert CANARY not in str(caught.value)
    return caught.value.problems


def rows(items: list[Item]) -> list[Row]:
    assert all(isinstance(i, Row) for i in items)
    return [i for i in items if isinstance(i, Row)]


def test_json_lines() -> None:
    content = lines(record(), record(id="doc1qa0", output="42", extra=CANARY))
    assert parse(content, "x") == [
        Row("doc1sc1", "doc1", "sc", "Task1", "in", "out"),
        Row("doc1qa0", "doc1", "qa", "Task1", "in", "42"),
    ]


@pytest.mark.parametrize("change", ["bom", "crlf", "blank lines", "no last newline", "line separators in texts"])
def test_json_lines_of_every_kind(change: str) -> None:
    text = lines(record(), record(id="doc1qa0")).decode()
    if change == "bom":
        content = text.encode("utf-8-sig")
    elif change == "line separators in texts":
        content = (
            json.dumps(record(input="a\u2028b\x85c"), ensure_ascii=False).encode() + b"\n" + lines(record(id="xqa0"))
        )
    else:
        new = {"crlf": text.replace("\n", "\r\n"), "blank lines": "\n\n" + text.replace("\n", "\n \n")}
        content = new.get(change, text.rstrip("\n")).encode()
    assert len(parse(content, "x")) == 2


def test_columns_of_lists_and_of_objects() -> None:
    records = [record(), record(id="doc2qa11", output="é")]
    as_lists = {k: [r[k] for r in records] for k in records[0]}
    as_objects = {k: {str(n): v for n, v in enumerate(vs)} for k, vs in as_lists.items()}
    for whole in (as_lists, as_objects):
        assert parse(json.dumps(whole, indent=1).encode(), "x") == parse(lines(*records), "x")


def test_columns_are_joined_by_their_index() -> None:
    whole = {k: {"0": v, "1": v + "2"} for k, v in record(id="xsc1").items()}
    whole["input"] = dict(reversed(whole["input"].items()))
    assert [(r.id, r.input) for r in rows(parse(json.dumps(whole).encode(), "x"))] == [("xsc1", "in"), ("xsc12", "in2")]


def test_columns_that_do_not_match() -> None:
    whole: dict[str, Any] = {k: [v, v] for k, v in record().items()}
    assert "rows.jsonl" in problems(json.dumps({**whole, "output": ["x"]}).encode())[0]
    indexed = {k: {"0": v, CANARY: v} for k, v in record().items()}
    assert problems(json.dumps({**indexed, "output": {"0": "x", "7": "y"}}).encode())


def test_documents_as_fields_are_no_columns_to_be_named() -> None:
    """{id: {input, output}, ...} is a likely mistake, and its field names are content."""
    assert problems(json.dumps({CANARY: {"input": "x", "output": "y"}, "b": {"input": "x"}}).encode())
    assert problems(json.dumps({CANARY: {"input": "x"}, "b": {"input": "x"}}).encode())


@pytest.mark.parametrize(
    ("identity", "kind", "document"),
    [
        ("abcsc1", "sc", "abc"),
        ("abcqa0", "qa", "abc"),
        ("abcqa12", "qa", "abc"),
        ("abcsc345", "sc", "abc"),
        ('"abcqa12"', "qa", '"abc"'),
        ('abcsc1"', "sc", 'abc"'),
        ("sc1qa2", "qa", "sc1"),
        ("a-bqa-scqa3", "qa", "a-bqa-sc"),
        ("0f9dsc7", "sc", "0f9d"),
    ],
)
def test_kind_from_id(identity: str, kind: str, document: str) -> None:
    [row] = rows(parse(lines(record(id=identity)), "x"))
    assert (row.id, row.kind, row.document) == (identity, kind, document)


@pytest.mark.parametrize("identity", ["abc", "abcsc", "sc1x", "abcSC1", 'abcsc1""', "abc12"])
def test_an_id_that_does_not_tell_its_kind(identity: str) -> None:
    [problem] = problems(lines(record(), record(id=identity)))
    assert problem.startswith("rows.jsonl:2: id: ") and "kind" in problem and identity not in problem


def test_a_kind_that_is_said_wins() -> None:
    [row, other] = rows(parse(lines(record(id="abc", kind="qa"), record(id="xsc1", kind="qa")), "x"))
    assert (row.kind, row.document, other.kind) == ("qa", "abc", "qa")


@pytest.mark.parametrize("field", ["id", "input", "output", "task"])
@pytest.mark.parametrize("value", [..., None, 1, True, ["x"], {"x": "y"}, "", "  "])
def test_a_bad_field_is_named(field: str, value: Any) -> None:
    first = record(id=f"{CANARY}sc1", input=CANARY, output=CANARY, task=CANARY)
    [problem] = problems(
        lines(
            first,
            {**record(id="dsc2", output=CANARY), field: value}
            if value is not ...
            else record(**{"id": "dsc2", "output": CANARY, field: ...}),
        )
    )
    assert problem.startswith(f"rows.jsonl:2: {field}: ")


@pytest.mark.parametrize("kind", ["xx", "SC", 1, ["sc"], CANARY])
def test_a_bad_kind(kind: Any) -> None:
    [problem] = problems(lines(record(kind=kind)))
    assert problem.startswith("rows.jsonl:1: kind: ") and "sc, qa" in problem


def test_every_bad_row_at_once_up_to_a_limit() -> None:
    bad = [record(id=f"{CANARY}{n}", output=1) for n in range(50)]
    with pytest.raises(DataError) as caught:
        parse(lines(*bad), "rows.jsonl")
    assert len(caught.value.problems) == 20 and "80 more" in str(caught.value)
    assert CANARY not in str(caught.value)


def test_two_problems_of_one_row() -> None:
    found = problems(lines(record(output="", task=...)))
    assert [p.split(":")[1:3] for p in found] == [["1", " output"], ["1", " task"]]


@pytest.mark.parametrize(
    ("content", "where"),
    [
        (lines(record()) + CANARY.encode() + b"\n", "rows.jsonl:2: not JSON"),
        (lines(record()) + b'{"id": "' + CANARY.encode(), "rows.jsonl:2: not JSON"),
        (lines(record(), CANARY), "rows.jsonl:2: "),
        (lines(record(), [CANARY]), "rows.jsonl:2: "),
        (lines(record(), None), "rows.jsonl:2: "),
        (lines([CANARY, CANARY]), "rows.jsonl:1: "),
        (b"[" * 100_000, "rows.jsonl:1: not JSON"),
        (b"", "rows.jsonl: no rows"),
        (b"\n \n", "rows.jsonl: no rows"),
        (b"{}", "rows.jsonl:1: "),
        (CANARY.encode("utf-16"), "rows.jsonl: not UTF-8"),
        (b"\x80" + CANARY.encode(), "rows.jsonl: not UTF-8"),
        (b'{"id": []}', "rows.jsonl: no rows"),
    ],
)
def test_a_file_that_holds_no_rows(content: bytes, where: str) -> None:
    assert problems(content)[0].startswith(where)


def test_duplicate_ids_name_both_lines() -> None:
    identity = f"{CANARY}sc1"
    [problem] = problems(lines(record(id=identity), record(id="other-sc1"), record(id=identity, input="else")))
    assert problem.startswith("rows.jsonl:3: id: ") and "line 1" in problem


def test_documents_for_membership() -> None:
    content = lines({"id": "a", "document": "text"}, record())
    assert parse(content, "x", "nonmembers") == [
        Document("a", "text"),
        Row("doc1sc1", "doc1", "sc", "Task1", "in", "out"),
    ]
    [problem] = problems(lines({"id": CANARY, "document": ""}), "members")
    assert problem.startswith("rows.jsonl:1: document: empty")
    assert problems(lines({"id": "a", "document": "text"}), "forget")


def question(**fields: Any) -> dict[str, Any]:
    return {"subject": "law", "question": "q", "choices": ["a", "b", "c", "d"], "answer": 1, **fields}


def test_questions() -> None:
    content = lines(question(), question(question="r", answer="D", split="dev"))
    found = parse(content, "x", "mmlu")
    assert all(isinstance(q, Question) for q in found)
    assert [(q.question, q.answer, q.split) for q in found if isinstance(q, Question)] == [
        ("q", 1, "test"),
        ("r", 3, "dev"),
    ]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("choices", ["a", "b", "c"]),
        ("choices", "abcd"),
        ("choices", [1, 2, 3, 4]),
        ("answer", 4),
        ("answer", "E"),
        ("answer", ""),
        ("answer", "AB"),
        ("answer", True),
        ("answer", None),
        ("answer", [1]),
        ("split", "train"),
        ("subject", ""),
        ("question", 1),
    ],
)
def test_bad_questions(field: str, value: Any) -> None:
    [problem] = problems(lines(question(**{"question": CANARY, field: value})), "mmlu")
    assert problem.startswith(f"rows.jsonl:1: {field}: ")


def test_a_file_that_is_wrong_everywhere_is_told_in_twenty_lines_and_a_number() -> None:
    with pytest.raises(DataError) as caught:
        parse(b"1\n" * 100_000, "x" * 2000)
    assert len(caught.value.problems) == 20
    assert "... and 99980 more" in str(caught.value)


@pytest.mark.parametrize(
    "content",
    [
        b'{"id": "asc1", "input": "a", "output": "b", "task": "t"}\n' * 11,
        b'{"id": [' + b'"x",' * 10 + b'"x"]}',
        b'{"a": [' + b"{}," * 200 + b"{}]}",
        b"[" * 500,
        b"1," * 1000,
    ],
)
def test_more_rows_than_a_reader_takes_are_refused(content: bytes) -> None:
    with pytest.raises(DataError, match="more than 10 rows|too many JSON values for 10 rows"):
        parse(content, "x", "forget", 10)


@pytest.mark.parametrize("field", ["id", "input", "output", "task"])
def test_half_of_a_surrogate_pair_is_no_text(field: str) -> None:
    whole = {"id": "asc1", "input": "a", "output": "b", "task": "t"}
    row = json.dumps(
        whole | {field: f"{whole[field]}\ud83d"}
    ).encode()  # as JSON that was cut in the middle of an emoji
    with pytest.raises(DataError, match=f"rows.jsonl:1: {field}: half of a surrogate pair"):
        parse(row, "rows.jsonl")
    whole[field] = f"{whole[field]}\U0001f600"
    assert parse(json.dumps(whole | {"kind": "sc"}).encode(), "rows.jsonl"), "a whole pair is a character"
