"""The whole way by the shipped command: run, run again, results, pull, a step that fails."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.runs import attempts, command, weights

NO_SMALL_FILE_SYSTEM = 77


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
    before = attempts(finished)
    done = command("run", str(tiny), store=finished)
    assert done.returncode == 0
    assert "11 already done, 0 to run" in done.stderr
    assert attempts(finished) == before


def test_another_density_is_a_merge_its_evaluation_and_a_report(tiny: Path, finished: Path) -> None:
    plan = json.loads(command("plan", str(tiny), "--set", "merge.density=0.5", "-o", "json", store=finished).stdout)
    assert sorted(s["kind"] for s in plan["steps"] if s["state"] != "done") == ["evaluate", "merge", "report"]


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


@pytest.mark.parametrize(
    ("wild", "said"),
    [
        (["--set", "specialists.over.learning_rate=1e30", "--set", "specialists.over.clip=1e30"], "at training step"),
        (["--set", "specialists.over.learning_rate=1e-300"], "every B matrix is still zero"),
    ],
    ids=["no number", "no update"],
)
def test_training_that_went_wrong_fails_the_step_by_name(
    tiny: Path, finished: Path, wild: list[str], said: str
) -> None:
    done = command("run", str(tiny), *wild, store=finished)
    assert done.returncode == 1
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    status = json.loads(command("status", str(tiny), *wild, "-o", "json", store=finished).stdout)
    states = {s["name"]: s["state"] for s in status["steps"]}
    assert states["finetune over"] == "failed"
    assert states["merge"] == "blocked"
    assert states["evaluate under"] == "done"


def test_pulled_model_has_the_adapter_folded_in(tiny: Path, finished: Path, tmp_path: Path) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    assert command("pull", str(tiny), "--to", str(tmp_path / "adapter"), store=finished).returncode == 0
    assert command("pull", str(tiny), "--full", "--to", str(tmp_path / "model"), store=finished).returncode == 0
    base = AutoModelForCausalLM.from_pretrained(next(finished.glob("artifacts/memorize/*/attempts/*/model")))
    beside = PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    folded = AutoModelForCausalLM.from_pretrained(tmp_path / "model").eval()
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        torch.testing.assert_close(folded(ids).logits, beside(ids).logits, atol=1e-5, rtol=1e-4)


def test_a_damaged_artifact_is_named_with_what_to_do(tiny: Path, finished: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    shutil.copytree(finished, store)
    for file in store.glob("artifacts/finetune/*/attempts/*/adapter/adapter_model.safetensors"):
        file.write_bytes(file.read_bytes()[:-1] + b"?")
    done = command("run", str(tiny), "--set", "merge.density=0.3", store=store)
    assert done.returncode == 1
    assert "damaged artifact" in done.stderr
    assert "adapter_model.safetensors is not what was written" in done.stderr
    assert "`expunge retry` makes it anew, or delete" in done.stderr
    assert "manifest.json and run again" in done.stderr
    assert "retrying" not in done.stderr
    done = command("retry", str(tiny), "--set", "merge.density=0.3", store=store)
    assert done.returncode == 0, done.stderr
    for name in ("over", "under"):
        assert f"finetune {name} is made again: damaged artifact" in done.stderr
    whole = weights(finished)
    assert {k: v for k, v in weights(store).items() if k in whole} == whole


def test_a_full_store_is_told_as_such_and_nothing_is_lost(tiny: Path, finished: Path, tmp_path: Path) -> None:
    """In a mount namespace of its own: a file system of half the size that an undisturbed run needs, then a large one.

    Some sandboxes allow the namespace and not the mount, or ignore its size: the script looks before it runs."""
    run = f"{sys.executable} -m expunge_controller run {tiny} --store {tmp_path}/store"
    half = sum(-(-f.stat().st_size // 4096) * 4 for f in finished.rglob("*") if f.is_file()) // 2
    script = f"""
        mount -t tmpfs -o size={half}k,mode=700 tmpfs {tmp_path} || exit {NO_SMALL_FILE_SYSTEM}
        head -c {2 * half}k /dev/zero > {tmp_path}/filler && exit {NO_SMALL_FILE_SYSTEM}
        rm {tmp_path}/filler
        {run}; echo first=$?
        mount -o remount,size=64m {tmp_path}
        {run}; echo second=$?
        cp -r {tmp_path}/store {tmp_path.parent}/kept
    """
    try:
        done = subprocess.run(
            ["unshare", "--map-root-user", "--mount", "sh", "-c", script], capture_output=True, text=True
        )
    except FileNotFoundError:
        pytest.skip("needs Linux's unshare for a small file system")
    if "unshare failed" in done.stderr or done.returncode == NO_SMALL_FILE_SYSTEM:
        pytest.skip(f"needs a small tmpfs in a mount namespace: {done.stderr.strip() or 'its size is not enforced'}")
    # A step fails (1), or not even that can be written down (2): which, is the chance of who meets the end first.
    assert "first=1" in done.stdout or "first=2" in done.stdout, (half, done.stderr)
    assert "second=0" in done.stdout
    assert "is full" in done.stderr
    assert "no word why" not in done.stderr
    assert "Traceback" not in done.stderr
    assert weights(tmp_path.parent / "kept") == weights(finished)
