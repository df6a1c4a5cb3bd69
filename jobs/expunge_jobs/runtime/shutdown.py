"""The end of a step by SIGTERM or by a limit of its own.

The step ends at once. While its state must not be torn, the step ends a little later.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from types import FrameType


class Terminated(BaseException):
    """The end of a step because SIGTERM came or a limit is reached.

    The class is no ``Exception``, so that no code on the way takes it for an error of its own.
    """


REPEAT_SECONDS = 5.0
"""Interval at which a limit's signal is repeated. A library may swallow the exception of the first signal."""

_deferrals = 0
_requested = False
_limit_reason = ""


def on_term(number: int, frame: FrameType | None) -> None:
    """Handle the signal by raising ``Terminated``, unless deferred."""
    global _requested
    _requested = True
    if not _deferrals:
        raise Terminated


def exceed_after(seconds: float, why: str) -> None:
    """End the step after ``seconds``, as with SIGTERM.

    ``limit_reason`` then returns ``why``.
    """

    def ring(number: int, frame: FrameType | None) -> None:
        global _limit_reason
        _limit_reason = why
        on_term(number, frame)

    signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds, REPEAT_SECONDS)


def exceed(why: str) -> None:
    """End the step at a limit of its own, as with SIGTERM.

    ``limit_reason`` then returns ``why``. Any thread may call this function.
    """
    global _limit_reason
    _limit_reason = why
    os.kill(os.getpid(), signal.SIGTERM)


def limit_reason() -> str:
    """Return the message of the limit that ended the step.

    The message is empty if no limit ended the step.
    """
    return _limit_reason


@contextlib.contextmanager
def deferred() -> Iterator[None]:
    """Defer ``Terminated`` while the block runs.

    Inside, SIGTERM raises nothing. The caller asks ``requested`` often and raises ``Terminated`` itself.
    """
    global _deferrals
    _deferrals += 1
    try:
        yield
    finally:
        _deferrals -= 1


def ignore() -> None:
    """Ignore SIGTERM and SIGALRM, since the step is ending."""
    for number in (signal.SIGTERM, signal.SIGALRM):
        signal.signal(number, signal.SIG_IGN)


def requested() -> bool:
    """Return whether the step is to end."""
    return _requested


def check() -> None:
    """Raise ``Terminated`` if the step is to end."""
    if _requested:
        raise Terminated
