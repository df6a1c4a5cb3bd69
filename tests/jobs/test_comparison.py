"""The merge beside its rivals at their best: choice on one half, count on the other, two intervals."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from expunge_jobs.analysis.comparison import DRAWS, Documents, Stratum, compare, rivals
from expunge_jobs.artifacts.manifests import folder
from expunge_jobs.metrics import EvaluatedRow
from expunge_jobs.metrics.semeval import compute
from expunge_jobs.results.documents import (
    DocumentScores,
    document_name,
    document_scores,
    read_document_scores,
    storable,
)
from expunge_jobs.results.summary import EvaluatedModel, Role
from expunge_jobs.store import open_store
from expunge_jobs.tasks.references import ArtifactRef

NUMBER = 40
TASKS = ("Task1", "Task2")


def rows(forget: float, retain: float, noise: int = 0, spread: float = 0.1) -> list[EvaluatedRow]:
    """Rows of 40 documents a set and task, with scores around these."""
    random = np.random.default_rng(noise)
    return [
        EvaluatedRow(
            set=name,
            id=f"{name}{task}{n}{kind}1",
            document=f"{name}{task}{n}",
            task=task,
            kind=kind,
            score=float(np.clip(level + spread * random.standard_normal(), 0, 1)),
        )
        for name, level in (("forget", forget), ("retain", retain))
        for task in TASKS
        for n in range(NUMBER)
        for kind in ("sc", "qa")
    ]


def model(name: str, role: Role = "specialist", seed: int = 0) -> EvaluatedModel:
    return EvaluatedModel(f"seed={seed}", "default", seed, name, f"{name}/{seed}", {"task_aggregate": 0.5}, role=role)


def compared(models: dict[str, tuple[Role, list[list[EvaluatedRow]]]]) -> dict[str, Any]:
    """Comparisons by rival, of rows for each seed."""
    judged, scores = [], {}
    for name, (role, seeds) in models.items():
        for seed, each in enumerate(seeds):
            judged.append(model(name, role, seed))
            scores[f"{name}/{seed}"] = document_scores(each)
    return {c.rival: c for c in compare(judged, scores.__getitem__)}


def test_the_aggregate_is_the_metric_s_own() -> None:
    """Of all documents, and of one half: the metric on that half's rows."""
    given = rows(0.3, 0.8)
    made = Documents({"merged": document_scores(given)})
    assert made.aggregate(made.tables["merged"]) == pytest.approx(compute(given)["task_aggregate"])
    names = {d for s in made.strata for d, half in zip(s.documents, s.half, strict=True) if half == 1}
    half = [r for r in given if document_name(r.document) in names]
    assert made.aggregate(made.tables["merged"], 1) == pytest.approx(compute(half)["task_aggregate"])


def test_halves_are_dealt_in_the_order_of_the_hashes() -> None:
    given = [EvaluatedRow(set="forget", id=f"d{n}sc1", document=f"d{n}", kind="sc", score=1.0) for n in range(7)]
    [stratum] = Documents({"merged": document_scores(given)}).strata
    order = sorted((f"d{n}" for n in range(7)), key=lambda d: hashlib.sha256(d.encode()).hexdigest())
    assert stratum.documents == [document_name(d) for d in order]
    assert stratum.half.tolist() == [0, 1, 0, 1, 0, 1, 0]


def test_a_rival_counts_with_what_won_on_the_other_half() -> None:
    """Two settings, each right on one half: the choice misses on both."""
    right, wrong = rows(0.1, 0.9, spread=0), rows(0.9, 0.1, spread=0)
    halves = {
        d: int(h)
        for s in Documents({"merged": document_scores(right)}).strata
        for d, h in zip(s.documents, s.half, strict=True)
    }
    first = [r if halves[document_name(r.document)] == 0 else w for r, w in zip(right, wrong, strict=True)]
    second = [r if halves[document_name(r.document)] == 1 else w for r, w in zip(right, wrong, strict=True)]
    found = compared(
        {
            "merged": ("merged", [right]),
            "under": ("specialist", [first]),
            "control:under@1.5": ("control", [second]),
        }
    )["under"]
    assert found.chosen == ("under", "control:under@1.5")
    assert found.best == pytest.approx(compute(wrong)["task_aggregate"])
    assert found.merged == pytest.approx(compute(right)["task_aggregate"])


def test_a_specialist_wins_by_a_scale_above_one() -> None:
    """What the old controls, all below 1, could not show."""
    found = compared(
        {
            "merged": ("merged", [rows(0.2, 0.8, s) for s in range(5)]),
            "under": ("specialist", [rows(0.5, 0.9, 10 + s) for s in range(5)]),
            "control:under@0.5": ("control", [rows(0.8, 0.9, 20 + s) for s in range(5)]),
            "control:under@1.5": ("control", [rows(0.1, 0.9, 30 + s) for s in range(5)]),
            "npo": ("baseline", [rows(0.4, 0.6, 40 + s) for s in range(5)]),
            "kl": ("baseline", [rows(0.9, 0.9, 50 + s) for s in range(5)]),
        }
    )
    assert found["under"].chosen == ("control:under@1.5",)
    assert found["under"].outcome == "lost"
    assert found["baselines"].chosen == ("npo",)
    assert found["baselines"].outcome == "won"
    assert list(found) == ["under", "baselines"]


