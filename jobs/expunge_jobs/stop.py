"""SIGTERM: ends the step where it stands, or, while its state must not be torn, at the next moment that suits."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from types import FrameType


class Terminated(BaseException):
    """SIGTERM came. No Exception, so that nothing on the way takes it for an error of its own."""


_held = 0
_came = False


def on_term(number: int, frame: FrameType | None) -> None:
    """The signal's handler."""
    global _came
    _came = True
    if not _held:
        raise Terminated


@contextlib.contextmanager
def held() -> Iterator[None]:
    """Inside, SIGTERM raises nothing: whoever holds it asks ``came`` often, and raises ``Terminated`` itself."""
    global _held
    _held += 1
    try:
        yield
    finally:
        _held -= 1


def came() -> bool:
    """Whether SIGTERM has come."""
    return _came
