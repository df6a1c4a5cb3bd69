"""SIGTERM, or a limit of the step's own: ends it where it stands, or, while its state must not be torn, at the next moment
that suits."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from types import FrameType


class Terminated(BaseException):
    """SIGTERM came, or a limit is reached. No Exception, so that nothing on the way takes it for an error of its own."""


AGAIN_SECONDS = 5.0
"""A limit's signal is repeated as often, in case that a library swallowed what the first one raised."""

_held = 0
_came = False
_spent = ""


def on_term(number: int, frame: FrameType | None) -> None:
    """The signal's handler."""
    global _came
    _came = True
    if not _held:
        raise Terminated


def after(seconds: float, why: str) -> None:
    """From now on the step has so much time; when it is over, it ends as with SIGTERM, and ``spent`` tells why."""

    def ring(number: int, frame: FrameType | None) -> None:
        global _spent
        _spent = why
        on_term(number, frame)

    signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds, AGAIN_SECONDS)


def spend(why: str) -> None:
    """The step has used up what it may: it ends as with SIGTERM, and ``spent`` tells why. For any thread."""
    global _spent
    _spent = why
    os.kill(os.getpid(), signal.SIGTERM)


def spent() -> str:
    """Which limit of the step's own ended it, in words; nothing where none did."""
    return _spent


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


def check() -> None:
    """Raise ``Terminated`` if the step is to end."""
    if _came:
        raise Terminated
