"""Addresses of inputs outside the store."""

from __future__ import annotations

from expunge_jobs.core.errors import BadTask, suggestion
from expunge_jobs.store import store_schemes

SCHEMES = ("hf", *store_schemes(), "builtin")


STORED = "inputs"
"""Folder of uploads in a store. `expunge upload` writes ``<store>/inputs/<digest>/<name>``."""


def scheme(uri: str) -> str:
    """Return the scheme of an input.

    Raises:
        BadTask: an unknown scheme.
    """
    found, separator, _ = uri.partition("://")
    if not separator or found not in SCHEMES:
        allowed = ", ".join(f"{s}://" for s in SCHEMES)
        raise BadTask(
            f"{uri}: unknown scheme '{found}://'; allowed: {allowed} or a path{suggestion(found, list(SCHEMES))}"
        )
    return found
