"""Experiments that were being begun when this program died, remembered in a folder that outlives its container.

An Experiment can be more than the operator's memory holds, whatever the limits. The restarted operator would meet it again
first thing, and serve nobody. So a file stands for each Experiment while it is begun; one that is found at the next start was
left by a death.
"""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path

DEATHS = 2
"""In a row, after which an Experiment is held. After one it might have been another that was begun beside it."""

ALONE_SECONDS = 15.0
"""Seconds for which others let one begin that has to be alone; it asks again every few seconds."""


class Beginnings:
    """``folder`` is the operator's own: an emptyDir of its pod. None: nothing is remembered."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self._underway: set[str] = set()
        self._begun = 0
        """Experiments that are being begun now."""
        self._alone = False
        self._room_until = 0.0
        """Until when others wait, since one that is begun alone has asked for room."""
        self._lock = threading.Lock()
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)

    def deaths(self, uid: str, mark: str) -> int:
        """Return how often in a row this program died while it began the Experiment. ``mark`` names its generation and retry."""
        if self.folder is None:
            return 0
        try:
            known = json.loads(self._file(uid).read_text())
        except (FileNotFoundError, ValueError):  # none, or one that a full disk cut short
            return 0
        return int(known["begun"]) if known["mark"] == mark else 0

    @contextlib.contextmanager
    def turn(self, uid: str, mark: str) -> Iterator[bool]:
        """Yield whether this Experiment may be begun now, and remember inside ``with`` that it is.

        One during whose beginning this program died is begun while no other is: the next death then is its own.
        """
        deaths = self.deaths(uid, mark)
        if not self._enter(alone=deaths > 0):
            yield False
            return
        try:
            if self.folder is not None:
                self._remember(uid, mark, deaths + 1)
            yield True
        finally:
            if self.folder is not None:
                self._forget(uid)
            with self._lock:
                self._begun -= 1
                self._alone = False

    def _enter(self, alone: bool) -> bool:
        with self._lock:
            now = time.monotonic()
            if self._alone or (alone and self._begun) or (not alone and now < self._room_until):
                if alone:
                    self._room_until = now + ALONE_SECONDS
                return False
            self._alone = alone
            self._begun += 1
            return True

    def close(self) -> None:
        """An orderly end is no death: forget what is under way."""
        for uid in list(self._underway):
            self._forget(uid)

    def _remember(self, uid: str, mark: str, begun: int) -> None:
        with self._lock:
            self._underway.add(uid)
            new = self._file(uid).with_suffix(".new")
            new.write_text(json.dumps({"mark": mark, "begun": begun}))
            new.replace(self._file(uid))

    def _forget(self, uid: str) -> None:
        with self._lock:
            self._underway.discard(uid)
            self._file(uid).unlink(missing_ok=True)

    def _file(self, uid: str) -> Path:
        assert self.folder is not None
        return self.folder / f"{uid}.json"
