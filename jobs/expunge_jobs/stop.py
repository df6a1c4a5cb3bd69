"""SIGTERM, or the step's own deadline: ends it where it stands, or, while its state must not be torn, at the next moment
that suits."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType


class Terminated(BaseException):
    """SIGTERM came, or the deadline. No Exception, so that nothing on the way takes it for an error of its own."""


AGAIN_SECONDS = 5.0
"""The deadline's alarm is repeated as often, in case that a library swallowed what the first one raised."""

_held = 0
_came = False
_overdue = False


def on_term(number: int, frame: FrameType | None) -> None:
    """The signal's handler."""
    global _came
    _came = True
    if not _held:
        raise Terminated


def after(seconds: float) -> None:
    """From now on the step has so much time; when it is over, it ends as with SIGTERM, and ``overdue`` tells why."""
    signal.signal(signal.SIGALRM, _on_alarm)
    signal.setitimer(signal.ITIMER_REAL, seconds, AGAIN_SECONDS)


def _on_alarm(number: int, frame: FrameType | None) -> None:
    global _overdue
    _overdue = True
    on_term(number, frame)


def overdue() -> bool:
    """Whether the deadline was what ended the step."""
    return _overdue


@contextlib.contextmanager
def held() -> Iterator[None]:
    """Inside, SIGTERM raises nothing: whoever holds it asks ``came`` often, and raises ``Terminated`` itself."""
    global _held
    _held += 1
    try:
        yield
    finally:
        _held -= 1


def ignore() -> None:
    """The step is ending: from now on nothing interrupts it."""
    for number in (signal.SIGTERM, signal.SIGALRM):
        signal.signal(number, signal.SIG_IGN)


def came() -> bool:
    """Whether the step is to end."""
    return _came
