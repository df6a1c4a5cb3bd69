"""The check whether an address may be read."""

from __future__ import annotations

from collections.abc import Iterable


def is_allowed(uri: str, prefixes: Iterable[str], query: str = "") -> bool:
    """Return whether the address lies at or below one of the prefixes.

    The address must not climb out of the prefix. The address may have the store's own options (``query``) and no
    others. An endpoint is an option, and the operator would send its own credentials there.
    """
    place, mark, options = uri.partition("?")
    if ".." in place.split("/") or mark + options not in ("", query):
        return False
    return any(place == p or (place.startswith(p) and (p.endswith("/") or place[len(p)] == "/")) for p in prefixes if p)
