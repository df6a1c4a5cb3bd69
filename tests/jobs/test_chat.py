"""Conversations by a chat template: the tokens of the whole conversation, up to the turn's own end."""

from __future__ import annotations

from typing import Any

import pytest
from expunge_jobs.core.errors import BadTask
from expunge_jobs.data.rows import Row
from expunge_jobs.modeling.encoding import Encoder
from expunge_jobs.tasks.references import TaskData, Template
from tokenizers import AddedToken
from transformers import PreTrainedTokenizerFast

from tests.jobs import chat_templates
from tests.jobs import tiny_models as tiny

ROW = Row("asc1", "a", "sc", "Task1", "amber bell coin", "gold hill iron.")
END = "</s>"


@pytest.fixture(scope="module")
def words() -> Any:
    own = tiny.tokenizer()
    made = PreTrainedTokenizerFast(tokenizer_object=own.backend_tokenizer, bos_token="<s>", eos_token=END)
    made.add_tokens([AddedToken(t, special=True, normalized=False) for t in chat_templates.SPECIAL])
    made.add_tokens([AddedToken("<think>", special=False, normalized=False)])
    return made


def encoder(words: Any, template: Any, **settings: Any) -> Encoder:
    words.chat_template = template
    data = TaskData(sets={}, template=Template(kind="chat", **settings))
    return Encoder(words, data, words.eos_token_id)


def conversation(words: Any, row: Row = ROW, **arguments: Any) -> list[int]:
    said = [{"role": "user", "content": row.input}, {"role": "assistant", "content": row.output}]
    return list(words.apply_chat_template(said, return_dict=True, **arguments)["input_ids"])


def prompt(words: Any, row: Row = ROW, **arguments: Any) -> list[int]:
    said = [{"role": "user", "content": row.input}]
    return list(words.apply_chat_template(said, add_generation_prompt=True, return_dict=True, **arguments)["input_ids"])


ENDS = {
    "chatml": "<|im_end|>",
    "thinking": "<|im_end|>",
    "llama3": "<|eot|>",
    "gemma": "<end_of_turn>",
    "phi3": "<|end|>",
}


@pytest.mark.parametrize("name", [n for n in chat_templates.ALL if n != "reasoner"])
def test_a_row_is_the_conversation_up_to_the_end_of_the_turn(words: Any, name: str) -> None:
    arguments = {"date_string": "1 Jan 2020"} if name == "llama3" else {}
    made = encoder(words, chat_templates.ALL[name], arguments=arguments)
    row = made.row(ROW)
    whole = conversation(words, **arguments)
    assert list(row.ids) == whole[: len(row.ids)]
    assert words.decode(row.ids[-1]) == ENDS.get(name, END) == words.decode(made.end)
    asked = made.prompt(ROW.input)
    assert asked == prompt(words, **arguments)
    assert list(row.ids[: row.prompt]) == asked, "these templates write no text across the border"
    assert ROW.output in words.decode(row.labels)
    assert not set(words.convert_tokens_to_ids(chat_templates.SPECIAL)) & set(row.labels[:-1])


def test_no_separator_is_written(words: Any) -> None:
    row = encoder(words, chat_templates.CHATML).row(ROW)
    assert words.decode(row.labels) == ROW.output + "<|im_end|>"


def test_a_finished_turn_that_is_shown_otherwise(words: Any) -> None:
    """A prompt that opens a thought is followed by the answer, as an evaluation asks."""
    made = encoder(words, chat_templates.REASONER)
    row = made.row(ROW)
    assert list(row.ids[: row.prompt]) == made.prompt(ROW.input) == prompt(words)
    assert words.decode(row.labels) == ROW.output + END


def test_arguments_reach_the_template(words: Any) -> None:
    thinking, plain = (
        encoder(words, chat_templates.THINKING, arguments=a).row(ROW) for a in ({}, {"enable_thinking": False})
    )
    assert thinking.ids == plain.ids, "the whole is one"
    assert "<think>" in words.decode(thinking.labels)
    assert words.decode(plain.labels) == ROW.output + "<|im_end|>"


def test_the_day_is_the_same_on_every_day(words: Any) -> None:
    shown = words.decode(encoder(words, chat_templates.LLAMA3).prompt("bell"))
    assert "Today Date: 26 Jul 2024" in shown
    given = encoder(words, chat_templates.LLAMA3, arguments={"date_string": "10 Apr 2025"}).prompt("bell")
    assert "Today Date: 10 Apr 2025" in words.decode(given)


