"""SIGTERM, or a limit of the step's own, ends the step where it stands; while its state must not be torn, a little later."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from types import FrameType


class Terminated(BaseException):
    """SIGTERM came, or a limit is reached. No Exception, so that nothing on the way takes it for an error of its own."""


REPEAT_SECONDS = 5.0
"""A limit's signal is repeated as often, in case that a library swallowed what the first one raised."""

_deferrals = 0
_requested = False
_limit_reason = ""


def on_term(number: int, frame: FrameType | None) -> None:
    """The signal's handler."""
    global _requested
    _requested = True
    if not _deferrals:
        raise Terminated


def exceed_after(seconds: float, why: str) -> None:
    """End the step after so many seconds, as with SIGTERM; ``limit_reason`` then is ``why``."""

    def ring(number: int, frame: FrameType | None) -> None:
        global _limit_reason
        _limit_reason = why
        on_term(number, frame)

    signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds, REPEAT_SECONDS)


def exceed(why: str) -> None:
    """End the step at a limit of its own, as with SIGTERM; ``limit_reason`` then is ``why``. For any thread."""
    global _limit_reason
    _limit_reason = why
    os.kill(os.getpid(), signal.SIGTERM)


def limit_reason() -> str:
    """Return which limit of its own ended the step, in words; empty where none did."""
    return _limit_reason


@contextlib.contextmanager
def deferred() -> Iterator[None]:
    """Inside, SIGTERM raises nothing: the caller asks ``requested`` often, and raises ``Terminated`` itself."""
    global _deferrals
    _deferrals += 1
    try:
        yield
    finally:
        _deferrals -= 1


def ignore() -> None:
    """The step is ending: from now on nothing interrupts it."""
    for number in (signal.SIGTERM, signal.SIGALRM):
        signal.signal(number, signal.SIG_IGN)


def requested() -> bool:
    """Return whether the step is to end."""
    return _requested


def check() -> None:
    """Raise ``Terminated`` if the step is to end."""
    if _requested:
        raise Terminated
