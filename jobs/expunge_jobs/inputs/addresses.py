"""What an address outside the store may be."""

from __future__ import annotations

from expunge_jobs.core.errors import BadTask, suggestion
from expunge_jobs.store import store_schemes

SCHEMES = ("hf", *store_schemes(), "builtin")


STORED = "inputs"
"""``<store>/inputs/<digest>/<name>``: what `expunge upload` has put there."""


def scheme(uri: str) -> str:
    """The scheme of an input.

    Raises:
        BadTask: one that nobody here reads.
    """
    found, separator, _ = uri.partition("://")
    if not separator or found not in SCHEMES:
        allowed = ", ".join(f"{s}://" for s in SCHEMES)
        raise BadTask(
            f"{uri}: unknown scheme '{found}://'; allowed: {allowed} or a path{suggestion(found, list(SCHEMES))}"
        )
    return found
