"""The upload of a step's log to its attempt's folder.

On a cluster, a log is lost with its pod; therefore the store keeps a copy.

    attempts/<attempt>/log/<number>.jsonl     lines in order; a part every few seconds while there are new lines
"""

from __future__ import annotations

import threading
from types import TracebackType

from expunge_jobs.artifacts.attempts import LOG_PARTS, Attempt
from expunge_jobs.store import StoreError


class LogParts:
    """A log that is uploaded in parts.

    Inside ``with``, every line reaches the store within ``seconds``. The last lines reach the store at the end.
    """

    def __init__(self, attempt: Attempt, seconds: float) -> None:
        self.attempt, self.seconds = attempt, seconds
        self._lines: list[str] = []
        self._number = 0
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._loop, daemon=True, name="log")

    def __enter__(self) -> LogParts:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, raised: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._end.set()
        self._thread.join()

    def take(self, line: str) -> None:
        """Add one line, without its line ending."""
        self._lines.append(line)

    def _loop(self) -> None:
        wait = min(1.0, self.seconds)  # the first part soon, to show that the step has begun
        while not self._end.wait(wait):
            self._write()
            wait = self.seconds
        self._write()

    def _write(self) -> None:
        count = len(self._lines)
        if not count:
            return
        part = "".join(f"{line}\n" for line in self._lines[:count]).encode()
        try:
            self.attempt.store.put(f"{self.attempt.folder}/{LOG_PARTS}/{self._number + 1:06d}.jsonl", part)
        except StoreError:
            return  # the lines stay for the next part and are on stdout as well
        self._number += 1
        del self._lines[:count]
