"""Storage of artifacts: a directory or an S3 bucket behind one protocol."""

from expunge_jobs.store.opening import AWAY, is_shared, open_store, shared_schemes, split, store_schemes
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
    "is_shared",
    "open_store",
    "sha256_of",
    "shared_schemes",
    "smaller",
    "split",
    "store_schemes",
    "too_large",
]
