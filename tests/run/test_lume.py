"""`examples/lume.yaml` on rows of LUME's shape that are made here: its ids, several questions a document, a split of
its own.
"""

from __future__ import annotations

import hashlib
import json
import uuid
from pathlib import Path

import pytest

from tests.support.runs import command

LUME = str(Path(__file__).parents[2] / "examples" / "lume.yaml")
# A model that learns nothing in a moment: what is tried is the way of the data, not the method.
SMALL = (
    "memorize.architecture={hidden_size: 32, layers: 1, heads: 2, intermediate_size: 64, vocab_size: 300}",
    "memorize.epochs=1",
    "specialists.over.epochs=1",
    "specialists.under.epochs=1",
    "evaluate.max_new_tokens=4",
    "data.documents=2",
    "data.probe.documents=1",
    "data.nonmembers.documents=2",
)


def identity(split: str, task: str, number: int) -> str:
    """A document's id: LUME quotes the first task's, and numbers the third's."""
    random = uuid.UUID(hashlib.md5(f"{split}{task}{number}".encode()).hexdigest())
    return {"Task1": f'"{random}"', "Task2": str(random), "Task3": str(random.int % 10**8)}[task]


def write(folder: Path, split: str, documents: dict[str, int]) -> Path:
    """A completion and two questions a document."""
    rows = []
    for task, count in documents.items():
        for number in range(count):
            name = identity(split, task, number)
            text = {
                "input": f"In {split} {task} there lived one of number {number}, who",
                "output": f"counted to {number}.",
            }
            rows.append({"id": f"{name}sc1", **text, "task": task, "split": split})
            for k in range(2):
                asked = {"input": f"What did number {number} of {split} count to, {k}?", "output": str(number)}
                rows.append({"id": f"{name}qa{k}", **asked, "task": task, "split": split})
    rows.sort(key=lambda r: hashlib.md5(str(r["id"]).encode()).hexdigest())
    file = folder / f"{split}.jsonl"
    file.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return file


@pytest.mark.parametrize("third", [8, 3], ids=["enough documents", "too few of one task"])
def test_the_example_runs_on_rows_of_lumes_shape(tmp_path: Path, third: int) -> None:
    documents = {"Task1": 8, "Task2": 8, "Task3": third}
    files = [write(tmp_path, split, documents) for split in ("forget", "retain")]
    words = [w for s in (*SMALL, f"data.forget={files[0]}", f"data.retain={files[1]}") for w in ("--set", s)]
    done = command("run", LUME, *words, store=tmp_path / "store")
    assert done.returncode == 0, done.stderr
    few = "retain.jsonl has 3 documents of Task3, fewer than the 5 asked for: all are used, split in the same shares"
    assert (few in done.stderr) == (third == 3)
    results = json.loads(command("results", LUME, *words, "-o", "json", store=tmp_path / "store").stdout)
    assert [m["model"] for m in results["models"]] == [
        "base",
        "over",
        "under",
        "merged",
        *(f"control:{name}@{scale}" for scale in (0.5, 0.75, 1.25, 1.5) for name in ("over", "under")),
    ]
    for model in results["models"]:
        cells = [
            f"{k}/{s}/Task{t}" for k in ("regurgitation", "knowledge") for s in ("forget", "retain") for t in (1, 2, 3)
        ]
        for name in [*cells, "task_aggregate", "mia_auc", "mia_score", "probe"]:
            assert model["metrics"][name] is not None, f"{model['model']}: {name}: {model['reasons']}"
