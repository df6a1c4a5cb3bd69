"""Rows as tokens: what is cut from which side, and what fits a model."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from expunge_jobs.core.errors import BadTask
from expunge_jobs.data.rows import Row
from expunge_jobs.modeling.encoding import NO_LIMIT, Encoder, ModelLimits
from expunge_jobs.modeling.loading import encoder_for
from expunge_jobs.tasks.references import TaskData
from hypothesis import given
from hypothesis import strategies as st

from tests.jobs import tiny_models as tiny

LONG = Row("asc1", "a", "sc", "Task1", "amber bell coin drum east farm", "gold hill iron")


@pytest.mark.parametrize("separator", [" ", "", " -> "])
def test_a_row_is_input_separator_output_end(words: Any, separator: str) -> None:
    row = tiny.encoder(words, separator=separator).row(LONG)
    prompt, output = row.ids[: row.prompt], row.ids[row.prompt :]
    assert words.decode(prompt) == LONG.input
    assert words.decode(output) == f"{separator}{LONG.output}{tiny.END}"
    assert row.labels == output and output[-1] == words.eos_token_id
    assert list(prompt) == words(LONG.input)["input_ids"], "a prompt in evaluation is tokens(input) alone"


def test_the_input_is_cut_from_the_left(words: Any) -> None:
    encoder = tiny.encoder(words)
    whole = encoder.row(LONG)
    cut = encoder.row(LONG, len(whole.ids) - 3)
    assert cut.ids == whole.ids[3:] and cut.prompt == whole.prompt - 3
    assert encoder.receipt() == {
        "cut_prompts": 0,
        "cut_inputs": 1,
        "cut_outputs": 0,
        "border_rows": 0,
        "special_rows": 0,
    }


def test_an_output_too_long_by_itself_is_cut_from_the_right(words: Any) -> None:
    encoder = tiny.encoder(words)
    whole = encoder.row(LONG)
    cut = encoder.row(LONG, 4)
    assert cut.ids == (whole.ids[whole.prompt - 1], *whole.ids[whole.prompt : whole.prompt + 3])
    assert encoder.receipt() == {
        "cut_prompts": 0,
        "cut_inputs": 1,
        "cut_outputs": 1,
        "border_rows": 0,
        "special_rows": 0,
    }


@given(st.integers(4, 40), st.text(max_size=30), st.text(min_size=1, max_size=30))
def test_a_row_fits_and_has_something_to_predict_from(words: Any, limit: int, given: str, said: str) -> None:
    encoder = tiny.encoder(words)
    row = encoder.row(Row("asc1", "a", "sc", "T", given, said), limit)
    assert len(row.ids) <= limit and 1 <= row.prompt < len(row.ids)
    whole = encoder.row(Row("asc1", "a", "sc", "T", given, said))
    assert (row == whole) == (len(whole.ids) <= limit)


def test_chat_needs_a_template(words: Any) -> None:
    with pytest.raises(BadTask, match="no chat template"):
        tiny.encoder(words, template="chat")


@pytest.mark.parametrize(
    ("template", "words_"),
    [
        ({"rag": "x", "tool_use": "y"}, "several chat templates and none of them is 'default': rag, tool_use"),
        (
            "{{ raise_exception('A system message comes first') }}",
            "chat template fails: .*: A system message comes first",
        ),
        ("{% for m in messages %}", "chat template fails: TemplateSyntaxError"),
    ],
)
def test_a_template_that_fails_is_refused_with_its_words(words: Any, template: Any, words_: str) -> None:
    own = copy.deepcopy(words)
    own.chat_template = template
    with pytest.raises(BadTask, match=words_):
        tiny.encoder(own, template="chat")


def test_a_row_is_cut_to_the_model_s_positions(words: Any) -> None:
    encoder = Encoder(words, TaskData(sets={}), words.eos_token_id, ModelLimits(positions=6))
    assert [len(encoder.row(LONG, length).ids) for length in (None, 256, 6, 5)] == [6, 6, 6, 5]
    assert encoder.receipt()["cut_inputs"] + encoder.receipt()["cut_outputs"] >= 4


def test_a_token_that_the_embedding_does_not_have_is_named(words: Any) -> None:
    highest = max(tiny.encoder(words).row(LONG).ids)
    Encoder(words, TaskData(sets={}), words.eos_token_id, ModelLimits(tokens=highest + 1)).row(LONG)
    small = Encoder(words, TaskData(sets={}), words.eos_token_id, ModelLimits(tokens=highest))
    with pytest.raises(BadTask, match=f"gives the token {highest}, but the model's embedding has {highest} rows"):
        small.row(LONG)
    with pytest.raises(BadTask, match="the model's embedding has"):
        small.text(f"{LONG.input} {LONG.output}")


@pytest.mark.parametrize(("kind", "positions"), [("gpt2", 512), ("bloom", NO_LIMIT)])
def test_a_model_s_limits_are_its_own(words: Any, kind: str, positions: int) -> None:
    limits = encoder_for(tiny.model(kind, vocab=320), words, TaskData(sets={})).limits
    assert limits == ModelLimits(positions=positions, tokens=320)
