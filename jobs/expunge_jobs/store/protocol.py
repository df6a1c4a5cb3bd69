"""The protocol of stores, which a directory and an S3 bucket implement.

StepError
└── StoreError            the store cannot be used now: not writable, full, not reachable
    ├── NotFound          no object has this path
    ├── Conflict          a conditional write met another object or version
    ├── TooLarge          larger than the reader's limit
    └── Unavailable       no answer, or too busy, after all retries; a later call may succeed
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from expunge_jobs.core.errors import StepError


class StoreError(StepError):
    """A store that cannot be used now.

    The message states the reason and the remedy.
    """


class NotFound(StoreError):
    """A path without an object."""


class Conflict(StoreError):
    """A conditional write that met another object or version."""


class TooLarge(StoreError):
    """An object, or a folder's list, above the reader's limit."""


class Unavailable(StoreError):
    """A store, or another server, that does not answer now.

    The same call may succeed later.
    """


@dataclass(frozen=True, slots=True)
class Entry:
    """A stored object.

    ``modified`` is in seconds since 1970.
    """

    path: str
    size: int
    modified: float


class Store(Protocol):
    """Objects under slash-separated paths.

    Every write is atomic: a reader sees all of the write or none.
    """

    uri: str
    """Address that ``open_store`` accepts."""
    name: str
    """Address for display, without options: a prefix of every object's address."""
    largest: int | None
    """Limit in bytes of an object that ``get`` reads; None: no limit. A process that serves many users has a limit."""

    def get(self, path: str, largest: int | None = None) -> tuple[bytes, str]:
        """Return an object and its version.

        The version is an opaque tag for ``if_match``. ``largest`` limits the bytes that this call reads.

        Raises:
            NotFound: no object has this path.
            TooLarge: the object is larger than the limit.
        """
        ...

    def put(self, path: str, data: bytes, *, if_absent: bool = False, if_match: str | None = None) -> None:
        """Write an object.

        ``if_absent`` writes only if no object is there. ``if_match`` writes only over this version. The answer to a
        write may be lost; the repeated write may then conflict with the first. Therefore read the object after a
        Conflict.

        Raises:
            Conflict: the condition does not hold.
        """
        ...

    def get_file(self, path: str, to: Path) -> None:
        """Copy an object into a local file.

        Raises:
            NotFound: no object has this path.
        """
        ...

    def put_file(self, path: str, source: Path) -> None:
        """Copy a local file into the store."""
        ...

    def present(self, paths: Iterable[str]) -> set[str]:
        """Return those of the paths that have an object."""
        ...

    def list(self, prefix: str) -> Iterator[Entry]:
        """Yield every object below the folder ``prefix``, sorted by path."""
        ...

    def delete(self, paths: Iterable[str]) -> None:
        """Delete objects.

        A missing object is no error.
        """
        ...

    def local_path(self, path: str) -> Path | None:
        """Return the object's path in this machine's file system.

        The object may be absent. The result is None for a store outside the file system.
        """
        ...

    def details(self) -> str:
        """Return further properties of the connection as ``; name=value``.

        The text is empty if there are none.
        """
        ...

    def check(self) -> None:
        """Check once, with few retries, whether the store can be used.

        Raises:
            StoreError: the store cannot be used. The message states the reason.
        """
        ...


PROBE = "probe"
"""Path of an empty object that stays in a store after a check."""


def check_conditional_writes(store: Store) -> None:
    """Check that the second of two writes with ``if_absent`` conflicts.

    Only this conflict keeps two attempts at a step apart. Some servers ignore the condition. Some file systems have no
    hard links.

    Raises:
        StoreError: the second write went through, or the store cannot be written at all.
    """
    try:
        store.put(PROBE, b"", if_absent=True)
        store.put(PROBE, b"", if_absent=True)
    except Conflict:  # of the first write, if the store was checked before
        return
    raise StoreError(
        f"the store {store.name} ignores If-None-Match: two attempts at a step could both finish; use another"
    )


def checked_path(path: str) -> str:
    """Return ``path`` if it is valid in a store.

    Raises:
        StoreError: the path is empty, or has an empty, ``.`` or ``..`` part.
    """
    if not path or any(part in ("", ".", "..") for part in path.split("/")):
        raise StoreError(f"'{path}' is no path in a store")
    return path


SMALL, MEDIUM = 1 << 16, 1 << 22
"""Limits in bytes of short objects (records, ends, failures) and of manifests. Parsed JSON takes 30 times as much."""


def smaller(one: int | None, other: int | None) -> int | None:
    """Return the smaller of two limits, either of which may be None."""
    bounds = [b for b in (one, other) if b is not None]
    return min(bounds) if bounds else None


def too_large(path: str, size: int, largest: int) -> TooLarge:
    """Return the error for an object of ``size`` bytes above ``largest``."""
    return TooLarge(f"{path} has {size:,} bytes; at most {largest:,} are read here")


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file in hex, with bounded memory."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
