"""What the operator remembers over its own death."""

from __future__ import annotations

from pathlib import Path

import pytest
from expunge_controller.operator.beginnings import Beginnings

NEVER_LEFT = []


def die_while_beginning(beginnings: Beginnings, uid: str, mark: str) -> None:
    """As SIGKILL does: what stands after it never runs."""
    NEVER_LEFT.append(beginnings.turn(uid, mark))
    assert NEVER_LEFT[-1].__enter__()


def test_deaths_in_a_row_are_counted(tmp_path: Path) -> None:
    folder = tmp_path / "state"
    assert Beginnings(folder).deaths("a", "1 ") == 0
    for count in (1, 2, 3):
        die_while_beginning(Beginnings(folder), "a", "1 ")
        assert Beginnings(folder).deaths("a", "1 ") == count
    assert Beginnings(folder).deaths("b", "1 ") == 0
    assert Beginnings(folder).deaths("a", "2 ") == 0, "an edit, or a retry, begins anew"
    die_while_beginning(Beginnings(folder), "a", "2 ")
    assert Beginnings(folder).deaths("a", "2 ") == 1


def test_what_came_to_an_end_is_forgotten(tmp_path: Path) -> None:
    beginnings = Beginnings(tmp_path)
    die_while_beginning(Beginnings(tmp_path), "a", "1 ")
    with beginnings.turn("a", "1 ") as now:
        assert now
        assert Beginnings(tmp_path).deaths("a", "1 ") == 2
    assert beginnings.deaths("a", "1 ") == 0
    with pytest.raises(ValueError, match="bad input"), beginnings.turn("a", "1 "):
        raise ValueError("bad input")
    assert beginnings.deaths("a", "1 ") == 0


def test_an_orderly_end_is_no_death(tmp_path: Path) -> None:
    beginnings = Beginnings(tmp_path)
    die_while_beginning(beginnings, "a", "1 ")
    beginnings.close()
    assert Beginnings(tmp_path).deaths("a", "1 ") == 0


def test_a_file_that_the_death_cut_short_is_none(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"mark": "1')
    assert Beginnings(tmp_path).deaths("a", "1 ") == 0


def test_without_a_folder_nothing_is_remembered() -> None:
    beginnings = Beginnings(None)
    with beginnings.turn("a", "1 ") as now:
        assert now
        assert beginnings.deaths("a", "1 ") == 0
    beginnings.close()


def test_what_may_have_been_the_death_is_begun_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or whoever ends the operator twice could have others held, who were begun beside it."""
    died = Beginnings(tmp_path)
    for uid in ("a", "b"):
        die_while_beginning(died, uid, "1 ")
    beginnings = Beginnings(tmp_path)
    with beginnings.turn("c", "1 ") as first:
        assert first
        with beginnings.turn("a", "1 ") as suspect:
            assert not suspect, "not beside another"
        with beginnings.turn("d", "1 ") as new:
            assert not new, "it makes room"
    with beginnings.turn("a", "1 ") as suspect:
        assert suspect
        for uid in ("b", "d"):
            with beginnings.turn(uid, "1 ") as other:
                assert not other
    assert beginnings.deaths("b", "1 ") == 1, "to be refused is no beginning"
    monkeypatch.setattr("expunge_controller.operator.beginnings.time.monotonic", lambda: 1e9)
    with beginnings.turn("d", "1 ") as new:
        assert new
