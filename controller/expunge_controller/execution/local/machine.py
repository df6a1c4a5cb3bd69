"""Resources of this machine, and the threads of a step."""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path


def cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def threads_of(kind: str, specialists: int, available: int) -> int:
    """Return the number of threads of a step.

    The number depends only on the available cores, the step's kind and the number of specialists.
    Therefore the bits of a step's result do not depend on other running steps.
    """
    if kind == "memorize":
        return available
    if kind == "merge":
        return 1
    return max(1, available // max(2, specialists))


def machine_memory() -> int:
    """Return the memory of this machine in bytes.

    The limit of this process's control group takes precedence if it is smaller.
    """
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for file in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        with contextlib.suppress(OSError, ValueError):
            total = min(total, int(Path(file).read_text()))
    return total


def gpus() -> list[str]:
    """Return the GPUs that this process may use, by number."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [g for g in visible.split(",") if g.strip() not in ("", "-1")]
    devices = Path("/dev")
    return sorted(m.group(1) for p in devices.glob("nvidia*") if (m := re.fullmatch(r"nvidia(\d+)", p.name)))
