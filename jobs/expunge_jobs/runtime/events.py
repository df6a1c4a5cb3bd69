"""The events that a step reports, one JSON line each on stdout."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

listeners: list[Callable[[str], None]] = []
"""Functions that also receive each event line."""


silent = False
"""Whether another process of the worker group reports for this process."""


def emit(event: str, **fields: Any) -> None:
    """Write an event as one JSON line on stdout.

    The line reports the step's progress to the process that started the step. A silent process writes nothing.
    """
    if silent:
        return
    line = json.dumps({"event": event, **fields})
    sys.stdout.write(line + "\n")
    sys.stdout.flush()
    for listener in listeners:
        listener(line)
