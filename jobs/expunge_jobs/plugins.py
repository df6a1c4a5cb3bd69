"""Finds objectives, merge methods and metrics by their file names.

A plugin is a module in ``objectives/``, ``merge_methods/`` or ``metrics/`` whose file name is its name. At its
top it states ``VERSION`` (raised by hand when its results change), ``Parameters`` (a pydantic model, where it has
any) and, as the first line of its docstring, what it is. It imports torch inside its functions only, so that the
controller can read all of this without torch.
"""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache
from types import ModuleType

from expunge_jobs.core.errors import suggestion

FAMILIES = {"objectives": "objective", "merge_methods": "merge method", "metrics": "metric"}


@cache
def names(family: str) -> list[str]:
    """The names of a family's plugins, sorted."""
    if family not in FAMILIES:
        raise ValueError(f"unknown family of plugins '{family}'; one of: {', '.join(FAMILIES)}")
    package = importlib.import_module(f"expunge_jobs.{family}")
    return sorted(m.name for m in pkgutil.iter_modules(package.__path__) if not m.name.startswith("_"))


@cache
def load(family: str, name: str) -> ModuleType:
    """The plugin's module.

    Raises:
        ValueError: no such plugin; the message lists those that there are and the nearest word.
    """
    known = names(family)
    if name not in known:
        kind = FAMILIES[family]
        raise ValueError(f"unknown {kind} '{name}'; one of: {', '.join(known)}{suggestion(name, known)}")
    return importlib.import_module(f"expunge_jobs.{family}.{name}")


def version(family: str, name: str) -> int:
    """The plugin's version, which is part of the key of every step that uses it."""
    return int(load(family, name).VERSION)


def description(family: str, name: str) -> str:
    """The first line of the plugin's docstring."""
    return (load(family, name).__doc__ or "").strip().splitlines()[0]
