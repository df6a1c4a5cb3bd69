"""One lock a step, held by the process that runs it."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
from pathlib import Path

from expunge_jobs.store import Store, StoreError

LOCKS = "locks"
"""The folder of the locks, beside the artifacts where the store is a directory of this machine."""


class Locks:
    """One lock a step, held by the process that runs it: two runners on one machine never run a step side by side."""

    def __init__(self, store: Store) -> None:
        own = store.local_path(LOCKS)
        if own is not None:
            self.state = own.parent
        else:
            cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
            self.state = cache / "expunge" / hashlib.sha256(store.uri.encode()).hexdigest()[:16]

    def work(self, key: str) -> Path:
        """The step's work folder; whoever holds the lock may empty it."""
        return self.state / "work" / key[:16]

    def take(self, key: str) -> int | None:
        """A descriptor that holds the step's lock as long as any process has it open; None if it is held."""
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
        """Removes the work folders of steps that were killed; nobody holds their locks."""
        for work in sorted((self.state / "work").glob("*")):
            lock = self.take(work.name)
            if lock is not None:
                shutil.rmtree(work, ignore_errors=True)
                os.close(lock)

    def held(self, key: str) -> bool:
        """Whether some process runs this step now. Changes nothing, not even by making a file."""
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
