"""Conversations by a tokenizer's chat template.

A template is a program of the model's authors. It runs in the sandbox of transformers, and on a constant date.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from expunge_jobs.core.errors import BadTask, suggestion
from expunge_jobs.tasks.references import Template

DATE = datetime(2024, 7, 26)
"""The day of a template that asks for today. Figures of two days must not differ. The day is Llama 3's own default."""
MARKS = ("\ufdd0", "\ufdd1")
"""Characters that no text may hold (Unicode, section 23.7), around a special token that a user's text spells."""
_MARKED = re.compile(f"{MARKS[0]}(.*?){MARKS[1]}", re.DOTALL)
_ANSWER = "An answer."


@dataclass(frozen=True)
class Turn:
    """What the user says, and the assistant's answer."""

    user: str
    assistant: str | None = None


class ChatTemplate:
    """The chat template of a tokenizer, with the settings of a task.

    ``end`` is the token that ends the assistant's turn, or None where the template writes no special token there.

    Raises:
        BadTask: no template, several without a default, none of the name, or one that fails or changes an answer.
    """

    def __init__(self, tokenizer: Any, settings: Template) -> None:
        self.tokenizer, self.settings = tokenizer, settings
        self._check_named()
        special = special_tokens(tokenizer)
        spelled = sorted(special.values(), key=len, reverse=True)
        self._spelled = re.compile("|".join(map(re.escape, spelled))) if spelled else None
        self._check_read(tokenizer.get_chat_template(settings.name))
        shown = self._render(Turn("a", _ANSWER))
        _, found, self._rest = shown.rpartition(_ANSWER)
        if not found:
            raise BadTask("the tokenizer's chat template does not show the assistant's message as it is")
        ids = tokenizer(self._rest, add_special_tokens=False)["input_ids"]
        self.end = next((int(t) for t in ids if t in special), None)
        self._before_end = "" if self.end is None else self._rest.partition(special[self.end])[0]

    def prompt(self, text: str) -> str:
        """Return a conversation up to the place where the answer begins."""
        return self._render(Turn(text))

    def whole(self, turn: Turn, prompt: str) -> str:
        """Return a conversation with its answer, without its end token.

        The conversation begins with ``prompt``. A template may show a finished turn in another way than a prompt, for
        example without its thoughts. There the answer follows the prompt as it is.
        """
        shown, answer = self._render(turn), self._marked(turn.assistant or "")
        if shown.startswith(prompt) and shown.endswith(self._rest) and answer.strip() in shown[len(prompt) :]:
            return shown[: len(shown) - len(self._rest)] + self._before_end
        return prompt + answer + self._before_end

    def _check_named(self) -> None:
        templates, name = self.tokenizer.chat_template, self.settings.name
        if not templates:
            raise BadTask("data.template is chat, but the model's tokenizer has no chat template; allowed: none")
        named = sorted(map(str, templates)) if isinstance(templates, dict) else []
        if name is not None and name not in named:
            have = f"its templates: {', '.join(named)}" if named else "it has one template, without a name"
            raise BadTask(
                f"data.template.name: the tokenizer has no chat template '{name}'{suggestion(name, named)}; {have}"
            )
        if name is None and named and "default" not in named:
            raise BadTask(
                f"the tokenizer has several chat templates and none of them is 'default': {', '.join(named)}; choose one "
                "with data.template.name"
            )

    def _check_read(self, template: str) -> None:
        """Refuse settings that the template does not read."""
        taken = {*inspect.signature(self.tokenizer.apply_chat_template).parameters, *self.tokenizer.special_tokens_map}
        for name in self.settings.arguments:
            if name in taken:
                raise BadTask(
                    f"data.template.arguments.{name}: not for a template; transformers or the tokenizer gives it"
                )
            if not re.search(rf"\b{re.escape(name)}\b", template):
                words = sorted(set(re.findall(r"[A-Za-z_]\w+", template)))
                raise BadTask(
                    f"data.template.arguments.{name}: the chat template does not read '{name}'{suggestion(name, words)}"
                )
        if self.settings.system is not None and self._marked(self.settings.system).strip() not in self._render(
            Turn("a")
        ):
            raise BadTask("data.template.system: the chat template does not show the system's message")

    def _render(self, turn: Turn) -> str:
        said = [("system", self.settings.system), ("user", turn.user), ("assistant", turn.assistant)]
        messages = [{"role": role, "content": self._marked(text)} for role, text in said if text is not None]
        try:
            with _on_the_date():
                shown = self.tokenizer.apply_chat_template(
                    messages,
                    chat_template=self.settings.name,
                    tokenize=False,
                    add_generation_prompt=turn.assistant is None,
                    **self.settings.arguments,
                )
        except Exception as error:  # a template is a program
            words = " ".join(str(error).split())[:300]
            raise BadTask(f"the tokenizer's chat template fails: {type(error).__name__}: {words}") from None
        return str(shown)

    def _marked(self, text: str) -> str:
        for mark in MARKS:  # a text that holds them would be cut there
            text = text.replace(mark, "")
        return self._spelled.sub(lambda m: MARKS[0] + m[0] + MARKS[1], text) if self._spelled else text


def marked_pieces(text: str) -> Iterator[tuple[str, bool]]:
    """Yield the pieces of a rendered conversation.

    Beside each stands whether the piece is a special token that a user's text spells.
    """
    for number, piece in enumerate(_MARKED.split(text)):
        if piece:
            yield piece, number % 2 == 1


class _TheDate:
    """In the place of ``datetime``, of which only ``now`` is asked."""

    @staticmethod
    def now() -> datetime:
        return DATE


@contextmanager
def _on_the_date() -> Iterator[None]:
    """Let templates that ask for today get ``DATE``.

    transformers gives templates a function that asks the clock, and takes no other function in its place.
    """
    from transformers.utils import chat_template_utils

    own = chat_template_utils.datetime
    chat_template_utils.datetime = _TheDate
    try:
        yield
    finally:
        chat_template_utils.datetime = own


def special_tokens(tokenizer: Any) -> dict[int, str]:
    """Return the special tokens of a tokenizer by id."""
    added = {int(i): str(t.content) for i, t in tokenizer.added_tokens_decoder.items() if t.special}
    named = zip(tokenizer.all_special_ids, tokenizer.all_special_tokens, strict=True)
    return added | {int(i): str(t) for i, t in named if i is not None and t}
