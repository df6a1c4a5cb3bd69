"""Where artifacts lie: a directory or an S3 bucket behind one protocol."""

from expunge_jobs.store.opening import AWAY, SCHEMES, open_store
from expunge_jobs.store.protocol import (
    MEDIUM,
    PROBE,
    SMALL,
    Conflict,
    Entry,
    NotFound,
    Store,
    StoreError,
    TooLarge,
    Unavailable,
    check_conditional_writes,
    checked_path,
    sha256_of,
    smaller,
    too_large,
)

__all__ = [
    "AWAY",
    "MEDIUM",
    "PROBE",
    "SCHEMES",
    "SMALL",
    "Conflict",
    "Entry",
    "NotFound",
    "Store",
    "StoreError",
    "TooLarge",
    "Unavailable",
    "check_conditional_writes",
    "checked_path",
    "open_store",
    "sha256_of",
    "smaller",
    "too_large",
]
