"""What a step says: its log's lines, each an event as JSON, and the same in words."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

Event = dict[str, Any]
"""``event`` (start, progress, notice, publish, done, failed) and the fields of its kind."""
Progress = dict[str, Any]
"""A step's last progress event (step, steps, loss, ...); or ``reason``, in words why it does not go on; or nothing yet."""


def parse_event(line: str | bytes) -> Event | None:
    """Return the event of a line. None: a library's words, or half a line."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) and isinstance(value.get("event"), str) else None


def newest_event(lines: Iterable[str | bytes], kind: str) -> Event:
    """Return the last event of a kind; empty where there is none."""
    found: Event = {}
    for line in lines:
        event = parse_event(line)
        if event is not None and event["event"] == kind:
            found = event
    return found


def event_words(event: Event) -> str:
    """Return an event as a person reads it.

    Raises:
        KeyError, TypeError, ValueError: a progress event of another program than a step's.
    """
    if event["event"] == "progress":
        return progress_words(event)
    rest = ", ".join(f"{k} {v}" for k, v in event.items() if k != "event")
    return f"{event['event']}: {rest}" if rest else str(event["event"])


def line_words(line: str) -> str:
    """Return a log's line as a person reads it: an event in words, anything else as it is."""
    event = parse_event(line)
    if event is None:
        return line
    try:
        return event_words(event)
    except (KeyError, TypeError, ValueError):  # no line of a step's
        return line


def progress_words(progress: Progress) -> str:
    """``step 12/75, loss 0.31, 5200 tokens/s, 9 s left``, or why it does not go on."""
    if "reason" in progress:
        return str(progress["reason"])
    if not progress:
        return "starting"
    out = [f"step {progress['step']}/{progress['steps']}"]
    if "loss" in progress:
        out.append(f"loss {progress['loss']:.3f}")
    if "tokens_per_second" in progress:
        out.append(f"{progress['tokens_per_second']:,.0f} tokens/s")
    if "seconds_left" in progress:
        out.append(f"{progress['seconds_left']:.0f} s left")
    return ", ".join(out)
