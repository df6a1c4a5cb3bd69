"""The whole way with a store on a real S3 server, steps being processes of this machine."""

from __future__ import annotations

import json
from pathlib import Path

from expunge_jobs.inputs import pinning

from tests.support.runs import SLOWER, attempts, begin, command, finished_steps, wait_for, weights
from tests.support.s3server import BUCKET, S3Server


def test_a_run_on_s3_is_the_same_run(tiny: Path, finished: Path, server: S3Server, tmp_path: Path) -> None:
    store = f"s3://{BUCKET}/whole?endpoint_url={server.url}"
    done = command("run", str(tiny), "--store", store, store=tmp_path)
    assert done.returncode == 0, done.stderr
    objects = server.folder / "objects" / BUCKET / "whole"
    assert weights(objects) == weights(finished)
    assert not list(tmp_path.iterdir()), "nothing beside the bucket"
    counts = attempts(objects)

    again = command("run", str(tiny), "--store", store, store=tmp_path)
    assert again.returncode == 0
    assert again.stdout == done.stdout == command("results", str(tiny), store=finished).stdout
    assert attempts(objects) == counts

    plan = json.loads(command("plan", str(tiny), "--store", store, "-o", "json", store=tmp_path).stdout)
    assert {s["state"] for s in plan["steps"]} == {"done"}
    logs = command("logs", str(tiny), "finetune over", "--store", store, store=tmp_path).stdout
    assert "loss" in logs and "done" in logs
    pulled = command("pull", str(tiny), "--store", store, "--to", str(tmp_path / "out"), store=tmp_path)
    assert pulled.returncode == 0, pulled.stderr
    assert (tmp_path / "out" / "adapter_model.safetensors").is_file()
    full = command("pull", str(tiny), "--full", "--store", store, "--to", str(tmp_path / "full"), store=tmp_path)
    assert full.returncode == 0, full.stderr
    assert (tmp_path / "full" / "model.safetensors").is_file()


def test_stopped_and_gone_on_with(tiny: Path, finished_slower: Path, server: S3Server, tmp_path: Path) -> None:
    store = f"s3://{BUCKET}/stopped?endpoint_url={server.url}"
    process = begin("run", str(tiny), *SLOWER, "--store", store, store=tmp_path)
    wait_for(process, "started   finetune under")
    process.kill()
    process.communicate()
    objects = server.folder / "objects" / BUCKET / "stopped"
    before = {f: n for f, n in attempts(objects).items() if f in finished_steps(objects)}
    assert before
    done = command("run", str(tiny), *SLOWER, "--store", store, store=tmp_path)
    assert done.returncode == 0, done.stderr
    assert weights(objects) == weights(finished_slower)
    after = attempts(objects)
    assert {f: after[f] for f in before} == before, "no finished step ran again"


def test_a_store_that_cannot_be_used_is_told_at_once(tiny: Path, server: S3Server, tmp_path: Path) -> None:
    for verb in ("run", "plan", "status", "results", "logs"):
        done = command(verb, str(tiny), "--store", f"s3://nothing-here/x?endpoint_url={server.url}", store=tmp_path)
        assert done.returncode == 2
        assert done.stderr.splitlines()[-1].startswith("error: the store s3://nothing-here/x: there is no such bucket")
        assert done.stdout == ""
    done = command("run", str(tiny), "--store", "s3://bucket/x?endpoint_url=http://127.0.0.1:9", store=tmp_path)
    assert done.returncode == 3
    assert "s3://bucket/x is not reachable" in done.stderr
    assert "Traceback" not in done.stderr


def test_uploaded_rows_are_the_same_rows(tiny: Path, server: S3Server, tmp_path: Path) -> None:
    store = f"s3://{BUCKET}/uploaded?endpoint_url={server.url}"
    rows = tmp_path / "mine.jsonl"
    rows.write_bytes(pinning.read("builtin://people/forget?documents=2"))
    done = command("upload", str(rows), "--store", store, store=tmp_path)
    assert done.returncode == 0, done.stderr
    address = done.stdout.strip()
    assert address.startswith(f"s3://{BUCKET}/uploaded/inputs/")

    def keys(where: str) -> list[str]:
        words = ["--set", f"data.forget={where}", "--set", "data.nonmembers=null", "--store", store, "-o", "json"]
        said = command("plan", str(tiny), *words, store=tmp_path)
        assert said.returncode == 0, said.stderr
        return [s["key"] for s in json.loads(said.stdout)["steps"] if s["kind"] != "report"]  # its key has the words

    assert keys(address) == keys(str(rows))
    missing = command("upload", str(tmp_path / "none.jsonl"), "--store", store, store=tmp_path)
    assert missing.returncode == 2
    assert missing.stderr.startswith("error: ")
    assert "no such file" in missing.stderr
