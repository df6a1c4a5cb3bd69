"""Stores by the scheme of their address, one file each.

The module ``schemes/<scheme>.py`` defines:

    SHARED    whether other machines reach the store
    open_at   (address, Opening) -> Store; parses the options after a question mark
    split     (address) -> (address of the object's folder, the object's name there); only if ``SHARED``
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Opening:
    """The options for opening a store."""

    patient: bool = True
    """Whether to try a call more than twice."""
    away: float = 0.0
    """Seconds for which an unavailable server is retried after the SDK's last try."""
    largest: int | None = None
    """Limit in bytes of an object that ``get`` reads."""
    should_stop: Callable[[], bool] = lambda: False
    """Whether to stop waiting."""
