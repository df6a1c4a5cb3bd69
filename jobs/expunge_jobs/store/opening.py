"""Which store an address means."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from expunge_jobs.core.errors import BadTask, suggestion
from expunge_jobs.store.protocol import Store

SCHEMES = ("file", "s3")


AWAY = 60.0
"""Seconds after the SDK's last try, for which a step goes on asking a server that is away. A controller waits by itself."""


def open_store(
    uri: str, away: float = 0.0, largest: int | None = None, should_stop: Callable[[], bool] = lambda: False
) -> Store:
    """The store at ``s3://bucket/prefix?option=value``, ``file:///path`` or a plain path. Looks at nothing yet.
    ``away``: so many seconds more a server that gives no answer is asked again. ``largest``: bytes that ``get`` reads.
    ``should_stop``: whether to give that up.

    Raises:
        BadTask: an address that no store here understands.
    """
    scheme, separator, rest = uri.partition("://")
    if not separator:
        scheme, rest = "file", uri
    if scheme == "file" and rest:
        from expunge_jobs.store.file import FileStore

        return FileStore(Path(rest), largest)
    if scheme == "s3":
        from expunge_jobs.store.s3 import S3Store

        return S3Store(uri, away=away, largest=largest, should_stop=should_stop)
    known = [f"{s}://" for s in SCHEMES]
    raise BadTask(
        f"store '{uri}': unknown scheme '{scheme}://'; allowed: {', '.join(known)} or a path{suggestion(scheme, list(SCHEMES))}"
    )
