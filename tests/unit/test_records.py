"""A generation at work keeps its keys, whatever its inputs and the code's versions have become since."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from expunge_controller.experiment.loading import Loaded, load_experiment
from expunge_controller.planning.plan import make_plan
from expunge_controller.planning.records import write_record
from expunge_controller.planning.resolve import Resolved, load_recorded, resolve
from expunge_jobs.store import Store, open_store
from expunge_jobs.tasks import tasks

QUICKSTART = Path("examples/quickstart.yaml")
NAMESPACE = "team"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(str(tmp_path / "store"))


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    file = tmp_path / "retain.jsonl"
    records = [{"id": f"d{n}sc1", "input": "a", "output": f"b{n}", "task": "Task1"} for n in range(2)]
    file.write_text("".join(json.dumps(r) + "\n" for r in records))
    return file


def begin(store: Store, rows: Path) -> tuple[Loaded, Resolved]:
    loaded = load_experiment(QUICKSTART, [f"data.retain={rows}", "merge.method=ties"])
    resolved = resolve(loaded, stage=True, namespace=NAMESPACE)
    write_record(store, resolved)
    return loaded, resolved


def keys(resolved: Resolved | None) -> list[str]:
    assert resolved is not None
    return [s.key for s in resolved.plan.steps]


def test_what_is_recalled_is_what_was_resolved(store: Store, rows: Path) -> None:
    loaded, resolved = begin(store, rows)
    found = load_recorded(store, loaded, resolved.digest, NAMESPACE)
    assert found is not None
    assert (found.plan, found.digest, found.record) == (resolved.plan, resolved.digest, resolved.record)


def test_a_newer_program_and_a_changed_input_change_no_key(
    store: Store, rows: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded, resolved = begin(store, rows)
    monkeypatch.setitem(tasks.KIND_VERSIONS, "finetune", tasks.KIND_VERSIONS["finetune"] + 1)
    monkeypatch.setattr("expunge_jobs.plugins.version", lambda family, name: 99)
    rows.write_text(rows.read_text().replace("b1", "c1"))
    anew = resolve(loaded, stage=True, namespace=NAMESPACE)
    assert not {s.key for s in anew.plan.steps if s.kind == "finetune"} & set(keys(resolved))
    assert keys(load_recorded(store, loaded, resolved.digest, NAMESPACE)) == keys(resolved)


def test_nothing_is_recalled_of_another_experiment(store: Store, rows: Path) -> None:
    _, resolved = begin(store, rows)
    assert load_recorded(store, load_experiment(QUICKSTART), "0" * 64, NAMESPACE) is None
    assert load_recorded(store, load_experiment(QUICKSTART), resolved.digest, NAMESPACE) is None, (
        "an input that was not pinned"
    )
    other = load_experiment(QUICKSTART, [f"data.retain={rows}", "seed=9"])
    assert load_recorded(store, other, resolved.digest, NAMESPACE) is None, "other steps"


def test_a_record_that_somebody_has_changed_is_none(store: Store, rows: Path) -> None:
    """Its pins become names of folders and of steps: whoever writes into the store must not choose them."""
    loaded, resolved = begin(store, rows)
    path = f"experiments/{NAMESPACE}/quickstart/{resolved.digest}.json"
    record = json.loads(store.get(path)[0])
    uri = next(u for u in record["inputs"] if u.endswith("retain.jsonl"))
    record["inputs"][uri] = "sha256:../../.ssh"
    forged = make_plan(loaded, record["inputs"], stage=True, versions=record["versions"])
    record["steps"] = sorted(s.key for s in forged.steps if s.kind != "stage")
    store.put(path, json.dumps(record).encode())
    assert load_recorded(store, loaded, resolved.digest, NAMESPACE) is None
