"""Rows that fine-tunes would read cut, for the notices of a plan.

No tokenizer is fetched for a plan. Where none is on this machine, the step itself says how many rows it has cut.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import unquote, urlsplit

from expunge_jobs.data.rows import Item, Row
from expunge_jobs.tasks.references import Input, TaskData
from expunge_jobs.tasks.tasks import FinetuneTask

SPARE = 8
"""Tokens of a row that stand for no byte of it: a head, a dummy blank, the end."""


def tokenizer_file(task: FinetuneTask) -> Path | None:
    """Return the tokenizer of a fine-tune, if it is a file of this machine."""
    base = task.model.base
    address = urlsplit(base.uri) if isinstance(base, Input) else None
    if address is None or address.scheme != "file" or find_spec("tokenizers") is None:  # not in the controller's image
        return None
    file = Path(unquote(address.path)) / "tokenizer.json"
    return file if file.is_file() else None


def cut_notice(items: Sequence[Item], file: Path, data: TaskData) -> str | None:
    """Return how many forget rows are longer than ``max_length``, or None.

    A chat template adds tokens of its own, which are not counted.
    """
    import tokenizers

    given = [i for i in items if isinstance(i, Row)]
    try:
        tokenizer = tokenizers.Tokenizer.from_file(str(file))
        tokenizer.no_padding()
        tokenizer.no_truncation()
        tokenizer.encode_special_tokens = True
        texts = [r.input + data.separator + r.output for r in given]
        # Every verb plans. A token has at least a byte; therefore only long texts are encoded.
        texts = [t for t in texts if len(t.encode()) + SPARE > data.max_length]
        found = tokenizer.encode_batch(texts, add_special_tokens=False)
        alone, whole = tokenizer.encode("a", add_special_tokens=False).ids, tokenizer.encode("a").ids
        head = whole.index(alone[0]) if alone else 0
    except Exception:  # of another library; the step that loads the model says what is wrong
        return None
    cut = sum(head + len(e.ids) + 1 > data.max_length for e in found)  # with the end token
    if not cut:
        return None
    return (
        f"{cut} of {len(given)} rows to forget ({cut / len(given):.0%}) have more than {data.max_length} tokens: fine-tunes read "
        "them cut (data.max_length)"
    )
