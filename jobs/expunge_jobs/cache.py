"""A folder that outlives a step, or is shared by several at once (a claim that pods mount): files and folders by digest.

    <cache>/<digest>/whole       came there by rename
    <cache>/<digest>/new/whole   being fetched by whoever holds <cache>/<digest>/lock; the others wait and find it done

What is read from it is checked like everything else, so a damaged or foreign file costs a download and no more.
"""

from __future__ import annotations

import contextlib
import fcntl
import shutil
from collections.abc import Callable
from pathlib import Path

from expunge_jobs.store import StoreError


def through_cache(
    cache: Path, digest: str, place: Path, get: Callable[[Path], None], good: Callable[[Path], bool]
) -> None:
    """Puts the file or folder of this digest at ``place``, as a link into the cache; ``get`` fetches it where the cache has
    none that is ``good``.

    A cache that cannot be written (full, read-only) is no error: it is then fetched to ``place`` itself.
    """
    held, new = cache / digest / "whole", cache / digest / "new"
    place.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(OSError, StoreError):
        held.parent.mkdir(parents=True, exist_ok=True)
        with (held.parent / "lock").open("ab") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not held.exists() or not good(held):
                shutil.rmtree(new, ignore_errors=True)  # of one that was killed
                new.mkdir()
                get(new / "whole")
                if held.is_dir():
                    shutil.rmtree(held)
                (new / "whole").replace(held)
                new.rmdir()
        place.symlink_to(held)
        return
    get(place)
