"""A record of the Experiments that the operator was beginning at a crash.

The record is a folder that survives the operator's container. An Experiment can need more memory than the operator
has, whatever the limits. The restarted operator would begin the same Experiment first, crash again, and serve no
other. Therefore a file stands for each Experiment while the operator begins it. A file that is found at the next
start was left by a crash.
"""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path

DEATHS_UNTIL_HELD = 2
"""Consecutive crashes after which an Experiment is held.

A single crash may be the fault of another Experiment that was begun at the same time.
"""

ALONE_SECONDS = 15.0
"""Seconds for which other Experiments wait for an Experiment that must begin alone.

The Experiment that must begin alone asks again every few seconds.
"""


class Beginnings:
    """The Experiments that are being begun, and the crashes on each.

    ``folder`` is the operator's own, an emptyDir of its pod. If ``folder`` is None, nothing is remembered.
    """

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self._underway: set[str] = set()
        self._begun = 0
        """Number of Experiments that are being begun now."""
        self._alone = False
        self._room_until = 0.0
        """Time until which other Experiments wait for one that must begin alone, in seconds of the monotonic clock."""
        self._lock = threading.Lock()
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)

    def deaths(self, uid: str, mark: str) -> int:
        """Return the number of consecutive crashes on this Experiment.

        At each of them the operator was beginning the Experiment. ``mark`` names the Experiment's generation and retry.
        """
        if self.folder is None:
            return 0
        try:
            known = json.loads(self._file(uid).read_text())
        except (FileNotFoundError, ValueError):  # no file, or a file that a full disk cut short
            return 0
        return int(known["begun"]) if known["mark"] == mark else 0

    @contextlib.contextmanager
    def turn(self, uid: str, mark: str) -> Iterator[bool]:
        """Yield whether this Experiment may be begun now.

        Inside ``with``, a file records that the Experiment is being begun. After a crash the Experiment is begun
        alone, so that the next crash is certainly its own.
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
        """Forget the beginnings under way, because an orderly end is no crash."""
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
