"""The SemEval score against its oracle, written out here: one row at a time, transformers.generate, rouge_score."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from expunge_jobs.modeling.loading import load_base
from expunge_jobs.runtime.context import StepContext
from expunge_jobs.steps import evaluate
from expunge_jobs.steps.evaluate import extraction_strength
from expunge_jobs.tasks.settings import EvaluateSettings
from expunge_jobs.tasks.tasks import EvaluateTask
from rouge_score import rouge_scorer

from tests.jobs import tiny_models as tiny

NEW = 12


@pytest.fixture
def rows(base_folder: Path, work: StepContext, tmp_path: Path) -> list[dict[str, Any]]:
    data = tiny.task_data(tmp_path, {"forget": tiny.FORGET, "retain": tiny.RETAIN, "nonmembers": tiny.NONMEMBERS})
    task = EvaluateTask(
        model=tiny.model_ref(base_folder), data=data, settings=EvaluateSettings(batch_size=5, max_new_tokens=NEW)
    )
    evaluate.run(task, work)
    return [json.loads(line) for line in (work.out / "rows.jsonl").read_text().splitlines()]


def test_batched_generations_and_scores_are_the_one_row_oracle(
    rows: list[dict[str, Any]], base_folder: Path, words: Any
) -> None:
    model, _ = load_base(base_folder, "checkpoint")
    scorer = rouge_scorer.RougeScorer(["rougeL"], use_stemmer=True)
    by_id = {r["id"]: r for r in rows}
    different = 0
    for row in (*tiny.FORGET, *tiny.RETAIN):
        ids = words(row.input, return_tensors="pt")["input_ids"]
        made = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=NEW,
            output_logits=True,
            return_dict_in_generate=True,
        )
        text = words.decode(
            made.sequences[0, ids.shape[1] :], skip_special_tokens=True, clean_up_tokenization_spaces=True
        )
        gaps = [float(torch.diff(step[0].topk(2).values).abs()) for step in made.logits]
        found = by_id[row.id]
        if found["generation"] != text:
            assert min(gaps) < 1e-4, "only a near tie may go another way"
            different += 1
            continue
        if row.kind == "qa":
            expected = float(text.strip().lower() == row.output.strip().lower())
        else:
            expected = scorer.score(row.output, text)["rougeL"].recall
        assert found["score"] == expected
    assert different <= 1


def test_probabilities_are_those_of_a_plain_loop(rows: list[dict[str, Any]], base_folder: Path, words: Any) -> None:
    model, _ = load_base(base_folder, "checkpoint")
    by_id = {r["id"]: r for r in rows}
    for row in tiny.FORGET:
        encoded = tiny.encode(words, row)
        log_p = tiny.alone(model, encoded.ids).double().log_softmax(-1)
        nll = [-float(log_p[i - 1, encoded.ids[i]]) for i in range(1, len(encoded.ids))]
        greedy = [int(log_p[i - 1].argmax()) == encoded.ids[i] for i in range(encoded.prompt, len(encoded.ids))]
        without_end = greedy[:-1]
        found = by_id[row.id]
        assert found["output_nll"] == pytest.approx(sum(nll[encoded.prompt - 1 :]), rel=1e-4)
        assert found["document_nll"] == pytest.approx(sum(nll[:-1]) / len(nll[:-1]), rel=1e-4)
        n = len(without_end)
        k = next(k for k in range(n + 1) if all(without_end[k:]))
        assert found["extraction"] == pytest.approx(1 - k / n)


@pytest.mark.parametrize(
    ("right", "strength"),
    [([True, True], 1.0), ([False, True, True, True], 0.75), ([True, False], 0.0), ([], 0.0)],
)
def test_extraction_strength(right: list[bool], strength: float) -> None:
    assert extraction_strength(right) == strength
