"""The encoding of rows as tokens.

A row becomes tokens(input) + tokens(separator + output, no special tokens) + end token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from expunge_jobs.core.errors import BadTask
from expunge_jobs.data.rows import Row
from expunge_jobs.tasks.references import TaskData


@dataclass(frozen=True, slots=True)
class Encoded:
    """A row as token ids.

    ``ids`` holds the prompt, the output and the end token. The prompt is the first ``prompt`` tokens of ``ids``.
    An output that was cut has no end token.
    """

    ids: tuple[int, ...]
    prompt: int

    @property
    def labels(self) -> tuple[int, ...]:
        """Return the output tokens and the end token."""
        return self.ids[self.prompt :]


NO_LIMIT = 2**31


@dataclass(frozen=True)
class ModelLimits:
    """Limits of a model that its rows have to fit."""

    positions: int = NO_LIMIT
    """Tokens of a row."""
    tokens: int = NO_LIMIT
    """Rows of the embedding: a token's id is below."""


class Encoder:
    """An encoder of rows with the template and separator of one task.

    ``cut_inputs`` and ``cut_outputs`` count the inputs and outputs that were cut.

    Raises:
        BadTask: the tokenizer has no chat template, several without a default, or one that fails.
    """

    def __init__(self, tokenizer: Any, data: TaskData, end: int, limits: ModelLimits | None = None) -> None:
        self.tokenizer, self.data, self.end, self.limits = tokenizer, data, end, limits or ModelLimits()
        self.cut_inputs = self.cut_outputs = 0
        if data.template == "chat":
            self._try_template()

    def _try_template(self) -> None:
        """Use the chat template once, since a template is a program."""
        template = self.tokenizer.chat_template
        if not template:
            raise BadTask("data.template is chat, but the model's tokenizer has no chat template; allowed: none")
        if isinstance(template, dict) and "default" not in template:
            named = ", ".join(sorted(map(str, template)))
            raise BadTask(f"the tokenizer has several chat templates and none of them is 'default': {named}")
        try:
            self.prompt("text")
        except BadTask:
            raise
        except Exception as error:
            said = " ".join(str(error).split())[:300]
            raise BadTask(f"the tokenizer's chat template fails: {type(error).__name__}: {said}") from None

    def prompt(self, text: str) -> list[int]:
        """Return the tokens of a prompt alone, as evaluations use them.

        Raises:
            BadTask: a token that the model's embedding does not have.
        """
        if self.data.template == "chat":
            message = [{"role": "user", "content": text}]
            ids = self.tokenizer.apply_chat_template(message, add_generation_prompt=True, return_dict=True)["input_ids"]
        else:
            ids = self.tokenizer(text)["input_ids"]
        # An empty text without a BOS token has no token to predict from; therefore use the end token.
        return self._known(list(ids)) or [self.end]

    def text(self, text: str) -> list[int]:
        """Return the tokens of a text by itself.

        Raises:
            BadTask: a token that the model's embedding does not have.
        """
        return self._known(list(self.tokenizer(text)["input_ids"]))

    def _known(self, ids: list[int]) -> list[int]:
        if ids and max(ids) >= self.limits.tokens:
            raise BadTask(
                f"the tokenizer gives the token {max(ids)}, but the model's embedding has {self.limits.tokens:,} rows: the "
                "tokenizer is another model's, or has tokens that were added without the model"
            )
        return ids

    def row(self, row: Row, max_length: int | None = None) -> Encoded:
        """Encode a row, cut to ``max_length`` tokens and to the model's positions.

        An input is cut from the left. An output that is too long by itself is cut from the right.
        """
        prompt = self.prompt(row.input)
        output = self.tokenizer(self.data.separator + row.output, add_special_tokens=False)["input_ids"] + [self.end]
        self._known(output)
        most = min(max_length or NO_LIMIT, self.limits.positions)
        if len(output) > most - 1:
            output = output[: most - 1]
            self.cut_outputs += 1
        room = most - len(output)
        if len(prompt) > room:
            prompt = prompt[-room:]
            self.cut_inputs += 1
        return Encoded((*prompt, *output), len(prompt))

    def rows(self, rows: Sequence[Row], max_length: int | None = None) -> list[Encoded]:
        """Encode every row, in order."""
        return [self.row(r, max_length) for r in rows]

    def receipt(self) -> dict[str, int]:
        """Return the counts of cut inputs and outputs, for the manifest."""
        return {"cut_inputs": self.cut_inputs, "cut_outputs": self.cut_outputs}
