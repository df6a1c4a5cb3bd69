"""Events of a step's log, as JSON lines and in words."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

Event = dict[str, Any]
"""An event: ``event`` (start, progress, notice, publish, done, failed) and the fields of its kind."""
Progress = dict[str, Any]
"""A step's last progress event (step, steps, loss, ...), or ``reason``, or an empty dictionary before the first event.

``reason`` tells in words why the step does not continue.
"""


def parse_event(line: str | bytes) -> Event | None:
    """Return the event of a line, or None.

    None stands for a library's output or an incomplete line.
    """
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) and isinstance(value.get("event"), str) else None


def newest_event(lines: Iterable[str | bytes], kind: str) -> Event:
    """Return the last event of a kind, or an empty event."""
    found: Event = {}
    for line in lines:
        event = parse_event(line)
        if event is not None and event["event"] == kind:
            found = event
    return found


def event_words(event: Event) -> str:
    """Return an event in words.

    Raises:
        KeyError, TypeError, ValueError: a progress event of another program than a step's.
    """
    if event["event"] == "progress":
        return progress_words(event)
    rest = ", ".join(f"{k} {v}" for k, v in event.items() if k != "event")
    return f"{event['event']}: {rest}" if rest else str(event["event"])


def line_words(line: str) -> str:
    """Return a log's line in words.

    A line without an event stays unchanged.
    """
    event = parse_event(line)
    if event is None:
        return line
    try:
        return event_words(event)
    except (KeyError, TypeError, ValueError):  # the line comes from another program than a step
        return line


def progress_words(progress: Progress) -> str:
    """Return progress in words, or the reason why a step does not continue.

    Example: ``step 12/75, loss 0.310, 5,200 tokens/s, 9 s left``.
    """
    if "reason" in progress:
        return str(progress["reason"])
    if not progress:
        return "starting"
    out = [f"{progress.get('phase', 'step')} {progress['step']}/{progress['steps']}"]
    if "loss" in progress:
        out.append(f"loss {progress['loss']:.3f}")
    if "tokens_per_second" in progress:
        out.append(f"{progress['tokens_per_second']:,.0f} tokens/s")
    if "seconds_left" in progress:
        out.append(f"{progress['seconds_left']:.0f} s left")
    return ", ".join(out)
