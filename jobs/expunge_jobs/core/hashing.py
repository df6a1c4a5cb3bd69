"""JSON in one form, digests and seeds that no Python version changes."""

from __future__ import annotations

import hashlib
import json
from typing import Any


def canonical(value: Any) -> str:
    """JSON with sorted keys and no blanks: equal values give equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def identity(value: Any) -> str:
    """SHA-256 in hex of a JSON value without addresses: they say where bytes are, digests say which."""
    return hashlib.sha256(canonical(_without(value, _ADDRESSES)).encode()).hexdigest()


def stable_hash(*parts: object) -> int:
    """63 bits of SHA-256 over the parts: seeds and places that no Python version changes."""
    text = "\x1f".join(str(p) for p in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


_ADDRESSES = frozenset({"uri"})


def _without(value: Any, drop: frozenset[str]) -> Any:
    if isinstance(value, dict):
        return {k: _without(v, drop) for k, v in value.items() if k not in drop}
    if isinstance(value, list):
        return [_without(v, drop) for v in value]
    return value
