"""The disk limit that a step enforces on itself.

A kubelet kills a pod at its disk limit within a second, and the step's last message is lost.
A step that measures more often than the kubelet ends first and gives the reason.
"""

from __future__ import annotations

import os
import threading
import time
from contextlib import suppress
from pathlib import Path

from expunge_jobs.runtime import shutdown

MEASURE_SECONDS = 1.0
"""Interval between two measurements. A kubelet measures every 10 s or less often."""


def used(folder: Path) -> int:
    """Return the bytes on disk of a folder and everything below.

    The bytes are counted as by ``du``, in whole blocks. A hard-linked file counts once.
    """
    blocks: dict[tuple[int, int], int] = {}
    for parent, _, files in os.walk(folder):
        for path in (parent, *(os.path.join(parent, name) for name in files)):
            with suppress(FileNotFoundError):  # a running step removes files
                found = os.lstat(path)
                blocks[found.st_dev, found.st_ino] = found.st_blocks
    return 512 * sum(blocks.values())


def watch(folder: Path, limit: int, advice: str) -> None:
    """End the step when the folder takes more bytes than the limit.

    A background thread measures the folder. ``advice`` tells the user how to avoid the limit.
    """

    def look() -> None:
        while True:
            if (count := used(folder)) > limit:
                shutdown.exceed(f"used {count:,} bytes of disk, more than {limit:,}: {advice}")
                time.sleep(shutdown.REPEAT_SECONDS)
            time.sleep(MEASURE_SECONDS)

    threading.Thread(target=look, daemon=True, name="disk").start()
