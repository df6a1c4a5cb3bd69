"""Which addresses may be read."""

from __future__ import annotations

from collections.abc import Iterable


def is_allowed(uri: str, prefixes: Iterable[str], query: str = "") -> bool:
    """Whether the address lies at or below one of these, and does not climb out of it. It may have the store's own options
    (``query``) and no others: an endpoint is one of them, and the operator would go there with its own credentials."""
    place, mark, options = uri.partition("?")
    if ".." in place.split("/") or mark + options not in ("", query):
        return False
    return any(place == p or (place.startswith(p) and (p.endswith("/") or place[len(p)] == "/")) for p in prefixes if p)
