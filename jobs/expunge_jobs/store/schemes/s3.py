"""A store in a bucket of S3 or of a compatible server, over boto3.

    s3://BUCKET/PREFIX?OPTION=VALUE&...

    endpoint_url      the server, if not AWS (default: the SDK's own: AWS_ENDPOINT_URL_S3, ~/.aws/config, ...)
    region            the bucket's region (default: the SDK's own)
    addressing        path, virtual or auto (default: auto on AWS, else path)
    checksums         when_supported or when_required (default: when_supported on AWS, else when_required, since some
                      servers refuse the SDK's own checksums); our manifests hold SHA-256 in either case
    ca_bundle         a file of trusted certificates (default: the SDK's own, AWS_CA_BUNDLE)
    sse_kms_key_id    encrypt written objects with this KMS key

Credentials come from the SDK's own chain, never from the address. Files and environments change during a run of hours.
Therefore the store looks for credentials once more after a refusal.
"""

from __future__ import annotations

import builtins
import contextlib
import math
import random
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from expunge_jobs.core.errors import BadTask
from expunge_jobs.core.proxies import proxy_for
from expunge_jobs.store.protocol import (
    Entry,
    TooLarge,
    Unavailable,
    checked_path,
    smaller,
    too_large,
)
from expunge_jobs.store.s3_address import parse_address
from expunge_jobs.store.s3_errors import Denied, refused, status_of, unreached
from expunge_jobs.store.schemes import Opening

T = TypeVar("T")
THREADS = 8
"""Parts of one file, or small requests, in parallel."""
LISTING_SECONDS = 0.1
"""Seconds of small requests that do not justify threads."""
_MIB = 1 << 20
_PATIENT, _BRIEF = 10, 2
"""Tries of the SDK; ten take 13 s on average. Simultaneous failures share its retry quota and get fewer tries."""
_ENTRY = 300
"""Bytes of a listed entry, plus four for each character of its key."""
_AWS = (".amazonaws.com", ".amazonaws.com.cn", ".amazonaws.eu", ".c2s.ic.gov", ".sc2s.sgov.gov", ".api.aws")
"""Suffixes of AWS's host names, by partition."""


SHARED = True


def open_at(address: str, opening: Opening) -> S3Store:
    """Return the store below a bucket's prefix."""
    return S3Store(
        address,
        patient=opening.patient,
        away=opening.away,
        largest=opening.largest,
        should_stop=opening.should_stop,
    )


def split(address: str) -> tuple[str, str]:
    """Return the address of an object's folder, and the object's name there.

    Raises:
        BadTask: the address names no object, or is invalid.
    """
    found = parse_address(address)
    parent, _, name = found.prefix.rpartition("/")
    if not name:
        raise BadTask(f"{address}: names no object; allowed: s3://bucket/path?option=value")
    return str(replace(found, prefix=parent)), name


