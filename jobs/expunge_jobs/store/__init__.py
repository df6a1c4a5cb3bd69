"""Where artifacts lie: a small protocol that a directory and an S3 bucket both fit.

StepError
└── StoreError            the store cannot be used now: not writable, full, not reachable
    ├── NotFound          nothing is there under this path
    └── Conflict          a conditional write met something else there
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from expunge_jobs.errors import BadTask, StepError, nearest


class StoreError(StepError):
    """The store cannot be used now; the message says why and what to do."""


class NotFound(StoreError):
    """Nothing is there under this path."""


class Conflict(StoreError):
    """A conditional write met something else there."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One stored object; ``modified`` in seconds since 1970."""

    path: str
    size: int
    modified: float


class Store(Protocol):
    """Objects under slash-separated paths. Every write is atomic: a reader sees all of it or none."""

    uri: str

    def get(self, path: str) -> tuple[bytes, str]:
        """The object and its version (an opaque tag for ``if_match``). Raises NotFound."""
        ...

    def put(self, path: str, data: bytes, *, if_absent: bool = False, if_match: str | None = None) -> None:
        """Write; only if nothing is there (``if_absent``) or only over this version. Raises Conflict."""
        ...

    def get_file(self, path: str, to: Path) -> None:
        """Copy an object into a local file. Raises NotFound."""
        ...

    def put_file(self, path: str, source: Path) -> None:
        """Copy a local file into the store."""
        ...

    def list(self, prefix: str) -> Iterator[Entry]:
        """Every object below the folder ``prefix``, sorted by path."""
        ...

    def delete(self, paths: Iterable[str]) -> None:
        """Delete objects; one that is not there is no error."""
        ...

    def local_path(self, path: str) -> Path | None:
        """Where the object is (or would be) in this machine's file system, if it is there at all."""
        ...


SCHEMES = ("file",)


def open_store(uri: str) -> Store:
    """The store at ``file:///path`` or at a plain path.

    Raises:
        BadTask: an address that no store here understands.
    """
    scheme, separator, rest = uri.partition("://")
    if not separator:
        scheme, rest = "file", uri
    if scheme == "file" and rest:
        from expunge_jobs.store.file import FileStore

        return FileStore(Path(rest))
    known = [f"{s}://" for s in SCHEMES]
    raise BadTask(
        f"store '{uri}': unknown scheme '{scheme}://'; allowed: {', '.join(known)} or a path{nearest(scheme, list(SCHEMES))}"
    )
