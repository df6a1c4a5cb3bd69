"""A folder that outlives a step, or is shared by several at once (a claim that pods mount): files and folders by digest.

    <cache>/<digest>/whole       came there by rename
    <cache>/<digest>/new/whole   being fetched by whoever holds <cache>/<digest>/lock; the others wait and find it done

What is read from it is checked like everything else, so a damaged file costs a download and no more; but between the check and
the reading whoever can write the claim can change it: all of them are trusted.
"""

from __future__ import annotations

import fcntl
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from expunge_jobs.store import StoreError

LOCK_SECONDS = 600.0
"""Seconds to wait for another that fetches the same; then it is fetched beside the cache."""


@dataclass(frozen=True)
class ModelCache:
    """The cache in ``folder``. ``notice`` is told why it cannot be used; ``check_stop`` raises where a step is to end."""

    folder: Path
    notice: Callable[[str], None] = lambda text: None
    check_stop: Callable[[], None] = lambda: None

    def fetch(self, digest: str, place: Path, get: Callable[[Path], None], good: Callable[[Path], bool]) -> bool:
        """Put the file or folder of this digest at ``place``, as a link into the cache.

        ``get`` fetches it where the cache has none that is ``good``. Return whether it was found there, and good; what was
        fetched is still to be checked. A cache that cannot be written (full, read-only) is no error, but a notice: it is then
        fetched to ``place`` itself.
        """
        held, new = self.folder / digest / "whole", self.folder / digest / "new"
        place.parent.mkdir(parents=True, exist_ok=True)
        try:
            if held.exists() and good(held):  # it came by rename: reading needs no lock
                place.symlink_to(held)
                return True
            held.parent.mkdir(parents=True, exist_ok=True)
            with (held.parent / "lock").open("ab") as lock:
                self._take(lock)
                if not held.exists() or not good(held):
                    shutil.rmtree(new, ignore_errors=True)  # of one that was killed
                    new.mkdir()
                    get(new / "whole")
                    if held.is_dir() and not held.is_symlink():
                        shutil.rmtree(held)
                    (new / "whole").replace(held)
                    new.rmdir()
            place.symlink_to(held)
            return False
        except (OSError, StoreError) as error:
            why = getattr(error, "strerror", None) or error  # without the file's name: once is enough
            self.notice(f"the model cache {self.folder} cannot be used ({why}): fetched without it")
        get(place)
        return False

    def _take(self, lock: IO[bytes]) -> None:
        """By asking again and again: a wait in the kernel, in a thread that is no main thread, would hear no SIGTERM."""
        end = time.monotonic() + LOCK_SECONDS
        while True:
            try:
                return fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                self.check_stop()
                if time.monotonic() > end:
                    raise
                time.sleep(0.1)
