"""The encoding of rows as tokens.

A row is one text: input, separator and output, or a conversation by the tokenizer's chat template. The text is encoded
as a whole, since tokens(input) + tokens(output) may differ from tokens(text). An end token follows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from expunge_jobs.core.errors import BadTask
from expunge_jobs.data.rows import Row
from expunge_jobs.modeling.chat import ChatTemplate, Turn, marked_pieces, special_tokens
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

    ``end`` is the token that ends an output: the chat template's own, or else the one given. ``count`` is the number of
    rows. The other counts are of prompts that were cut, and of rows with a cut input, with a cut output, with a token
    across the border of input and output, and with a special token that a text spells and the tokenizer knows no other
    way to read.

    Raises:
        BadTask: the chat template is missing, is not named, fails, or does not show the texts as they are.
    """

    def __init__(self, tokenizer: Any, data: TaskData, end: int, limits: ModelLimits | None = None) -> None:
        self.tokenizer, self.data, self.end, self.limits = tokenizer, data, end, limits or ModelLimits()
        self.cut_prompts = self.cut_inputs = self.cut_outputs = self.border_rows = self.special_rows = self.count = 0
        unknown = tokenizer.unk_token_id
        self._specials = frozenset(special_tokens(tokenizer)) - {unknown}
        self._special = self._special_head()
        self._head, self._tail = self._special, 0
        self._chat = ChatTemplate(tokenizer, data.template) if data.template.kind == "chat" else None
        if self._chat is not None:
            self.end = self.end if self._chat.end is None else self._chat.end
            one, other = (self._ids(self._chat.prompt(text), chat=True)[0] for text in ("a", "0 1"))
            self._head = one[: shared(one, other)]
            self._tail = min(shared(one[::-1], other[::-1]), len(one) - len(self._head), len(other) - len(self._head))

    def prompt(self, text: str, limit: int | None = None) -> list[int]:
        """Return the tokens of a prompt alone, as evaluations use them.

        A prompt above ``limit`` tokens is cut from the left, but what precedes the text is kept.

        Raises:
            BadTask: a token that the model's embedding does not have, or a limit without room for the text.
        """
        ids = self._prompt(text).ids
        self.cut_prompts += limit is not None and len(ids) > limit
        return ids if limit is None else self._cut(ids, limit, self._head, self._tail)

    def text(self, text: str) -> list[int]:
        """Return the tokens of a text by itself.

        What the tokenizer puts behind a text is left out.

        Raises:
            BadTask: a token that the model's embedding does not have.
        """
        return self._known([*self._special, *self._ids(text, chat=False)[0]])

    def row(self, row: Row, max_length: int | None = None) -> Encoded:
        """Encode a row, cut to ``max_length`` tokens and to the model's positions.

        A token across the border of input and output belongs to the output. An input is cut from the left, behind what
        the tokenizer or template puts before the text. An output that is too long by itself is cut from the right.

        Raises:
            BadTask: as ``prompt``.
        """
        self.count += 1
        prompt = self._prompt(row.input)
        whole, ends, text = self._whole(prompt, row)
        count = shared(prompt.ids, whole)
        if count < len(prompt.ids) and ends is not None:
            # Offsets may lack a token's outer blanks. Therefore only a word between token and border shows the order.
            border = len(prompt.text)
            while count < len(whole) and text[ends[count] : border].strip():
                count += 1
        self.border_rows += count < len(prompt.ids)
        given, output = whole[:count] or [self.end], [*whole[count:], self.end]
        most = min(max_length or NO_LIMIT, self.limits.positions)
        least = max(1, len(self._head) + self._tail)  # of the prompt
        if len(output) > most - least:
            output = output[: max(0, most - least)]
            self.cut_outputs += 1
        self.cut_inputs += len(given) > most - len(output)
        given = self._cut(given, most - len(output), self._head, self._tail)
        if not output:
            raise self._no_room(most)
        return Encoded((*given, *self._known(output)), len(given))

    def cut_text(self, ids: list[int], limit: int) -> list[int]:
        """Cut the tokens of a text from the left, behind what precedes it.

        Raises:
            BadTask: a limit without room for any token of the text.
        """
        return self._cut(ids, limit, self._special)

    def rows(self, rows: Sequence[Row], max_length: int | None = None) -> list[Encoded]:
        """Encode every row, in order."""
        return [self.row(r, max_length) for r in rows]

    def tell(self, notice: Callable[[str], None]) -> None:
        """Report how many rows were cut, if any was."""
        for what, count, side in (("input", self.cut_inputs, "left"), ("output", self.cut_outputs, "right")):
            if count:
                notice(
                    f"{count} of {self.count} rows ({count / self.count:.0%}) are too long (data.max_length, or the model's "
                    f"positions): the {what} was cut from the {side}"
                )
        if self.cut_prompts:
            notice(
                f"{self.cut_prompts} prompts were cut from the left: the model's positions hold the generated tokens too"
            )
        if self.special_rows:
            notice(
                f"{self.special_rows} of {self.count} rows spell a special token, and this tokenizer reads it as one: an output "
                "may end there"
            )

    def receipt(self) -> dict[str, int]:
        """Return the counts, for the manifest."""
        return {
            "cut_prompts": self.cut_prompts,
            "cut_inputs": self.cut_inputs,
            "cut_outputs": self.cut_outputs,
            "border_rows": self.border_rows,
            "special_rows": self.special_rows,
        }

    def _prompt(self, text: str) -> _Prompt:
        if self._chat is not None:
            rendered = self._chat.prompt(text)
            return _Prompt(rendered, self._known(self._ids(rendered, chat=True)[0]))
        # An empty text without a BOS token has no token to predict from; therefore use the end token.
        return _Prompt(text, self.text(text) or [self.end])

    def _whole(self, prompt: _Prompt, row: Row) -> tuple[list[int], list[int] | None, str]:
        """Return a row's tokens, the ends of their characters, and its text.

        The end token is not among them.
        """
        if self._chat is not None:
            text = self._chat.whole(Turn(row.input, row.output), prompt.text)
            spelled = [self._encode(piece, split=True)["input_ids"] for piece, s in marked_pieces(text) if s]
            self.special_rows += any(not self._specials.isdisjoint(ids) for ids in spelled)
            ids, ends = self._ids(text, chat=True)
            return self._known(ids), ends, text
        text = row.input + self.data.separator + row.output
        ids, ends = self._ids(text, chat=False)
        self.special_rows += not self._specials.isdisjoint(ids)
        before = prompt.ids[: len(self._head)] if self._head else [self.end] if not row.input else []
        return self._known([*before, *ids]), None if ends is None else [0] * len(before) + ends, text

    def _ids(self, text: str, *, chat: bool) -> tuple[list[int], list[int] | None]:
        """Return the tokens of a text and the ends of their characters.

        A special token that is spelled in a user's text is encoded as text. A chat template's own tokens are tokens.
        Ends are None where the tokenizer knows none.
        """
        pieces = list(marked_pieces(text)) if chat else [(text, True)]
        if len(pieces) > 1:
            ids = [t for piece, spelled in pieces for t in self._encode(piece, split=spelled)["input_ids"]]
            return ids, None
        found = self._encode(text, split=not chat, return_offsets_mapping=self.tokenizer.is_fast)
        offsets = found.get("offset_mapping")
        return list(found["input_ids"]), None if offsets is None else [end for _, end in offsets]

    def _encode(self, text: str, *, split: bool, **options: Any) -> Any:
        try:
            return self.tokenizer(text, add_special_tokens=False, split_special_tokens=split, **options)
        except Exception as error:  # a tokenizer is a file of the user's; its library raises its own errors
            said = " ".join(str(error).split())[:300]
            raise BadTask(f"the tokenizer fails: {type(error).__name__}: {said}") from None

    def _special_head(self) -> list[int]:
        """Return the tokens that the tokenizer puts before every text."""
        alone = list(self._encode("a", split=True)["input_ids"])
        whole = list(self.tokenizer("a")["input_ids"])
        places = range(len(whole) - len(alone) + 1)
        return whole[: next((p for p in places if alone and whole[p : p + len(alone)] == alone), 0)]

    def _cut(self, ids: list[int], limit: int, head: list[int], tail: int = 0) -> list[int]:
        if len(ids) <= limit:
            return ids
        room = limit - len(head)
        if room < max(tail, 1 - len(head)):
            raise self._no_room(limit)
        return [*head, *ids[len(ids) - room :]]

    def _no_room(self, limit: int) -> BadTask:
        own = len(self._head) + self._tail
        return BadTask(
            f"a row may have {limit} tokens (data.max_length, or the model's positions), and {own} of them are the "
            f"{'chat template' if self._chat else 'tokenizer'}'s own: there is no room for the row's text"
        )

    def _known(self, ids: list[int]) -> list[int]:
        if ids and max(ids) >= self.limits.tokens:
            raise BadTask(
                f"the tokenizer gives the token {max(ids)}, but the model's embedding has {self.limits.tokens:,} rows: the "
                "tokenizer is another model's, or has tokens that were added without the model"
            )
        return ids


@dataclass(frozen=True)
class _Prompt:
    text: str
    ids: list[int]


def shared(a: Sequence[int], b: Sequence[int]) -> int:
    """Return the length of the common start of two sequences."""
    return next((n for n, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