def test_models_that_are_equal_in_truth_show_no_difference() -> None:
    """At 95 %, a few of 40 pairs may; of them both intervals agree more rarely."""
    shown = 0
    for trial in range(40):
        found = compared(
            {
                "merged": ("merged", [rows(0.3, 0.7, 1000 + 10 * trial + s) for s in range(5)]),
                "under": ("specialist", [rows(0.3, 0.7, 5000 + 10 * trial + s) for s in range(5)]),
            }
        )["under"]
        shown += found.outcome != "open"
    assert shown <= 3


def test_the_bootstrap_s_interval_is_that_of_a_plain_loop() -> None:
    one, other = rows(0.3, 0.7, 1, 0.3), rows(0.4, 0.6, 2, 0.3)
    found = compared({"merged": ("merged", [one]), "under": ("specialist", [other])})["under"]
    random, sampled = np.random.default_rng(7), []
    by_document: dict[tuple[str, str], dict[str, list[int]]] = {}
    for place, row in enumerate(one):
        by_document.setdefault((row.set, row.task), {}).setdefault(row.document, []).append(place)
    for _ in range(400):
        places = [
            p
            for documents in by_document.values()
            for d in random.choice(list(documents), len(documents))
            for p in documents[d]
        ]
        pair = [compute([m[p] for p in places])["task_aggregate"] for m in (one, other)]
        assert isinstance(pair[0], float) and isinstance(pair[1], float)
        sampled.append(pair[0] - pair[1])
    low, high = np.quantile(sampled, [0.025, 0.975])
    assert found.documents.low == pytest.approx(low, abs=0.15 * (high - low))
    assert found.documents.high == pytest.approx(high, abs=0.15 * (high - low))


def test_draws_are_the_same_for_every_model_and_any_block(monkeypatch: pytest.MonkeyPatch) -> None:
    stratum = Stratum("forget", "Task1", [f"d{n}" for n in range(9)])
    whole = np.concatenate(list(stratum.draws()))
    assert whole.shape == (DRAWS, 9) and (whole.sum(1) == 9).all()
    monkeypatch.setattr("expunge_jobs.analysis.comparison.CHUNK", 100)
    assert np.array_equal(np.concatenate(list(stratum.draws())), whole)


def test_a_document_without_a_row_of_a_kind_counts_in_the_others() -> None:
    given = [r for r in rows(0.3, 0.8) if r.kind == "sc" or r.document.endswith("0")]
    made = Documents({"merged": document_scores(given)})
    assert made.aggregate(made.tables["merged"]) == pytest.approx(compute(given)["task_aggregate"])
    assert np.isfinite(made.sampled([made.tables["merged"]])).all()


def test_a_group_that_is_not_whole_or_has_no_merge_is_not_compared() -> None:
    assert compare([model("under")], dict) == []
    missing = EvaluatedModel("seed=0", "default", 0, "merged", "m", {"task_aggregate": None})
    assert compare([model("under"), missing], dict) == []


def test_roles_tell_rivals_apart() -> None:
    models = [model("base"), model("over"), model("npo", "baseline"), model("merged"), model("control:over@norm")]
    assert rivals(models) == {"over": ["over", "control:over@norm"], "baselines": ["npo"]}


def test_an_evaluation_without_document_scores_has_them_in_its_rows(tmp_path: Path) -> None:
    """Of an earlier version, or too many for a manifest."""
    store, key, given = open_store(str(tmp_path)), "a" * 64, rows(0.3, 0.8)
    ref = ArtifactRef(kind="evaluate", key=key)
    assert read_document_scores(store, key) == {}
    manifest = {
        "kind": "evaluate",
        "key": key,
        "attempt": "one",
        "task": {},
        "files": [],
        "started": "2026-01-01T00:00:00.000+00:00",
        "ended": "2026-01-01T00:00:00.000+00:00",
    }
    lines = [
        {"set": r.set, "id": r.id, "document": r.document, "task": r.task, "kind": r.kind, "score": r.score}
        for r in given
    ]
    store.put(f"{folder(ref)}/manifest.json", json.dumps(manifest).encode())
    store.put(f"{folder(ref)}/attempts/one/rows.jsonl", "".join(json.dumps(x) + "\n" for x in lines).encode())
    assert read_document_scores(store, key) == document_scores(given)


def test_scores_too_many_for_a_manifest_stay_out_of_it() -> None:
    small: DocumentScores = {"forget": {"Task1": {"d": {"sc": [1.0, 1]}}}}
    assert storable(small) == small
    assert storable({"forget": {"Task1": {f"document {n}": {"sc": [1.0, 1]} for n in range(40_000)}}}) is None
