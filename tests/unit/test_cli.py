"""The verbs that run nothing, called in this process: what they print where, their exit codes, what they change."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from expunge_controller.cli.main import main
from expunge_controller.experiment.loading import load_experiment
from expunge_controller.planning.plan import Step
from expunge_controller.planning.resolve import resolve
from expunge_jobs.artifacts.attempts import LOG, Attempt
from expunge_jobs.store import Store

QUICKSTART = str(Path(__file__).parents[2] / "examples" / "quickstart.yaml")
Captured = pytest.CaptureFixture[str]


def _step(name: str) -> Step:
    return next(s for s in resolve(load_experiment(Path(QUICKSTART))).plan.steps if s.name == name)


@pytest.fixture
def path(store: Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Where the store of every verb lies, in a working directory of its own."""
    monkeypatch.setenv("EXPUNGE_STORE", store.uri)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "store"


def test_plan_is_the_contract_and_changes_nothing(path: Path, capsys: Captured) -> None:
    assert main(["plan", QUICKSTART, "-o", "json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["experiment"] == "quickstart"
    assert plan["trials"] == 1
    keys = {s["key"] for s in plan["steps"]}
    for step in plan["steps"]:
        assert {"key", "kind", "name", "trials", "needs", "state"} <= step.keys()
        assert set(step["needs"]) <= keys
        assert step["state"] == ("waiting" if step["needs"] else "to run")
    assert main(["plan", QUICKSTART]) == 0
    assert "0 already done, 19 to run" in capsys.readouterr().out
    assert not list(path.rglob("*"))


def test_status_gives_each_step_a_reason(path: Path, capsys: Captured) -> None:
    assert main(["status", QUICKSTART, "-o", "json"]) == 0
    steps = json.loads(capsys.readouterr().out)["steps"]
    assert all(s["reason"] for s in steps if s["state"] != "done")
    assert main(["status", QUICKSTART]) == 0
    assert "waiting for memorize, finetune over, finetune under" in capsys.readouterr().out


def test_results_before_anything_ran_have_every_row_and_why_it_is_empty(path: Path, capsys: Captured) -> None:
    assert main(["results", QUICKSTART, "-o", "json"]) == 0
    models = json.loads(capsys.readouterr().out)["models"]
    controls = [f"control:{name}@{scale}" for scale in (0.5, 0.75, 1.25, 1.5) for name in ("over", "under")]
    assert [m["model"] for m in models] == ["base", "over", "under", "pooled", "merged", *controls]
    for model in models:
        assert model["metrics"]["task_aggregate"] is None
        assert "not evaluated yet" in model["reasons"]["task_aggregate"]
    assert main(["results", QUICKSTART]) == 0
    assert "not evaluated yet" in capsys.readouterr().out


@pytest.mark.parametrize("what", ["presets", "objectives", "methods", "metrics"])
def test_list_says_a_line_on_each(what: str, capsys: Captured) -> None:
    assert main(["list", what]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) > 3
    assert all(len(line.split(maxsplit=1)) == 2 for line in lines)


def test_logs_in_words(path: Path, store: Store, tmp_path: Path, capsys: Captured) -> None:
    step = _step("merge")
    attempt = Attempt(store, step.ref, "a1")
    attempt.begin("here", 1)
    events = [
        {"event": "start", "kind": "merge"},
        {"event": "publish"},
        {"other": 1},
        {"event": "failed", "reason": "no room"},
        {"event": "progress", "step": 2, "steps": 9, "loss": 0.5, "tokens_per_second": 1200, "seconds_left": 3.2},
    ]
    store.put(f"{attempt.folder}/{LOG}", b"".join(json.dumps(e).encode() + b"\n" for e in events) + b"plain words\n")
    assert main(["logs", QUICKSTART, "merge"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("--- merge (")
    assert said[1:] == [
        "start: kind merge",
        "publish",
        '{"other": 1}',
        "failed: reason no room",
        "step 2/9, loss 0.500, 1,200 tokens/s, 3 s left",
        "plain words",
    ]
    Attempt(store, step.ref, "a2").begin("here", 1)
    assert main(["logs", QUICKSTART, "--store", store.uri, step.key[:8]]) == 0
    assert "(no log)" in capsys.readouterr().out
    assert main(["logs", QUICKSTART]) == 0
    assert "plain words" in capsys.readouterr().out


def test_a_log_gives_a_terminal_no_orders(path: Path, store: Store, capsys: Captured) -> None:
    attempt = Attempt(store, _step("merge").ref, "a1")
    attempt.begin("here", 1)
    event = json.dumps({"event": "notice", "text": "\x1b[2J"}).encode()
    odd = [b'{"event": "progress"}', b'{"event": "progress", "step": 1, "steps": 2, "loss": "x"}', b"[" * 100_000]
    lines = [event, b"\x1b]0;mine\x07words", *odd, b'{"event": "\\ud800"}', b"the end"]
    store.put(f"{attempt.folder}/{LOG}", b"\n".join(lines))
    assert main(["logs", QUICKSTART, "merge"]) == 0
    said = capsys.readouterr().out.splitlines()[1:]
    assert said == [
        "notice: text \\x1b[2J",
        "\\x1b]0;mine\\x07words",
        *(o.decode() for o in odd),
        "\\ud800",
        "the end",
    ]


def test_pull_writes_the_adapter_once_and_says_that_it_alone_does_not_forget(
    path: Path, store: Store, tmp_path: Path, capsys: Captured
) -> None:
    source, to = tmp_path / "source", tmp_path / "to"
    (source / "adapter").mkdir(parents=True)
    (source / "adapter" / "adapter_config.json").write_text("{}")
    assert main(["pull", QUICKSTART, "--to", str(to)]) == 2
    assert "merge is not there to be pulled" in capsys.readouterr().err
    step = _step("merge")
    Attempt(store, step.ref, "a1").publish(step.task, source, {}, {}, "cpu", 1)
    assert main(["pull", QUICKSTART, "--to", str(to)]) == 0
    assert "An adapter alone does not forget" in capsys.readouterr().err
    assert [f.name for f in to.iterdir()] == ["adapter_config.json"]
    assert main(["pull", QUICKSTART, "--to", str(to)]) == 2
    assert "holds something already" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["pull", QUICKSTART, "--set", "sweep.seed=[0,1]", "--to", "x"], "2 trials; say which: --trial NAME"),
        (["pull", QUICKSTART, "--set", "sweep.seed=[0,1]", "--to", "x", "--trial", "sed=1"], "did you mean 'seed=1'?"),
        (
            [
                "pull",
                QUICKSTART,
                "--to",
                "x",
                "--set",
                "specialists=null",
                "--set",
                "merge=null",
                "--set",
                "baselines={npo: {preset: npo}}",
            ],
            "specialists: found nothing",
        ),
        (
            [
                "pull",
                QUICKSTART,
                "--to",
                "x",
                "--set",
                "specialists={}",
                "--set",
                "merge=null",
                "--set",
                "baselines={npo: {preset: npo}}",
            ],
            "no merge",
        ),
        (["pull", QUICKSTART], "--to"),
        (["logs", QUICKSTART, "merg"], "did you mean 'merge'?"),
        (["logs", QUICKSTART, "merge", "again"], "unrecognized arguments: again"),
        (["resluts", QUICKSTART], "did you mean 'results'?"),
        (["run", QUICKSTART, "--parallel", "0"], "allowed: 1 or more"),
        (["plan", QUICKSTART, "--store", "ftp://x"], "ftp"),
        (["plan", QUICKSTART, "-o", "yaml"], "choose from"),
        (["list", "metods"], "did you mean 'methods'?"),
        ([], "required"),
    ],
)
def test_wrong_words_are_refused_with_the_right_ones(path: Path, words: list[str], said: str, capsys: Captured) -> None:
    try:
        code = main(words)
    except SystemExit as stopped:
        code = int(str(stopped.code))
    assert code == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert said in captured.err
    assert not list(path.rglob("*"))


def test_version(capsys: Captured) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["--version"])
    assert stopped.value.code == 0
    assert capsys.readouterr().out.startswith("expunge 0.")


