"""How a run looks: plain lines where there is no terminal, live lines where there is one."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from expunge_controller.cli import display
from expunge_controller.experiment.loading import load_experiment
from expunge_controller.planning.plan import Plan
from expunge_controller.planning.resolve import resolve

QUICKSTART = Path(__file__).parents[2] / "examples" / "quickstart.yaml"
PROGRESS = {"step": 3, "steps": 12, "loss": 0.25, "tokens_per_second": 900.0, "seconds_left": 4.0}


@pytest.fixture(scope="module")
def plan() -> Plan:
    return resolve(load_experiment(QUICKSTART)).plan


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def _play(plan: Plan) -> None:
    over, under, _ = (s for s in plan.steps if s.kind == "finetune")
    with display.make_display(plan) as shown:
        shown.started(over)
        shown.started(under)
        shown.progress({over.key: PROGRESS, under.key: {}})
        shown.failed(over, "killed by SIGTERM", again=True)
        shown.failed(over, "the loss is nan", again=False)
        shown.finished(under, 2.5)
        shown.finished(under, 0.0)
        shown.running_elsewhere(over)


def test_plain_lines(plan: Plan, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(display, "PROGRESS_SECONDS", 0.0)
    _play(plan)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines() == [
        "started   finetune over",
        "started   finetune under",
        "running   finetune over: step 3/12, loss 0.250, 900 tokens/s, 4 s left",
        "retrying  finetune over: killed by SIGTERM",
        "FAILED    finetune over: the loss is nan",
        "done      finetune under (2.5 s)",
        "done      finetune under (by another run)",
        "waiting   finetune over: another run on this machine has it",
    ]


def test_live_lines_side_by_side(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = _Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    _play(plan)
    said = terminal.getvalue()
    assert "step 3/12, loss 0.250, 900 tokens/s, 4 s left" in said
    assert "finetune under" in said
    assert "starting" in said
    assert "FAILED    finetune over: the loss is nan" in said


def test_why_a_step_waits_is_said_once_and_only_if_it_lasts(plan: Plan, capsys: pytest.CaptureFixture[str]) -> None:
    (over, *_) = (s for s in plan.steps if s.kind == "finetune")
    now = 0.0
    with display.make_display(plan, clock=lambda: now) as shown:
        shown.progress({over.key: {"reason": "no pod yet"}})
        for _ in range(2):
            shown.progress({over.key: {"reason": "waiting for a node: 1 Insufficient nvidia.com/gpu"}})
            now += display.REASON_SECONDS * 1.1
        shown.progress({over.key: {"reason": "waiting for a node: 1 Insufficient nvidia.com/gpu"}})
        shown.progress({over.key: {"reason": "its pod is starting"}})
        shown.progress({over.key: PROGRESS})
    said = capsys.readouterr().err.splitlines()
    assert said == ["running   finetune over: waiting for a node: 1 Insufficient nvidia.com/gpu"]
