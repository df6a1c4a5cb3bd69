"""Locks of steps, each held by the process that runs the step."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
from pathlib import Path

from expunge_jobs.store import Store, StoreError

LOCKS = "locks"
"""Name of the folder with the locks.

The folder lies beside the artifacts if the store is a directory of this machine, and in the user's cache otherwise.
"""


class Locks:
    """A set of file locks, one for each step.

    The process that runs a step holds its lock; therefore two runners on one machine never run a step at the same time.
    """

    def __init__(self, store: Store) -> None:
        own = store.local_path(LOCKS)
        if own is not None:
            self.state = own.parent
        else:
            cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
            self.state = cache / "expunge" / hashlib.sha256(store.uri.encode()).hexdigest()[:16]

    def work(self, key: str) -> Path:
        """Return the step's work folder.

        The holder of the step's lock may empty the folder.
        """
        return self.state / "work" / key[:16]

    def take(self, key: str) -> int | None:
        """Take the step's lock and return its descriptor, or None if held.

        The lock is held as long as any process has the descriptor open.
        """
        folder = self.state / LOCKS
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            descriptor = os.open(folder / key[:16], os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise StoreError(f"{folder} is not writable for you ({error.strerror}): use another --store") from None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return None
        return descriptor

    def tidy(self) -> None:
        """Delete the work folders of killed steps.

        No process holds the lock of a killed step.
        """
        for work in sorted((self.state / "work").glob("*")):
            lock = self.take(work.name)
            if lock is not None:
                shutil.rmtree(work, ignore_errors=True)
                os.close(lock)

    def held(self, key: str) -> bool:
        """Return whether a process runs the step now.

        The check changes nothing and creates no file.
        """
        try:
            descriptor = os.open(self.state / LOCKS / key[:16], os.O_RDWR)
        except OSError:
            return False
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(descriptor)
        return False
