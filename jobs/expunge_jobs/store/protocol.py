"""Where artifacts lie: a small protocol that a directory and an S3 bucket both fit.

StepError
└── StoreError            the store cannot be used now: not writable, full, not reachable
    ├── NotFound          nothing is there under this path
    ├── Conflict          a conditional write met something else there
    ├── TooLarge          more than this reader takes whole
    └── Unavailable       no answer, or too busy, for longer than a call is tried again: a later one may go through
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from expunge_jobs.core.errors import StepError


class StoreError(StepError):
    """The store cannot be used now; the message says why and what to do."""


class NotFound(StoreError):
    """Nothing is there under this path."""


class Conflict(StoreError):
    """A conditional write met something else there."""


class TooLarge(StoreError):
    """An object, or a folder's list, is larger than this reader takes whole."""


class Unavailable(StoreError):
    """A store, or another server, gives no answer just now; the same call may go through later."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One stored object; ``modified`` in seconds since 1970."""

    path: str
    size: int
    modified: float


class Store(Protocol):
    """Objects under slash-separated paths. Every write is atomic: a reader sees all of it or none."""

    uri: str
    """What ``open_store`` takes."""
    name: str
    """The same as people read it: a prefix of every object's address, without options."""
    largest: int | None
    """Bytes of an object that ``get`` reads; None: whatever there is. A process that serves many has a bound."""

    def get(self, path: str, largest: int | None = None) -> tuple[bytes, str]:
        """The object and its version (an opaque tag for ``if_match``). ``largest``: bytes that this call reads.

        Raises NotFound, TooLarge."""
        ...

    def put(self, path: str, data: bytes, *, if_absent: bool = False, if_match: str | None = None) -> None:
        """Write; only if nothing is there (``if_absent``) or only over this version. Raises Conflict.

        A write that was sent again because its answer got lost may meet itself: after a Conflict, read."""
        ...

    def get_file(self, path: str, to: Path) -> None:
        """Copy an object into a local file. Raises NotFound."""
        ...

    def put_file(self, path: str, source: Path) -> None:
        """Copy a local file into the store."""
        ...

    def present(self, paths: Iterable[str]) -> set[str]:
        """Those of these objects that are there."""
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

    def details(self) -> str:
        """What else is to be known of how it is reached, as ``; name=value``; or nothing."""
        ...

    def check(self) -> None:
        """Ask once, without patience, whether the store can be used. Raises StoreError, in words."""
        ...


PROBE = "probe"
"""An empty object that stays in a store once it was checked."""


def check_conditional_writes(store: Store) -> None:
    """Sees for itself that of two writes with ``if_absent`` the second meets a conflict: two attempts at a step are kept
    apart by nothing else. Some servers ignore the condition; some file systems have no hard links.

    Raises:
        StoreError: the second write went through, or the store cannot be written at all.
    """
    try:
        store.put(PROBE, b"", if_absent=True)
        store.put(PROBE, b"", if_absent=True)
    except Conflict:  # of the first, where the store was checked before
        return
    raise StoreError(
        f"the store {store.name} ignores If-None-Match: two attempts at a step could both finish; use another"
    )


def checked_path(path: str) -> str:
    """A path in a store.

    Raises:
        StoreError: empty, or with an empty, ``.`` or ``..`` part.
    """
    if not path or any(part in ("", ".", "..") for part in path.split("/")):
        raise StoreError(f"'{path}' is no path in a store")
    return path


SMALL, MEDIUM = 1 << 16, 1 << 22
"""Bytes of objects that say a few words (records, ends, failures), and of manifests: parsed, JSON takes thirty times as much."""


def smaller(one: int | None, other: int | None) -> int | None:
    """Return the smaller of two bounds, either of which may be none."""
    bounds = [b for b in (one, other) if b is not None]
    return min(bounds) if bounds else None


def too_large(path: str, size: int, largest: int) -> TooLarge:
    """Return the error for an object of so many bytes where ``largest`` are read."""
    return TooLarge(f"{path} has {size:,} bytes; at most {largest:,} are read here")


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's bytes, in hex, with bounded memory."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
