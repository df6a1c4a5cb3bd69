"""Conversations by a tokenizer's chat template.

A template is a program of the model's authors. It runs in the sandbox of transformers, and on a constant date.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
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
_TODAY = re.compile(r"""strftime_now\(\s*(['"])(.*?)\1""")
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
        self._template = _on_one_day(tokenizer.get_chat_template(settings.name))
        special = special_tokens(tokenizer)
        spelled = sorted(special.values(), key=len, reverse=True)
        self._spelled = re.compile("|".join(map(re.escape, spelled))) if spelled else None
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
        shown = self._render(turn)
        if shown.startswith(prompt) and shown.endswith(self._rest):
            return shown[: len(shown) - len(self._rest)] + self._before_end
        return prompt + self._marked(turn.assistant or "") + self._before_end

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

    def _render(self, turn: Turn) -> str:
        said = [("system", self.settings.system), ("user", turn.user), ("assistant", turn.assistant)]
        messages = [{"role": role, "content": self._marked(text)} for role, text in said if text is not None]
        try:
            shown = self.tokenizer.apply_chat_template(
                messages,
                chat_template=self._template,
                tokenize=False,
                add_generation_prompt=turn.assistant is None,
                **self.settings.arguments,
            )
        except Exception as error:  # a template is a program
            words = " ".join(str(error).split())[:300]
            raise BadTask(f"the tokenizer's chat template fails: {type(error).__name__}: {words}") from None
        return str(shown)

    def _marked(self, text: str) -> str:
        return self._spelled.sub(lambda m: MARKS[0] + m[0] + MARKS[1], text) if self._spelled else text


def marked_pieces(text: str) -> Iterator[tuple[str, bool]]:
    """Yield the pieces of a rendered conversation.

    Beside each stands whether the piece is a special token that a user's text spells.
    """
    for number, piece in enumerate(_MARKED.split(text)):
        if piece:
            yield piece, number % 2 == 1


def _on_one_day(template: str) -> str:
    """Return a template in which ``strftime_now`` gives ``DATE``.

    transformers gives today, and allows no other function of that name.
    """
    forms = dict.fromkeys(found[1] for found in _TODAY.findall(template))
    if not forms:
        return template
    cases = "".join(f"{{% elif form == {json.dumps(f)} %}}{DATE.strftime(f)}" for f in forms)
    return f"{{% macro strftime_now(form) %}}{{% if false %}}{cases}{{% endif %}}{{% endmacro %}}" + template


def special_tokens(tokenizer: Any) -> dict[int, str]:
    """Return the special tokens of a tokenizer by id."""
    added = {int(i): str(t.content) for i, t in tokenizer.added_tokens_decoder.items() if t.special}
    named = zip(tokenizer.all_special_ids, tokenizer.all_special_tokens, strict=True)
    return added | {int(i): str(t) for i, t in named if i is not None and t}
