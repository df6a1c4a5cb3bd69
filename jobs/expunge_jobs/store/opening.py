"""Opening of stores by address."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from functools import cache
from types import ModuleType

from expunge_jobs.core.errors import BadTask, suggestion
from expunge_jobs.store import schemes
from expunge_jobs.store.protocol import Store
from expunge_jobs.store.schemes import Opening

AWAY = 60.0
"""Seconds for which a step retries an unavailable server after the SDK's last try. A controller has its own wait."""


@cache
def store_schemes() -> tuple[str, ...]:
    """Return the schemes of all stores.

    No store is imported.
    """
    return tuple(sorted(m.name for m in pkgutil.iter_modules(schemes.__path__)))


def open_store(
    uri: str,
    away: float = 0.0,
    largest: int | None = None,
    should_stop: Callable[[], bool] = lambda: False,
    patient: bool = True,
) -> Store:
    """Return the store at an address, without contacting the store.

    The address is ``s3://bucket/prefix?option=value``, ``file:///path`` or a plain path. ``away``, ``largest``,
    ``should_stop`` and ``patient`` are as in ``Opening``.

    Raises:
        BadTask: an address that no store here understands.
    """
    opening = Opening(away=away, largest=largest, should_stop=should_stop, patient=patient)
    opened: Store = _module(uri).open_at(uri, opening)
    return opened


def is_shared(uri: str) -> bool:
    """Return whether other machines reach the store or object at ``uri``.

    The result is False for an address that no store here understands.
    """
    try:
        return bool(_module(uri).SHARED)
    except BadTask:
        return False


def split(uri: str) -> tuple[str, str]:
    """Return the address of an object's folder, and the object's name there.

    The object lies in a shared store.

    Raises:
        BadTask: the address names no object.
    """
    found: tuple[str, str] = _module(uri).split(uri)
    return found


def shared_schemes() -> list[str]:
    """Return the schemes of stores that other machines reach."""
    return [s for s in store_schemes() if _load(s).SHARED]


def _module(uri: str) -> ModuleType:
    scheme, separator, _ = uri.partition("://")
    if not separator:
        scheme = "file"
    known = list(store_schemes())
    if scheme not in known:
        allowed = ", ".join(f"{s}://" for s in known)
        hint = suggestion(scheme, known)
        raise BadTask(f"store '{uri}': unknown scheme '{scheme}://'; allowed: {allowed} or a path{hint}")
    return _load(scheme)


def _load(scheme: str) -> ModuleType:
    return importlib.import_module(f"expunge_jobs.store.schemes.{scheme}")
