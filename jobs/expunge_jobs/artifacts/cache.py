"""A cache of files and folders by digest.

The cache outlives a step, or several steps share the cache at once (a claim that pods mount).

    <cache>/<digest>/whole       complete; moved into place by rename
    <cache>/<digest>/new/whole   in download by the holder of <cache>/<digest>/lock; the others wait for it

Every file from the cache is verified like any other input. Therefore a damaged file costs only a download. A process
with write access to the claim can change a file between verification and use. Therefore all such processes are trusted.
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
"""Lock timeout in seconds, while another process fetches. After that, the step fetches without the cache."""


@dataclass(frozen=True)
class ModelCache:
    """The cache in ``folder``.

    ``notice`` receives the reason why the cache cannot be used. ``check_stop`` raises if the step must end.
    """

    folder: Path
    notice: Callable[[str], None] = lambda text: None
    check_stop: Callable[[], None] = lambda: None

    def fetch(self, digest: str, place: Path, get: Callable[[Path], None], good: Callable[[Path], bool]) -> bool:
        """Link the file or folder of this digest from the cache to ``place``.

        ``get`` fetches the content if the cache has no ``good`` copy. Returns True if a good copy was in the cache.
        After False, the caller must verify the content. A cache that cannot be written (full, read-only) causes a
        notice and no error. In that case ``get`` fetches to ``place`` itself.
        """
        held, new = self.folder / digest / "whole", self.folder / digest / "new"
        place.parent.mkdir(parents=True, exist_ok=True)
        try:
            if held.exists() and good(held):  # `whole` appears by rename; therefore reading needs no lock
                place.symlink_to(held)
                return True
            held.parent.mkdir(parents=True, exist_ok=True)
            with (held.parent / "lock").open("ab") as lock:
                self._take(lock)
                if not held.exists() or not good(held):
                    shutil.rmtree(new, ignore_errors=True)  # left by a killed process
                    new.mkdir()
                    get(new / "whole")
                    if held.is_dir() and not held.is_symlink():
                        shutil.rmtree(held)
                    (new / "whole").replace(held)
                    new.rmdir()
            place.symlink_to(held)
            return False
        except (OSError, StoreError) as error:
            why = getattr(error, "strerror", None) or error  # `strerror` omits the file name, which the notice has
            self.notice(f"the model cache {self.folder} cannot be used ({why}): fetched without it")
        get(place)
        return False

    def _take(self, lock: IO[bytes]) -> None:
        """Take the lock by polling.

        A blocking wait in the kernel, outside the main thread, would not notice SIGTERM.
        """
        end = time.monotonic() + LOCK_SECONDS
        while True:
            try:
                return fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                self.check_stop()
                if time.monotonic() > end:
                    raise
                time.sleep(0.1)
