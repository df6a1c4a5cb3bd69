"""The whole way by the shipped command: run, run again, results, pull, failures, kills."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import command


def _attempts(store: Path) -> int:
    return len(list(store.glob("artifacts/*/*/attempts/*.json")))


def _weights(store: Path) -> dict[str, str]:
    """SHA-256 by kind, key and file, as the manifests have them."""
    out = {}
    for file in store.glob("artifacts/*/*/manifest.json"):
        manifest = json.loads(file.read_text())
        for part in manifest["files"]:
            out[f"{manifest['kind']}/{manifest['key']}/{part['path']}"] = part["sha256"]
    return out


def test_results_are_the_contract(tiny: Path, finished: Path) -> None:
    results = json.loads(command("results", str(tiny), "-o", "json", store=finished).stdout)
    assert results["experiment"] == "tiny"
    names = [m["model"] for m in results["models"]]
    assert names == ["base", "over", "under", "merged", "control:over@0.5", "control:under@0.5"]
    for model in results["models"]:
        assert model["trial"] == "default"
        assert model["seed"] == 42
        cells = [
            f"{k}/{s}/Task{t}" for k in ("regurgitation", "knowledge") for s in ("forget", "retain") for t in (1, 2, 3)
        ]
        for name in [
            "task_aggregate",
            "mia_auc",
            "mia_score",
            "probe",
            "extraction/forget",
            "extraction/retain",
            *cells,
        ]:
            assert isinstance(model["metrics"][name], float), name
        for name in ("mmlu", "final"):
            assert model["metrics"][name] is None
            assert "data.mmlu" in model["reasons"][name]


def test_a_second_run_runs_nothing(tiny: Path, finished: Path) -> None:
    before = _attempts(finished)
    done = command("run", str(tiny), store=finished)
    assert done.returncode == 0
    assert "10 already done, 0 to run" in done.stderr
    assert _attempts(finished) == before


def test_another_density_is_a_merge_and_its_evaluation(tiny: Path, finished: Path) -> None:
    plan = json.loads(command("plan", str(tiny), "--set", "merge.density=0.5", "-o", "json", store=finished).stdout)
    assert sorted(s["kind"] for s in plan["steps"] if s["state"] != "done") == ["evaluate", "merge"]


def test_pulled_adapter_is_a_peft_directory(tiny: Path, finished: Path, tmp_path: Path) -> None:
    done = command("pull", str(tiny), "--to", str(tmp_path / "adapter"), store=finished)
    assert done.returncode == 0
    assert "does not forget" in done.stderr
    assert (tmp_path / "adapter" / "adapter_model.safetensors").is_file()
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base = next(finished.glob("artifacts/memorize/*/attempts/*/model"))
    PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), tmp_path / "adapter")
    again = command("pull", str(tiny), "--to", str(tmp_path / "adapter"), store=finished)
    assert again.returncode == 2


@pytest.mark.parametrize("after", [0.5, 11.0, 14.0])
def test_killed_and_started_again_ends_with_the_same_weights(
    tiny: Path, finished: Path, tmp_path: Path, after: float
) -> None:
    store = tmp_path / "store"
    environment = os.environ | {"EXPUNGE_STORE": str(store)}
    run = subprocess.Popen(
        [sys.executable, "-m", "expunge_controller", "run", str(tiny)], env=environment, stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )  # fmt: skip
    time.sleep(after)
    run.send_signal(signal.SIGKILL)
    run.wait()
    done = {f.parent for f in store.glob("artifacts/*/*/manifest.json")}
    counts = {d: len(list((d / "attempts").glob("*.json"))) for d in done}
    assert command("run", str(tiny), store=store).returncode == 0
    assert _weights(store) == _weights(finished)
    for folder, count in counts.items():
        assert len(list((folder / "attempts").glob("*.json"))) == count, "a finished step ran again"


def test_a_loss_that_is_no_number_fails_the_step_by_name(tiny: Path, finished: Path) -> None:
    wild = ["--set", "specialists.over.learning_rate=1e30", "--set", "specialists.over.clip=1e30"]
    done = command("run", str(tiny), *wild, store=finished)
    assert done.returncode == 1
    assert "at training step" in done.stderr
    assert "Traceback" not in done.stderr
    status = json.loads(command("status", str(tiny), *wild, "-o", "json", store=finished).stdout)
    states = {s["name"]: s["state"] for s in status["steps"]}
    assert states["finetune over"] == "failed"
    assert states["merge"] == "blocked"
    assert states["evaluate under"] == "done"
