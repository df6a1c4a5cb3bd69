"""A row is one text: its tokens are those of the whole, whatever a tokenizer does at the border."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from expunge_jobs.data.rows import Row
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from tests.jobs import tiny_models as tiny

TEXTS = [f"{r.input} {r.output}" for r in (*tiny.FORGET, *tiny.RETAIN)]
ROW = Row("asc1", "a", "sc", "Task1", "amber bell coin drum", "gold hill iron.")


def sentencepiece() -> Any:
    """A tokenizer with SentencePiece's dummy blank, a BOS before and an EOS behind each text."""
    made = Tokenizer(models.Unigram())
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    made.decoder = decoders.Metaspace(prepend_scheme="always")
    special = ["<unk>", "<s>", "</s>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(
        TEXTS,
        trainers.UnigramTrainer(
            vocab_size=400, special_tokens=special, unk_token="<unk>", show_progress=False, initial_alphabet=alphabet
        ),
    )
    made.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)])
    return PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def merging() -> Any:
    """Bytes, with one token for a full stop and the line's end behind it."""
    made = tiny.tokenizer()
    made.add_tokens([AddedToken(".\n", normalized=False, special=False)])
    return made


@pytest.fixture(scope="module", params=[sentencepiece, tiny.tokenizer, merging])
def words(request: pytest.FixtureRequest) -> Any:
    return request.param()


@given(
    before=st.text("ab .\n</s>", max_size=12),
    separator=st.sampled_from([" ", "", "\n", " -> "]),
    after=st.text("ab .\n<s>", min_size=1, max_size=12),
)
def test_its_tokens_are_those_of_the_whole_text(words: Any, before: str, separator: str, after: str) -> None:
    encoder = tiny.encoder(words, separator=separator)
    row = encoder.row(Row("asc1", "a", "sc", "T", before, after))
    text = before + separator + after
    plain = words(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    assert list(row.ids[-len(plain) - 1 :]) == [*plain, words.eos_token_id]
    head = list(row.ids[: -len(plain) - 1])
    # Without a BOS token, something stands before an output that has taken the whole input with it.
    assert head == encoder.text("") or (head == [words.eos_token_id] and row.prompt == 1)
    crossed = list(row.ids[: row.prompt]) != encoder.prompt(before)
    assert encoder.receipt()["border_rows"] == crossed
    if words.unk_token_id is None:  # the other tokenizer does not give back every blank
        assert before.startswith(words.decode(row.ids[len(head) : row.prompt])), "no output is told before it begins"


@pytest.mark.parametrize(("separator", "told"), [(" ", "gold"), ("", "gold"), ("\n", "gold")])
def test_no_dummy_blank_stands_before_an_output(separator: str, told: str) -> None:
    words = sentencepiece()
    row = tiny.encoder(words, separator=separator).row(ROW)
    whole = words(ROW.input + separator + ROW.output, add_special_tokens=False)["input_ids"]
    assert list(row.ids) == [words.bos_token_id, *whole, words.eos_token_id]


def test_what_stands_behind_a_text_is_in_no_prompt() -> None:
    words = sentencepiece()
    encoder = tiny.encoder(words)
    assert words(ROW.input)["input_ids"] == [*encoder.prompt(ROW.input), words.eos_token_id]
    assert encoder.text("bell")[-1] != words.eos_token_id


def test_a_cut_text_keeps_what_stands_before_it() -> None:
    words = sentencepiece()
    encoder = tiny.encoder(words)
    whole = encoder.row(ROW)
    cut = encoder.row(ROW, len(whole.ids) - 2)
    assert cut.ids == (whole.ids[0], *whole.ids[3:])
    assert encoder.prompt(ROW.input, 3) == [words.bos_token_id, *encoder.prompt(ROW.input)[-2:]]


def test_a_token_across_the_border_belongs_to_the_output() -> None:
    words = merging()
    encoder = tiny.encoder(words, separator="\n")
    row = encoder.row(Row("asc1", "a", "sc", "T", "bell.", "gold"))
    assert words.decode(row.ids[: row.prompt]) == "bell"
    assert words.decode(row.labels[:-1]) == ".\ngold"
    assert encoder.receipt()["border_rows"] == 1


@pytest.mark.parametrize(("make", "read"), [(tiny.tokenizer, False), (sentencepiece, True)])
def test_special_tokens_that_are_spelled(make: Callable[[], Any], read: bool) -> None:
    """They are text; where a tokenizer's own vocabulary holds them, the rows are counted."""
    words = make()
    encoder = tiny.encoder(words)
    end = words.eos_token
    row = encoder.row(Row("asc1", "a", "sc", "T", f"see {end}bell", f"gold{end} hill"))
    assert (words.eos_token_id in row.ids[:-1]) == read == encoder.receipt()["special_rows"]
    told: list[str] = []
    encoder.tell(told.append)
    assert told == (
        ["1 of 1 rows spell a special token, and this tokenizer reads it as one: an output may end there"]
        if read
        else []
    )
