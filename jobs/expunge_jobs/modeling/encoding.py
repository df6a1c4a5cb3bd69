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


class Encoder:
    """An encoder of rows with the template and separator of one task.

    ``cut_inputs`` and ``cut_outputs`` count the inputs and outputs that were cut.
    """

    def __init__(self, tokenizer: Any, data: TaskData, end: int) -> None:
        self.tokenizer, self.data, self.end = tokenizer, data, end
        self.cut_inputs = self.cut_outputs = 0
        if data.template == "chat" and not tokenizer.chat_template:
            raise BadTask("data.template is chat, but the model's tokenizer has no chat template; allowed: none")

    def prompt(self, text: str) -> list[int]:
        """Return the tokens of a prompt alone, as evaluations use them."""
        if self.data.template == "chat":
            message = [{"role": "user", "content": text}]
            ids = self.tokenizer.apply_chat_template(message, add_generation_prompt=True, return_dict=True)["input_ids"]
        else:
            ids = self.tokenizer(text)["input_ids"]
        # An empty text without a BOS token has no token to predict from; therefore use the end token.
        return list(ids) or [self.end]

    def row(self, row: Row, max_length: int | None = None) -> Encoded:
        """Encode a row, cut to ``max_length`` tokens.

        An input is cut from the left. An output that is too long by itself is cut from the right.
        """
        prompt = self.prompt(row.input)
        output = self.tokenizer(self.data.separator + row.output, add_special_tokens=False)["input_ids"] + [self.end]
        if max_length is not None:
            if len(output) > max_length - 1:
                output = output[: max_length - 1]
                self.cut_outputs += 1
            room = max_length - len(output)
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
