"""Stores by the scheme of their address, one file each.

The module ``schemes/<scheme>.py`` states:

    SHARED    whether other machines reach it
    open_at   (address, Opening) -> Store; takes apart what may follow a question mark
    split     (address) -> (address of its folder, name there): of one object, where ``SHARED``
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Opening:
    """How a store is to behave."""

    patient: bool = True
    """Try a call more than twice."""
    away: float = 0.0
    """Seconds more for which a server that gives no answer is asked again."""
    largest: int | None = None
    """Bytes of an object that ``get`` reads."""
    should_stop: Callable[[], bool] = lambda: False
    """Whether to give waiting up."""
