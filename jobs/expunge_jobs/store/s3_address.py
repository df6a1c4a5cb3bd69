"""Parsing of ``s3://BUCKET/PREFIX?OPTION=VALUE``."""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import parse_qsl, urlencode

from expunge_jobs.core.errors import BadTask, suggestion
from expunge_jobs.store.protocol import (
    checked_path,
)

_BUCKET = re.compile(
    r"(arn:aws[^/]*:(?:s3|s3-object-lambda):[a-z0-9-]*:[0-9]{12}:accesspoint[/:][A-Za-z0-9.-]{1,63}|[A-Za-z0-9._-]{1,255})"
    r"(?:/|$)"
)
"""The SDK's own rule (botocore.handlers.VALID_BUCKET). Older and other servers have names that AWS no longer allows."""


ALLOWED = {"addressing": ("path", "virtual", "auto"), "checksums": ("when_supported", "when_required")}


@dataclass(frozen=True, kw_only=True)
class Address:
    """The parts of an ``s3://`` address."""

    bucket: str
    prefix: str = ""
    endpoint_url: str | None = None
    region: str | None = None
    addressing: str | None = None
    checksums: str | None = None
    ca_bundle: str | None = None
    sse_kms_key_id: str | None = None

    @property
    def name(self) -> str:
        """The bucket and prefix alone, for display."""
        return f"s3://{self.bucket}/{self.prefix}".rstrip("/")

    def __str__(self) -> str:
        options = {k: v for k in OPTIONS if (v := getattr(self, k)) is not None}
        return self.name + (f"?{urlencode(options)}" if options else "")


OPTIONS = tuple(k for k in Address.__dataclass_fields__ if k not in ("bucket", "prefix"))


def parse_address(uri: str) -> Address:
    """Parse an ``s3://`` address.

    Raises:
        BadTask: no bucket, an impossible one, or an option that is unknown, empty or has another value than is allowed.
    """
    place, _, query = uri.removeprefix("s3://").partition("?")
    found = _BUCKET.match(place)
    bucket = found[1] if found else place.partition("/")[0]
    if "@" in bucket:
        raise BadTask("store s3://...: credentials do not belong in an address; the SDK's own chain finds them")
    if not found or bucket in (".", ".."):
        said = "allowed: s3://bucket/prefix?option=value, the bucket's name of letters, digits and ._-, or an access point's ARN"
        raise BadTask(f"store '{uri}': '{bucket}' is no bucket's name; {said}")
    prefix = place[len(bucket) :]
    options: dict[str, str] = {}
    for name, value in parse_qsl(query, keep_blank_values=True):
        if name not in OPTIONS:
            allowed = ", ".join(OPTIONS)
            raise BadTask(
                f"store '{uri}': unknown option '{name}'; allowed: {allowed}{suggestion(name, list(OPTIONS))}"
            )
        values = ALLOWED.get(name)
        if not value or (values and value not in values):
            hint = suggestion(value, list(values)) if values else ""
            raise BadTask(
                f"store '{uri}': {name} is '{value}'; allowed: {', '.join(values) if values else 'a value'}{hint}"
            )
        options[name] = value
    if query and not options:
        raise BadTask(f"store '{uri}': '{query}' is no option=value")
    prefix = prefix.strip("/")
    if prefix:
        checked_path(prefix)
    return Address(bucket=bucket, prefix=prefix, **options)
