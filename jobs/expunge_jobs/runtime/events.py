"""What a step says: one JSON line at a time on stdout."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

listeners: list[Callable[[str], None]] = []
"""Who else is told what a step says."""


silent = False
"""Whether another process of the team speaks for this one."""


def emit(event: str, **fields: Any) -> None:
    """One JSON line on stdout: how a step tells whoever started it what it is doing."""
    if silent:
        return
    line = json.dumps({"event": event, **fields})
    sys.stdout.write(line + "\n")
    sys.stdout.flush()
    for listener in listeners:
        listener(line)
