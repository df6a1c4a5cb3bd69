"""Built-in data: ``builtin://<name>/<set>?<parameters>``.

The package generates these data itself; therefore an experiment can run anywhere.
"""

from __future__ import annotations

import functools
import importlib
import pkgutil
from urllib.parse import parse_qsl, urlsplit

from expunge_jobs.core.errors import BadTask, suggestion


@functools.cache  # each call reads a folder, and hundreds of experiments call
def names() -> list[str]:
    """Return the names of the generators."""
    return sorted(m.name for m in pkgutil.iter_modules(__path__))


def read(uri: str) -> bytes:
    """Return the JSON Lines of a built-in data set.

    Equal URIs give equal bytes.

    Raises:
        BadTask: an unknown generator, set or parameter. The message lists the known ones.
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
