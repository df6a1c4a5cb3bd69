"""Errors of S3 and its SDK in words."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from expunge_jobs.store.protocol import Conflict, NotFound, StoreError, Unavailable
from expunge_jobs.store.s3_address import ALLOWED

_WORDS = {
    "InvalidAccessKeyId": "the server does not know this access key",
    "XAdminUserNotFound": "the server does not know this access key",
    "SignatureDoesNotMatch": "the secret key is wrong, or the request was changed on its way",
    "InvalidToken": "the session token is not valid",
    "RequestTimeTooSkewed": "this machine's clock differs too much from the server's",
}
_EXPIRED = ("ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired")
_REGION = ("PermanentRedirect", "AuthorizationHeaderMalformed", "IllegalLocationConstraintException")


class Denied(StoreError):
    """Credentials that the server refuses."""


class Expired(Denied, Unavailable):
    """Expired credentials.

    The same call may succeed after a renewal.
    """


def status_of(error: Any) -> int:
    """Return the HTTP status of the SDK's error."""
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def refused(store: str, checksums: Callable[[], str], path: str, error: Any, conditional: bool) -> StoreError:
    """Return the error for an answer of the server.

    ``store`` is the store's name. ``checksums`` gives the value in force, which only some errors need.
    ``conditional``: the request was a conditional write.
    """
    code, status = str(error.response.get("Error", {}).get("Code", "")), status_of(error)
    said = str(error.response.get("Error", {}).get("Message", "")) or code
    at = f" ({error.operation_name} {path})" if path else ""
    if status == 412 or (conditional and status == 404 and code == "NoSuchKey"):
        return Conflict(f"{path} is there already, or has changed")
    if code == "SlowDown":
        return Unavailable(f"the store {store}: the server is too busy, after several tries{at}: {said}")
    if code in _EXPIRED:
        return Expired(f"the store {store}: the credentials have expired; log in again{at}: {said}")
    if code in _WORDS:
        hint = ""
        if code == "SignatureDoesNotMatch" and checksums() == "when_supported":
            hint = "; some servers read no signature with checksums: try checksums=when_required"
        return Denied(f"the store {store}: {_WORDS[code]}{hint}{at}: {said}")
    if code == "NoSuchBucket":
        return StoreError(f"the store {store}: there is no such bucket; create it, or correct --store")
    if code in ("NoSuchKey", "404"):  # without a body (HEAD), the SDK uses the status as the code
        return NotFound(f"{store} has no {path}")
    if status in (301, 307) or code in _REGION:
        region = error.response.get("ResponseMetadata", {}).get("HTTPHeaders", {}).get("x-amz-bucket-region")
        right = f"it is in {region}: add ?region={region}" if region else "add its own as ?region=NAME"
        return StoreError(f"the store {store}: the bucket is in another region; {right} ({said})")
    if status == 403:
        return StoreError(f"the store {store}: access denied{at}: {said}")
    if status == 501 or code == "NotImplemented":
        what = "conditional writes, which keep two attempts apart" if conditional else f"this request{at}"
        return StoreError(f"the store {store}: the server does not know {what}: {said}")
    if re.search("checksum|content-md5", said, re.IGNORECASE):  # a bucket with Object Lock requires what others refuse
        other = next(v for v in ALLOWED["checksums"] if v != checksums())
        return StoreError(f"the store {store}: {said}{at}; checksums={other} may help with this server")
    kind = Unavailable if status >= 500 else StoreError
    return kind(f"the store {store} failed{at}: {said or status}")


def unreached(store: str, path: str, error: Exception) -> StoreError:
    """Return the error for a request without an answer."""
    from botocore import exceptions as sdk
    from s3transfer.exceptions import RetriesExceededError

    at = f" ({path})" if path else ""
    if isinstance(error, sdk.NoCredentialsError | sdk.PartialCredentialsError):
        return StoreError(
            f"the store {store}: no credentials found; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, a profile, "
            "or whatever else the AWS SDK reads"
        )
    if isinstance(
        error, sdk.SSOError | sdk.TokenRetrievalError | sdk.CredentialRetrievalError | sdk.MetadataRetrievalError
    ):
        return Expired(f"the store {store}: the login gives no credentials: {error}")
    if isinstance(error, sdk.SSLError):
        return StoreError(
            f"the store {store}: the server's certificate is not trusted; ?ca_bundle=FILE (or AWS_CA_BUNDLE) "
            f"names those that are: {error}"
        )
    cause = getattr(error, "kwargs", {}).get("error", error)
    if isinstance(cause, ValueError):  # the message may hold a session token that ends in a newline
        return StoreError(f"the store {store}: a request cannot be made{at}: is there a newline in the credentials?")
    if isinstance(error, sdk.ConnectionError | sdk.HTTPClientError | RetriesExceededError):
        return Unavailable(f"the store {store} is not reachable{at}: {error}")
    if isinstance(error, OSError):
        what = f"{error.strerror or error} ({error.filename or 'here'})"
        return StoreError(f"copying {path} of the store {store}: {what}")
    return StoreError(f"the store {store} failed{at}: {error}")
