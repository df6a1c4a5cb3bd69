"""Words of any script, and the scores that are made of them."""

# ruff: noqa: RUF001 - letters that look like others are the point

from __future__ import annotations

import pytest
from expunge_jobs.core import scripts
from expunge_jobs.metrics import EvaluatedRow, judged, knowledge, regurgitation, row_score
from rouge_score import rouge_scorer

SENTENCES = {
    "chinese": "李华出生于上海，电话是一三八。",
    "japanese": "田中さんは東京に住んでいます。",
    "russian": "Анна родилась в Москве в 1990 году.",
    "arabic": "ولدت فاطمة في القاهرة عام ١٩٩٠",
    "hindi": "अनिल का जन्म दिल्ली में हुआ था।",
    "thai": "สมชายเกิดที่กรุงเทพ",
    "greek": "Η Μαρία γεννήθηκε στην Αθήνα.",
    "korean": "김민수는 서울에서 태어났다.",
}


@pytest.mark.parametrize("name", SENTENCES)
def test_what_is_said_whole_scores_1_and_its_half_less(name: str) -> None:
    text = SENTENCES[name]
    assert row_score("sc", text, text) == 1
    half = " ".join(text.split()[: len(text.split()) // 2]) or text[: len(text) // 2]
    assert 0.2 < row_score("sc", text, half) < 0.8
    assert row_score("sc", text, "Something else.") == 0
    assert judged("sc", text, text)["tokenizer"] == "scripts"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Анна родилась, в 1990", ["анна", "родилась", "в", "1990"]),
        ("上海2号", ["上", "海", "2", "号"]),
        ("अनिल का", ["अनिल", "का"]),
        ("ที่นี่", ["ที่", "นี่"]),
        ("ＡＢＣ x", ["abc", "x"]),
        ("", []),
        ("́a", ["a"]),
    ],
)
def test_words(text: str, words: list[str]) -> None:
    assert scripts.tokenize(text) == words


@pytest.mark.parametrize(
    ("text", "latin"),
    [
        ("Žluťoučký kůň", True),
        ("İstanbul 34", True),
        ("123-45", True),
        ("", True),
        ("α = 0.5 in all runs", True),
        ("Москва", False),
        ("Đề ợ", False),
        ("١٢٣", False),
        ("iPhone手机价格", False),
    ],
)
def test_latin_rows_are_scored_as_before(text: str, latin: bool) -> None:
    assert scripts.is_latin(text) == latin
    if latin:
        said = f"{text} and more"
        before = rouge_scorer.RougeScorer(["rougeL"], use_stemmer=True).score(text, said)["rougeL"].recall
        assert row_score("sc", text, said) == before
        assert judged("sc", text, said)["tokenizer"] is None


def test_a_sentence_for_an_answer_has_a_second_figure() -> None:
    told = judged("qa", "She was born in the old harbour", "she was born in the new harbour")
    assert told["score"] == 0 and told["recall"] == pytest.approx(6 / 7)
    assert judged("qa", "the old harbour", "the new harbour")["recall"] is None
    rows = [EvaluatedRow("forget", str(n), str(n), "qa", **told) for n in range(3)]
    assert knowledge.compute(rows)["knowledge/forget"] == 0
    assert knowledge.compute(rows)["knowledge_recall/forget"] == pytest.approx(6 / 7)
    assert "knowledge_recall/retain" not in knowledge.compute(rows)
    assert judged("qa", SENTENCES["chinese"], SENTENCES["chinese"][:-1])["recall"] == 1


def test_rows_of_other_scripts_are_counted() -> None:
    rows = [
        EvaluatedRow("forget", "1", "1", "sc", task="T", **judged("sc", t, t)) for t in (*SENTENCES.values(), "bell")
    ]
    found = regurgitation.compute(rows)
    assert found["regurgitation/forget"] == 1
    assert found["regurgitation/other_scripts"] == len(SENTENCES)
    assert "regurgitation/other_scripts" not in regurgitation.compute(rows[-1:])