def test_a_store_that_is_not_writable_is_told_before_anything_runs(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Captured
) -> None:
    (tmp_path / "file").write_text("")
    assert main(["run", QUICKSTART, "--store", str(tmp_path / "file" / "store")]) == 2
    assert "error:" in capsys.readouterr().err


def test_a_damaged_manifest_is_named(path: Path, store: Store, capsys: Captured) -> None:
    step = _step("evaluate base")
    store.put(f"artifacts/evaluate/{step.key}/manifest.json", b"?")
    assert main(["results", QUICKSTART, "-o", "json"]) == 0
    base = json.loads(capsys.readouterr().out)["models"][0]
    assert "is not a manifest: delete it and run again" in base["reasons"]["task_aggregate"]


def test_a_misspelt_executor_in_the_environment_does_not_run_here(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("EXPUNGE_EXECUTOR", "kubernets")
    with pytest.raises(SystemExit) as caught:
        main(["status", "experiment.yaml"])
    assert caught.value.code == 2
    assert "EXPUNGE_EXECUTOR is 'kubernets'; allowed: local, kubernetes" in capsys.readouterr().err


def test_another_kind_of_gpu(capsys: Captured) -> None:
    words = ["render", QUICKSTART, "--store", "s3://bucket/x", "--image", "registry.test/jobs:1"]
    for given, resource in (([], "nvidia.com/gpu"), (["--gpu", "amd.com/gpu"], "amd.com/gpu")):
        assert main([*words, *given]) == 0
        jobs = [j for j in yaml.safe_load_all(capsys.readouterr().out) if j]
        asked = [j["spec"]["template"]["spec"]["containers"][0]["resources"]["limits"] for j in jobs]
        assert {n for limits in asked for n in limits if n.endswith("/gpu")} == {resource}
