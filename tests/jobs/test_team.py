"""Several processes at one step: two on this machine's cores, by gloo, as GPUs by NCCL. The same scores as one
process, and weights that differ by how floating-point sums are grouped.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from expunge_jobs.artifacts.attempts import End, attempts, checkpoints_of
from expunge_jobs.artifacts.manifests import Manifest, fetch, read_manifest
from expunge_jobs.core.errors import ExitCode
from expunge_jobs.runtime.distributed import WorkerGroup
from expunge_jobs.runtime.launch import outcome
from expunge_jobs.store import open_store
from expunge_jobs.tasks.references import ArtifactRef
from expunge_jobs.tasks.settings import Architecture, EvaluateSettings, MemorizeSettings
from expunge_jobs.tasks.tasks import EvaluateTask, FinetuneTask, MemorizeTask, Task
from safetensors.torch import load_file

from tests.jobs import tiny_models as tiny

TOLERANCE = 1e-4
"""Of a weight, after all steps. Measured: 2e-5 for the fine-tune, 6e-7 for memorize."""


class Teams:
    """Runs tasks by the shipped program, and ends what is left."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._begun: list[subprocess.Popen[str]] = []

    def begin(self, task: Task, store: str, processes: int, **environment: str) -> subprocess.Popen[str]:
        given = os.environ | {
            "EXPUNGE_TASK": task.to_json(),
            "EXPUNGE_STORE": str(self.folder / store),
            "EXPUNGE_THREADS": str(processes),
            "EXPUNGE_PROCESSES": str(processes),
            **environment,
        }
        process = subprocess.Popen(
            [sys.executable, "-m", "expunge_jobs"], env=given, stdout=subprocess.PIPE, text=True, start_new_session=True
        )
        self._begun.append(process)
        return process

    def run(self, task: Task, store: str, processes: int) -> tuple[Manifest, Path]:
        """The receipt and the files of a finished step."""
        process = self.begin(task, store, processes)
        out, _ = process.communicate(timeout=120)
        assert process.returncode == 0, out
        opened, ref = open_store(str(self.folder / store)), ArtifactRef(kind=task.kind, key=task.key())
        assert len(attempts(opened, ref)) == 1
        manifest = read_manifest(opened, ref)
        assert manifest is not None
        assert manifest.processes == processes
        return manifest, fetch(opened, ref, self.folder)

    def close(self) -> None:
        for process in self._begun:
            process.kill()
            process.communicate()


@pytest.fixture
def teams(tmp_path: Path) -> Iterator[Teams]:
    teams = Teams(tmp_path)
    yield teams
    teams.close()


def memorize(folder: Path, epochs: int = 3) -> MemorizeTask:
    architecture = Architecture(vocab_size=320, hidden_size=32, layers=1, heads=2, intermediate_size=64)
    learn = MemorizeSettings(epochs=epochs, batch_size=5, learning_rate=1e-3, stop_at=None)
    return MemorizeTask(data=tiny.task_data(folder), settings=learn, architecture=architecture)


def same_weights(one: Path, two: Path) -> None:
    first, second = load_file(one), load_file(two)
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert float((tensor - second[name]).abs().max()) < TOLERANCE, name


def test_a_fine_tune(teams: Teams, base_folder: Path, tmp_path: Path) -> None:
    task = FinetuneTask(
        model=tiny.model_ref(base_folder),
        data=tiny.task_data(tmp_path),
        seed=5,
        settings=tiny.settings(objective={"npo": {"weight": 0.4, "normalization": "pooled"}, "nll": 0.3, "kl": 0.3}),
    )
    (alone, one), (together, two) = (teams.run(task, f"store{n}", n) for n in (1, 2))
    same_weights(one / "adapter" / "adapter_model.safetensors", two / "adapter" / "adapter_model.safetensors")
    losses = [[json.loads(x) for x in (f / "losses.jsonl").read_text().splitlines()] for f in (one, two)]
    for line, other in zip(*losses, strict=True):
        assert line == pytest.approx(other, abs=1e-4)
    assert alone.figures["steps"] == together.figures["steps"]


def test_memorize(teams: Teams, tmp_path: Path) -> None:
    (alone, one), (together, two) = (teams.run(memorize(tmp_path), f"store{n}", n) for n in (1, 2))
    same_weights(one / "model" / "model.safetensors", two / "model" / "model.safetensors")
    assert alone.figures == together.figures


