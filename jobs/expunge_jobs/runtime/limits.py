"""A step's own limit of disk. A kubelet kills at it within a second, and the step's last word is lost; who counts more often
than a kubelet does ends before it, and says why.
"""

from __future__ import annotations

import os
import threading
import time
from contextlib import suppress
from pathlib import Path

from expunge_jobs.runtime import shutdown

MEASURE_SECONDS = 1.0
"""Seconds between two counts. A kubelet counts every 10 s or less often."""


def used(folder: Path) -> int:
    """Bytes that the folder and all below it take, as ``du`` counts them: whole blocks, a linked file once."""
    blocks: dict[tuple[int, int], int] = {}
    for parent, _, files in os.walk(folder):
        for path in (parent, *(os.path.join(parent, name) for name in files)):
            with suppress(FileNotFoundError):  # a step at work removes files
                found = os.lstat(path)
                blocks[found.st_dev, found.st_ino] = found.st_blocks
    return 512 * sum(blocks.values())


def watch(folder: Path, limit: int, advice: str) -> None:
    """From now on the step ends when the folder takes more bytes than the limit. ``advice``: what to do about it."""

    def look() -> None:
        while True:
            if (count := used(folder)) > limit:
                shutdown.exceed(f"used {count:,} bytes of disk, more than {limit:,}: {advice}")
                time.sleep(shutdown.REPEAT_SECONDS)
            time.sleep(MEASURE_SECONDS)

    threading.Thread(target=look, daemon=True, name="disk").start()