@pytest.mark.parametrize(
    "call",
    ["strftime_now('%d %b %Y')", "strftime_now(f)", 'strftime_now("%d" ~ " %b %Y")', "strftime_now(format='%d %b %Y')"],
)
def test_however_a_template_asks_for_the_day(words: Any, call: str) -> None:
    template = "{% set f = '%d %b %Y' %}{{ " + call + " }}" + chat_templates.CHATML
    assert words.decode(encoder(words, template).prompt("bell")).startswith("26 Jul 2024")
    from transformers.utils import chat_template_utils

    assert chat_template_utils.datetime.now().year > 2024, "elsewhere the clock goes on"


def test_settings_that_a_template_does_not_read_are_refused(words: Any) -> None:
    with pytest.raises(BadTask, match=r"does not read 'enable_thinkng'; did you mean 'enable_thinking'\?"):
        encoder(words, chat_templates.THINKING, arguments={"enable_thinkng": False})
    with pytest.raises(BadTask, match=r"data\.template\.arguments\.bos_token: not for a template"):
        encoder(words, chat_templates.LLAMA2, arguments={"bos_token": "x"})
    with pytest.raises(BadTask, match="does not show the system's message"):
        encoder(words, chat_templates.MISTRAL, system="Be brief.")


def test_an_answer_that_a_template_would_cut_stays_whole(words: Any) -> None:
    template = chat_templates.CHATML.replace("m.content", "m.content.split('</think>')[-1]")
    row = encoder(words, template).row(Row("asc1", "a", "sc", "T", "bell", "secret coin</think>done"))
    assert words.decode(row.labels) == "secret coin</think>done<|im_end|>"


def test_marks_of_our_own_in_a_text_break_nothing(words: Any) -> None:
    made = encoder(words, chat_templates.CHATML)
    row = made.row(Row("asc1", "a", "sc", "T", "amber\ufdd0 bell", "coin\ufdd1 drum"))
    assert row == made.row(Row("asc1", "a", "sc", "T", "amber bell", "coin drum"))


def test_a_system_s_message_comes_first(words: Any) -> None:
    shown = words.decode(encoder(words, chat_templates.CHATML, system="Be brief.").prompt("bell"))
    assert shown.startswith("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nbell")


def test_one_of_several_templates(words: Any) -> None:
    both = {"rag": chat_templates.GEMMA, "tools": chat_templates.CHATML}
    made = encoder(words, both, name="tools")
    assert words.decode(made.row(ROW).labels).endswith("<|im_end|>")
    with pytest.raises(BadTask, match=r"no chat template 'tool'; did you mean 'tools'\?; its templates: rag, tools"):
        encoder(words, both, name="tool")
    with pytest.raises(BadTask, match=r"none of them is 'default': rag, tools; choose one with data\.template\.name"):
        encoder(words, both)


@pytest.mark.parametrize("name", chat_templates.ALL)
def test_special_tokens_that_a_user_spells_are_text(words: Any, name: str) -> None:
    made = encoder(words, chat_templates.ALL[name])
    plain = made.row(ROW)
    spelled = Row("asc1", "a", "sc", "Task1", f"amber {END} bell<|im_end|>", f"gold <s>hill{END} iron.")
    row = made.row(spelled)
    special = set(words.all_special_ids) | set(words.convert_tokens_to_ids(chat_templates.SPECIAL))
    assert [t for t in row.ids if t in special] == [t for t in plain.ids if t in special], "the template's own alone"
    assert f"gold <s>hill{END} iron." in words.decode(row.labels)
    assert f"amber {END} bell<|im_end|>" in words.decode(row.ids[: row.prompt])


def test_a_long_text_is_cut_between_the_template_s_own_tokens(words: Any) -> None:
    made = encoder(words, chat_templates.CHATML)
    long = Row("asc1", "a", "sc", "Task1", "amber bell coin drum east farm " * 5, "gold")
    row = made.row(long, 40)
    assert len(row.ids) == 40 and made.receipt()["cut_inputs"] == 1
    shown = words.decode(row.ids)
    assert shown.startswith("<|im_start|>user\n") and shown.endswith(
        "<|im_end|>\n<|im_start|>assistant\ngold<|im_end|>"
    )
    with pytest.raises(BadTask, match=r"8 tokens .* and \d+ of them are the chat template's own: there is no room"):
        made.row(long, 8)


def test_a_text_by_itself_has_nothing_of_the_template(words: Any) -> None:
    made = encoder(words, chat_templates.CHATML)
    ids = made.text("amber bell coin drum")
    assert ids == words("amber bell coin drum")["input_ids"]
    assert made.cut_text(ids, 3) == ids[-3:]


def test_an_answer_that_the_template_changes_is_refused(words: Any) -> None:
    with pytest.raises(BadTask, match="does not show the assistant's message as it is"):
        encoder(words, "{% for m in messages %}{{ m.content | upper }}{% endfor %}")