class S3Store:
    """A store of objects below a bucket's prefix.

    Several threads may use the store. ``patient`` allows more than two tries. ``away`` is the number of seconds for
    which an unavailable server is retried after the last of these tries. ``should_stop`` ends these retries early.
    """

    def __init__(
        self,
        uri: str,
        patient: bool = True,
        away: float = 0.0,
        largest: int | None = None,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> None:
        self.address, self.patient, self.away, self.largest = parse_address(uri), patient, away, largest
        self._should_stop = should_stop
        self.uri, self.name = str(self.address), self.address.name
        self._made: dict[int, Any] = {}
        self._session: Any = None
        self._making = threading.Lock()

    def details(self) -> str:
        """Return the checksum setting as ``; checksums=VALUE``."""
        return f"; checksums={self.checksums}"

    @property
    def checksums(self) -> str:
        """The setting for when requests carry the SDK's own checksums."""
        client = next(iter(self._made.values()), None) or self._client()
        return str(client.meta.config.request_checksum_calculation)

    def get(self, path: str, largest: int | None = None) -> tuple[bytes, str]:
        key, most = self._key(path), smaller(largest, self.largest)
        return self._ask(path, lambda: _whole(lambda: self._read(key, most)) if self.patient else self._read(key, most))

    def put(self, path: str, data: bytes, *, if_absent: bool = False, if_match: str | None = None) -> None:
        key = self._key(path)
        condition = {"IfNoneMatch": "*"} if if_absent else {"IfMatch": if_match} if if_match is not None else {}

        def write() -> None:
            for left in reversed(range(_PATIENT)):
                try:
                    self._client().put_object(
                        Bucket=self.address.bucket, Key=key, Body=data, **condition, **self._encryption()
                    )
                    return
                except _client_error() as error:
                    # 409: another conditional write is in progress, and its outcome is unknown; therefore retry.
                    if status_of(error) != 409 or not condition or not left:
                        raise
                    time.sleep(random.uniform(0.02, 0.2))

        self._ask(path, write, conditional=bool(condition))

    def get_file(self, path: str, to: Path) -> None:
        key = self._key(path)

        def read() -> None:
            with self._transfers() as transfers:
                to.parent.mkdir(parents=True, exist_ok=True)
                part = to.with_name(f".{to.name}.{uuid.uuid4().hex}")
                try:
                    _whole(lambda: transfers.download(self.address.bucket, key, str(part)).result())
                    part.replace(to)
                finally:
                    part.unlink(missing_ok=True)

        self._ask(path, read)

    def put_file(self, path: str, source: Path) -> None:
        key = self._key(path)

        def write() -> None:
            # An exception that leaves the manager (also SIGTERM) cancels the upload and aborts its parts.
            with self._transfers() as transfers:
                transfers.upload(str(source), self.address.bucket, key, extra_args=self._encryption()).result()

        self._ask(path, write)

    def present(self, paths: Iterable[str]) -> set[str]:
        asked = list(paths)
        found: set[str] = set()
        while asked:
            began, path = time.monotonic(), asked.pop()
            if self._is_there(path):
                found.add(path)
            # With a nearby server, threads take a third more CPU time and save no time; therefore use one.
            if (time.monotonic() - began) * len(asked) > LISTING_SECONDS:
                break
        with ThreadPoolExecutor(THREADS) as pool:
            return found | {p for p, there in zip(asked, pool.map(self._is_there, asked), strict=True) if there}

    def list(self, prefix: str) -> Iterator[Entry]:
        top = f"{self._key(prefix)}/"
        cut = len(self._key("x")) - 1

        def read() -> builtins.list[Entry]:
            pages = self._client().get_paginator("list_objects_v2").paginate(Bucket=self.address.bucket, Prefix=top)
            found: builtins.list[Entry] = []
            size = 0
            for page in pages:
                for entry in page.get("Contents", ()):
                    found.append(Entry(entry["Key"][cut:], entry["Size"], entry["LastModified"].timestamp()))
                    size += _ENTRY + 4 * len(entry["Key"])
                if self.largest is not None and size > self.largest:
                    raise TooLarge(f"{prefix} holds more objects than are listed here ({len(found):,} and more)")
            return found

        yield from self._ask(prefix, read)

    def delete(self, paths: Iterable[str]) -> None:
        # Some servers lack the bulk call, and the others disagree on its checksum; therefore delete one by one.
        with ThreadPoolExecutor(THREADS) as pool:
            for _ in pool.map(self._delete, list(paths)):
                pass

    def local_path(self, path: str) -> Path | None:
        checked_path(path)
        return None

    def check(self) -> None:
        with self._named(""):
            top = f"{self.address.prefix}/" if self.address.prefix else ""  # a policy may allow this prefix only
            self._client(_BRIEF).list_objects_v2(Bucket=self.address.bucket, Prefix=top, MaxKeys=1)

    def _read(self, key: str, most: int | None) -> tuple[bytes, str]:
        answer = self._client().get_object(Bucket=self.address.bucket, Key=key)
        size = int(answer["ContentLength"])
        if most is not None and size > most:
            answer["Body"].close()
            raise too_large(key, size, most)
        return answer["Body"].read(), answer["ETag"]

    def _is_there(self, path: str) -> bool:
        key = self._key(path)
        # HEAD has no body, so a 404 for the object looks like a 404 for the access key; therefore list.
        page = self._ask(
            path, lambda: self._client().list_objects_v2(Bucket=self.address.bucket, Prefix=key, MaxKeys=1)
        )
        return any(entry["Key"] == key for entry in page.get("Contents", ()))

    def _delete(self, path: str) -> None:
        key = self._key(path)
        self._ask(path, lambda: self._client().delete_object(Bucket=self.address.bucket, Key=key))

    def _ask(self, path: str, call: Callable[[], T], conditional: bool = False) -> T:
        """Return the result of ``call``, or raise an error of the store.

        Every call of this class is safe to repeat.
        """
        until, renewed = math.inf, False
        while True:
            session = self._session
            try:
                with self._named(path, conditional):
                    return call()
            except (Denied, Unavailable) as error:
                if isinstance(error, Denied) and not renewed and self._renew(session):
                    renewed = True
                    continue
                now = time.monotonic()
                until = min(until, now + self.away)
                # After SIGTERM, time is short and reports remain to be written; therefore stop retrying.
                if now >= until or self._should_stop() or not isinstance(error, Unavailable):
                    raise
                time.sleep(random.uniform(0.5, 1.5))
                renewed = False

    def _key(self, path: str) -> str:
        checked_path(path)
        return f"{self.address.prefix}/{path}" if self.address.prefix else path

    def _encryption(self) -> dict[str, str]:
        key = self.address.sse_kms_key_id
        return {"ServerSideEncryption": "aws:kms", "SSEKMSKeyId": key} if key else {}

    def _client(self, tries: int = 0) -> Any:
        tries = tries or (_PATIENT if self.patient else _BRIEF)
        with self._making:  # a session is not thread-safe and takes 10 MB; therefore share one
            if tries not in self._made:
                self._made[tries] = self._make_client(tries)
            return self._made[tries]

    def _make_client(self, tries: int) -> Any:
        # The import takes 0.3 s, which a store in a directory does not need; therefore import here.
        from boto3.session import Session

        address = self.address
        if address.ca_bundle and not Path(address.ca_bundle).is_file():
            raise BadTask(f"the store {self.name}: ca_bundle {address.ca_bundle}: no such file")
        if self._session is None:
            self._session = Session()
        endpoint = address.endpoint_url or f"https://s3{_AWS[0]}"
        options = self._options(endpoint)
        client = self._new_client(tries, options)
        # The SDK finds an endpoint in many ways, and only the client knows the result; therefore ask the client.
        if not address.endpoint_url and (real := self._options(client.meta.endpoint_url)) != options:
            client = self._new_client(tries, real)
        return client

    def _options(self, endpoint: str) -> dict[str, Any]:
        """Return the client's options for the server at this URL."""
        address, parts = self.address, urlsplit(endpoint)
        aws = not address.endpoint_url and (parts.hostname or "").endswith(_AWS)
        sums = address.checksums or ("when_supported" if aws else "when_required")
        proxy = proxy_for(endpoint)  # the SDK ignores networks in NO_PROXY; therefore resolve here
        return {
            "s3": {"addressing_style": address.addressing or ("auto" if aws else "path")},
            "request_checksum_calculation": sums,
            "response_checksum_validation": sums,
            "proxies": {parts.scheme: proxy} if proxy else {},
        }

    def _new_client(self, tries: int, options: dict[str, Any]) -> Any:
        from botocore.config import Config

        address = self.address
        config = Config(
            retries={"mode": "standard", "total_max_attempts": tries},
            connect_timeout=5,
            read_timeout=60 if tries == _PATIENT else 5,
            max_pool_connections=2 * THREADS,
            **options,
        )
        return self._session.client(
            "s3", endpoint_url=address.endpoint_url, region_name=address.region, verify=address.ca_bundle, config=config
        )

    def _renew(self, refused: Any) -> bool:
        """Look for credentials once more after a refusal.

        Returns whether the credentials now differ from those of the refused session.
        """
        from boto3.session import Session

        def frozen(session: Any) -> Any:
            found = session.get_credentials()
            return found and found.get_frozen_credentials()

        with self._making, self._named(""):
            if refused is not None and self._session is not refused:
                return True  # another thread was refused too, and has renewed the session
            new = Session()
            if self._session is not None and frozen(new) == frozen(self._session):
                return False
            self._session, self._made = new, {}
        return True

    def _transfers(self) -> Any:
        from boto3.s3.transfer import TransferConfig, create_transfer_manager

        # On some machines the SDK selects another client, which ignores the endpoint; therefore name this one.
        config = TransferConfig(
            multipart_threshold=16 * _MIB,
            multipart_chunksize=16 * _MIB,
            max_concurrency=THREADS,
            max_io_queue=100,
            preferred_transfer_client="classic",
        )
        return create_transfer_manager(self._client(), config)

    @contextlib.contextmanager
    def _named(self, path: str, conditional: bool = False) -> Iterator[None]:
        """Translate the SDK's errors into errors of the store."""
        from botocore.exceptions import BotoCoreError, ClientError
        from s3transfer.exceptions import RetriesExceededError

        try:
            yield
        except ClientError as error:
            raise refused(self.name, lambda: self.checksums, path, error, conditional) from None
        except (BotoCoreError, RetriesExceededError, OSError, ValueError) as error:
            raise unreached(self.name, path, error) from None


def _client_error() -> type[Exception]:
    from botocore.exceptions import ClientError

    return ClientError  # type: ignore[no-any-return]


def _whole(read: Callable[[], T]) -> T:
    """Return the result of ``read``, with two retries after a torn body.

    The SDK repeats a request. The SDK does not repeat the reading of a body that was cut or fails its checksum.
    """
    from botocore import exceptions as sdk

    torn = (sdk.IncompleteReadError, sdk.ReadTimeoutError, sdk.ResponseStreamingError, sdk.FlexibleChecksumError)
    for _ in range(2):
        with contextlib.suppress(*torn):
            return read()
    return read()