def test_an_evaluation(teams: Teams, base_folder: Path, tmp_path: Path) -> None:
    sets = {"forget": tiny.FORGET, "retain": tiny.RETAIN, "nonmembers": tiny.NONMEMBERS}
    task = EvaluateTask(
        model=tiny.model_ref(base_folder),
        data=tiny.task_data(tmp_path, sets),
        settings=EvaluateSettings(batch_size=4, max_new_tokens=8),
    )
    (alone, one), (together, two) = (teams.run(task, f"store{n}", n) for n in (1, 2))
    rows = [[json.loads(x) for x in (f / "rows.jsonl").read_text().splitlines()] for f in (one, two)]
    for row, other in zip(*rows, strict=True):
        assert row == pytest.approx(other, abs=1e-4)
    assert alone.figures["cut_inputs"] == together.figures["cut_inputs"]
    values = [m.figures["metrics"]["regurgitation"]["values"] for m in (alone, together)]
    assert values[0] == pytest.approx(values[1])


def until_it_trains(process: subprocess.Popen[str]) -> None:
    assert process.stdout is not None
    assert any('"progress"' in line for line in process.stdout)


def test_term_leaves_one_checkpoint_and_another_team_goes_on_from_it(teams: Teams, tmp_path: Path) -> None:
    task = memorize(tmp_path, epochs=80)
    _, one = teams.run(task, "undisturbed", 2)
    process = teams.begin(task, "store", 2, EXPUNGE_CHECKPOINT_SECONDS="1000")
    until_it_trains(process)
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == ExitCode.PREEMPTED, out
    store, ref = open_store(str(tmp_path / "store")), ArtifactRef(kind=task.kind, key=task.key())
    assert len([p for p in checkpoints_of(store, ref) if p.endswith(".json")]) == 1
    again = teams.begin(task, "store", 2)
    out, _ = again.communicate(timeout=120)
    assert again.returncode == 0
    assert [e["step"] > 0 for e in map(json.loads, out.splitlines()) if e["event"] == "resumed"] == [True]
    two = fetch(store, ref, tmp_path)
    assert (one / "model" / "model.safetensors").read_bytes() == (two / "model" / "model.safetensors").read_bytes()


def test_when_one_is_killed_all_end(teams: Teams, tmp_path: Path) -> None:
    process = teams.begin(memorize(tmp_path, epochs=4000), "store", 2)
    until_it_trains(process)
    _, second = children(process.pid)
    os.kill(second, signal.SIGKILL)
    process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGKILL
    assert children(process.pid) == []


def test_what_fails_in_all_is_said_once(teams: Teams, base_folder: Path, tmp_path: Path) -> None:
    task = FinetuneTask(
        model=tiny.model_ref(base_folder),
        data=tiny.task_data(tmp_path),
        settings=tiny.settings(learning_rate=1e30),
        seed=5,
    )
    process = teams.begin(task, "store", 2)
    process.communicate(timeout=60)
    assert process.returncode == ExitCode.BAD_TASK
    store, ref = open_store(str(tmp_path / "store")), ArtifactRef(kind=task.kind, key=task.key())
    (record,) = attempts(store, ref)
    end = End.model_validate_json(store.get(f"artifacts/finetune/{ref.key}/attempts/{record.attempt}/end.json")[0])
    assert "lower learning_rate" in end.reason
    assert end.exit_code == ExitCode.BAD_TASK


@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("count", [0, 1, 5, 6])
def test_shares_are_all_of_it_once(size: int, count: int) -> None:
    shares = [WorkerGroup(rank, size).share(range(count)) for rank in range(size)]
    assert sorted(n for share in shares for n in share) == list(range(count))


@pytest.mark.parametrize(
    ("codes", "failures", "expected"),
    [
        ([0, 0], [], 0),
        ([0, 1], [1], 0),  # what counts is published
        ([143, 143], [], 143),
        ([143, 69], [], 69),
        ([69, 143], [], 69),
        ([-9, 143], [], 143),  # ended by the launcher, after its time
        ([1, -9], [1, -9], 137),
        ([1, 65], [1, 65], 65),
        ([1, 143], [1], 1),
    ],
)
def test_the_exit_code_of_a_team(codes: list[int], failures: list[int], expected: int) -> None:
    assert outcome(codes, failures) == expected


def children(pid: int) -> list[int]:
    """Processes that this one has started and that still run, in the order of their start."""
    found = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(p) for p in found.read_text().split()] if found.exists() else []
