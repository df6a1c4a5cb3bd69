"""Data that the package makes itself, so that an experiment can run anywhere: ``builtin://<name>/<set>?<parameters>``."""

from __future__ import annotations

import functools
import importlib
import pkgutil
from urllib.parse import parse_qsl, urlsplit

from expunge_jobs.core.errors import BadTask, suggestion


@functools.cache  # a folder is read for it, and each of hundreds of experiments asks
def names() -> list[str]:
    """The generators that there are."""
    return sorted(m.name for m in pkgutil.iter_modules(__path__))


def read(uri: str) -> bytes:
    """The JSON Lines of a builtin data set; equal for equal URIs.

    Raises:
        BadTask: no such generator, set or parameter; the message says what there is.
    """
    parts = urlsplit(uri)
    if parts.netloc not in names():
        raise BadTask(
            f"{uri}: unknown builtin data '{parts.netloc}'; one of: {', '.join(names())}{suggestion(parts.netloc, names())}"
        )
    generator = importlib.import_module(f"expunge_jobs.inputs.builtin.{parts.netloc}")
    name = parts.path.strip("/")
    if name not in generator.SETS:
        raise BadTask(
            f"{uri}: unknown set '{name}'; one of: {', '.join(generator.SETS)}{suggestion(name, list(generator.SETS))}"
        )
    given = dict(parse_qsl(parts.query, keep_blank_values=True))
    unknown = sorted(set(given) - {"documents", "seed"})
    if unknown:
        raise BadTask(f"{uri}: unknown parameter '{unknown[0]}'; allowed: documents, seed")
    try:
        documents, seed = int(given.get("documents", 10)), int(given.get("seed", 0))
    except ValueError:
        raise BadTask(f"{uri}: documents and seed are whole numbers") from None
    if not 1 <= documents <= generator.MAX_DOCUMENTS:
        raise BadTask(f"{uri}: documents is {documents}; allowed: 1 to {generator.MAX_DOCUMENTS}")
    rows: bytes = generator.make(name, documents, seed)
    return rows
