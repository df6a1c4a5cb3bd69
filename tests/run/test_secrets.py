"""No text or id of a row reaches a log, an error, a manifest, a record or the terminal; failing steps included."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.runs import command

CANARY = "zqxjcanary"


def _rows(path: Path, side: str, **changes: str) -> Path:
    """Rows whose every field but the task holds the canary."""
    with path.open("w") as file:
        for task in ("Task1", "Task2", "Task3"):
            for n in range(3):
                for kind in ("sc", "qa"):
                    row = {
                        "id": f"{CANARY}-{side}-{task}-{n}{kind}1",
                        "input": f"{CANARY} {side} {task} asks {n} {kind}",
                        "output": f"{CANARY} answers {side} {n}",
                        "task": task,
                    }
                    file.write(json.dumps(row | changes) + "\n")
    return path


def _everything_said(store: Path) -> str:
    """All that lies in the store but what is made to hold text: rows, models and adapters."""
    said = ""
    for file in store.rglob("*"):
        if file.is_file() and file.name not in ("rows.jsonl", "tokenizer.json") and file.suffix != ".safetensors":
            said += f"{file.relative_to(store)}\n{file.read_text()}\n"
    return said


@pytest.fixture
def sets(tmp_path: Path) -> list[str]:
    out = []
    for side in ("forget", "retain", "probe", "nonmembers"):
        out += ["--set", f"data.{side}={_rows(tmp_path / f'{side}.jsonl', side)}"]
    return out


def test_a_whole_run_and_a_failing_step(tiny: Path, sets: list[str], tmp_path: Path) -> None:
    store = tmp_path / "store"
    done = command("run", str(tiny), *sets, store=store)
    assert done.returncode == 0, done.stderr
    said = done.stdout + done.stderr
    for verb in ("plan", "status", "results", "logs"):
        again = command(verb, str(tiny), *sets, store=store)
        said += again.stdout + again.stderr
    wild = ["--set", "specialists.over.learning_rate=1e30", "--set", "specialists.over.clip=1e30"]
    failed = command("run", str(tiny), *sets, *wild, store=store)
    assert failed.returncode == 1
    logs = command("logs", str(tiny), *sets, *wild, store=store)
    said += failed.stdout + failed.stderr + logs.stdout + logs.stderr + _everything_said(store)
    assert "at training step" in said
    assert CANARY not in said.lower()


@pytest.mark.parametrize("field", ["id", "input", "output"])
def test_bad_rows(tiny: Path, sets: list[str], tmp_path: Path, field: str) -> None:
    changes = {"id": f"{CANARY}-no-kind"} if field == "id" else {field: ""}
    bad = ["--set", f"data.forget={_rows(tmp_path / 'bad.jsonl', 'forget', **changes)}"]
    done = command("run", str(tiny), *sets, *bad, store=tmp_path / "store")
    assert done.returncode == 2
    assert f"bad.jsonl:1: {field}" in done.stderr
    assert CANARY not in (done.stdout + done.stderr).lower()
    assert "Traceback" not in done.stderr


def test_an_input_that_changes_under_the_run_fails_the_step(tiny: Path, sets: list[str], tmp_path: Path) -> None:
    from tests.support.runs import SLOWER, begin, wait_for

    process = begin("run", str(tiny), *sets, *SLOWER, store=tmp_path / "store")
    wait_for(process, "started   memorize")
    _rows(tmp_path / "nonmembers.jsonl", "others")
    _, err = process.communicate()
    assert process.returncode == 1
    assert "has changed since the run was planned" in err
    assert CANARY not in err.lower()
