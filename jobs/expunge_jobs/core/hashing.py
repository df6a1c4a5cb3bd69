"""Canonical JSON, digests and seeds that no Python version changes."""

from __future__ import annotations

import hashlib
import json
from typing import Any


def canonical(value: Any) -> str:
    """Return JSON with sorted keys and no whitespace.

    Equal values give equal text.
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def identity(value: Any) -> str:
    """Return the SHA-256 of a JSON value without its addresses, in hex.

    An address states the place of bytes. A digest states the bytes themselves.
    """
    return hashlib.sha256(canonical(_without(value, _ADDRESSES)).encode()).hexdigest()


def stable_hash(*parts: object) -> int:
    """Return 63 bits of the SHA-256 of the parts.

    Seeds and places are derived from this hash, because no Python version changes the result.
    """
    text = "\x1f".join(str(p) for p in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


_ADDRESSES = frozenset({"uri"})
_FREE = frozenset({"arguments", "parameters", "objective"})
"""Fields whose content others define: a ``uri`` there is no address of an input."""


def _without(value: Any, drop: frozenset[str]) -> Any:
    if isinstance(value, dict):
        return {k: v if k in _FREE else _without(v, drop) for k, v in value.items() if k not in drop}
    if isinstance(value, list):
        return [_without(v, drop) for v in value]
    return value
