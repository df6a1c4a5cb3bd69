"""What of others' words reaches a terminal."""

from __future__ import annotations

from pathlib import Path

import pytest
from expunge_controller.cli.tables import aligned
from expunge_controller.execution.kubernetes.diagnosis import cut
from expunge_controller.experiment.loading import load_experiment
from expunge_controller.operator.conditions import conditions
from expunge_controller.planning.resolve import resolve
from expunge_controller.text import printable
from hypothesis import given
from hypothesis import strategies as st

QUICKSTART = Path(__file__).parents[2] / "examples" / "quickstart.yaml"


@pytest.mark.parametrize(
    ("text", "seen"),
    [
        ("\x1b]0;title\x07", "\\x1b]0;title\\x07"),
        ("a\rb\x08c\x7f", "a\\rb\\x08c\\x7f"),
        ("\x9b31mred", "\\x9b31mred"),
        ("abc\u202ednuorg", "abc\\u202ednuorg"),
        ("a\u2028b\u200bc\U000e0041\ud800", "a\\u2028b\\u200bc\\U000e0041\\ud800"),
        ("two\nlines\tand Ünïcödé 漢字 🙂", "two\nlines\tand Ünïcödé 漢字 🙂"),
    ],
)
def test_what_a_terminal_would_obey_is_written_out(text: str, seen: str) -> None:
    assert printable(text) == seen


@given(st.text())
def test_nothing_that_is_obeyed_is_left(text: str) -> None:
    assert not [c for c in printable(text) if (ord(c) < 32 and c not in "\t\n") or 127 <= ord(c) < 160]


def test_events_and_conditions_have_none_of_it() -> None:
    assert cut("why\x1b[2J") == "why\\x1b[2J"
    (said, *_) = conditions("Failed", "a pod's last words: \x1b[2J", 1, [], "now")
    assert said["message"] == "a pod's last words: \\x1b[2J"


def test_a_step_s_name_has_none_of_it() -> None:
    loaded = load_experiment(QUICKSTART, [r'sweep={data.separator: ["-", "\x1b[2J"]}'])
    assert [t.values["data.separator"] for t in loaded.trials] == ["-", "\x1b[2J"]
    assert [t.name for t in loaded.trials] == ["data.separator=-", "data.separator=\\x1b[2J"]
    assert not [s.name for s in resolve(loaded).plan.steps if "\x1b" in s.name]


def test_a_cell_of_a_table_is_one_line() -> None:
    assert aligned(["A", "B"], [["x\nfalse row", "1"]]).splitlines() == ["A             B", "x\\nfalse row  1"]
