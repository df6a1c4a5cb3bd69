"""A folder that outlives a step and is shared by several at once (a claim that pods mount): files by their SHA-256.

    <cache>/<sha256>/file        whole: it came there by rename
    <cache>/<sha256>/new/file    being fetched by whoever holds <cache>/<sha256>/lock; the others wait and find it done

What is read from it is checked like everything else, so a damaged or foreign file costs a download and no more.
"""

from __future__ import annotations

import contextlib
import fcntl
import shutil
from collections.abc import Callable
from pathlib import Path

from expunge_jobs.store import StoreError, sha256_of


def through_cache(cache: Path, sha256: str, place: Path, get: Callable[[Path], None]) -> None:
    """Puts the file of this SHA-256 at ``place``, as a link into the cache; ``get`` fetches it where the cache lacks it.

    A cache that cannot be written (full, read-only) is no error: the file is then fetched to ``place`` itself.
    """
    held, new = cache / sha256 / "file", cache / sha256 / "new"
    place.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(OSError, StoreError):
        held.parent.mkdir(parents=True, exist_ok=True)
        with (held.parent / "lock").open("ab") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not held.is_file() or sha256_of(held) != sha256:
                shutil.rmtree(new, ignore_errors=True)  # of one that was killed
                new.mkdir()
                get(new / "file")
                (new / "file").replace(held)
                new.rmdir()
        place.symlink_to(held)
        return
    get(place)
