"""What an experiment of a namespace may read."""

from __future__ import annotations

from expunge_controller.operator.config import own_part
from expunge_controller.planning.allowed import is_allowed


def test_inputs_lie_below_an_allowed_prefix() -> None:
    allowed = ["s3://bucket/team-a", "hf://"]
    assert is_allowed("s3://bucket/team-a/rows.jsonl", allowed)
    assert is_allowed("hf://org/name@main", allowed)
    assert not is_allowed("s3://bucket/team-ab/rows.jsonl", allowed)
    assert not is_allowed("s3://bucket/team-a/../team-b/rows.jsonl", allowed)
    assert not is_allowed("file:///etc/passwd", allowed)
    assert not is_allowed("rows.jsonl", allowed)
    assert not is_allowed("s3://bucket/team-a", ["s3://bucket/team-a/"])


def test_nobody_sends_the_operator_elsewhere() -> None:
    own, query = own_part("s3://bucket/p?endpoint_url=http://s3", "team-a")
    assert own + query == "s3://bucket/p/team-a?endpoint_url=http://s3"
    assert is_allowed(f"{own}/rows.jsonl", [own], query)
    assert is_allowed(f"{own}/rows.jsonl{query}", [own], query)
    assert not is_allowed(f"{own}/rows.jsonl?endpoint_url=http://evil", [own], query)
    assert not is_allowed("s3://bucket/team-a/x?endpoint_url=http://evil", ["s3://bucket/team-a"])
