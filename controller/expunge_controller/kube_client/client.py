"""A small client for the part of the Kubernetes API that is used here.

Objects are plain dictionaries. The connections are those of a login (login.py).

The models of the official client would cost ten times the parsing. The client's path from a call to the wire costs a
fifth of creating a Job, and hides the causes of TLS errors.
"""

from __future__ import annotations

import contextlib
import json
import random
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import urlencode

if TYPE_CHECKING:
    from urllib3 import PoolManager

TRIES = 4
CONNECT_SECONDS, READ_SECONDS = 5.0, 30.0
"""Timeouts of a call, in seconds: for the connection, and for the answer."""
WATCH_SECONDS = 60
"""Seconds after which the server ends a watch. The timeout of a silent connection is a little longer."""
LOG_SILENCE_SECONDS = 600.0
"""Timeout of a followed log without new lines, in seconds."""
PAGE_OBJECTS = 250

METADATA = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"
"""Media type of a list that contains only the metadata of its objects."""

Object = dict[str, Any]


class ApiError(Exception):
    """A call that was refused or got no answer.

    ``status`` is the HTTP status, or 0 if there was no answer. ``after`` is the delay in seconds that the server asks
    for.
    """

    def __init__(self, status: int, message: str, after: float | None = None) -> None:
        super().__init__(message)
        self.status, self.after = status, after

    @property
    def passing(self) -> bool:
        """Whether the same call may succeed later."""
        return self.status in (0, 429) or self.status >= 500

    @property
    def renewable(self) -> bool:
        """Whether a run may wait until the error is over.

        A run waits for an error that passes, and for credentials that the user may renew meanwhile.
        """
        return self.passing or self.status == 401


class TooDeep(ApiError):
    """An answer that is nested deeper than Python can read.

    The API server accepts ten times the depth that Python does.
    """

    def __init__(self, path: str) -> None:
        super().__init__(422, f"{path} is nested too deep to be read")


class Login(Protocol):
    """The identity of the caller of a cluster (see login.py)."""

    def connections(self) -> PoolManager:
        """Return the connections for the next call."""
        ...

    def authorization(self) -> str:
        """Return the Authorization header, or an empty text.

        Raises:
            ApiError: there are no credentials just now.
        """
        ...

    @property
    def extra(self) -> Iterable[tuple[str, str]]:
        """Further headers of every call."""
        ...

    def renew(self, refused: str) -> bool:
        """Return whether there is a header other than the refused one."""
        ...


class Cluster:
    """One cluster, called as one user.

    ``address`` is the URL of the API server. ``namespace`` is the default for a caller that names none. ``agent`` is
    the program's name and version.
    """

    def __init__(self, address: str, login: Login, *, agent: str, namespace: str) -> None:
        self.address, self.namespace = address, namespace
        self._login, self._authorization, self._agent = login, login.authorization, agent
        self.counted: Callable[[str, int], None] = lambda method, status: None
        """Receives the method and the HTTP status (0: no answer) of each try of ``request``.

        Watches and logs are not counted.
        """

    def request(
        self,
        method: str,
        path: str,
        body: Object | None = None,
        query: dict[str, Any] | None = None,
        tries: int = TRIES,
        accept: str = "application/json",
    ) -> Object:
        """Return the answer of one call, with retries while they may help.

        Every call here may be sent twice without harm. Creates give the object's name, and deletes give the object's
        uid.

        Raises:
            ApiError: refused, or no answer after ``tries``.
        """
        for turn in range(1, tries + 1):
            try:
                with self._open(method, path, READ_SECONDS, query or {}, body, accept) as response:
                    answer: Object = json.loads(response.read())
                    self.counted(method, response.status)
                return answer
            except RecursionError:
                raise TooDeep(path) from None
            except ApiError as error:
                self.counted(method, error.status)
                if not error.passing or turn == tries:
                    raise
                time.sleep(max(error.after or 0.0, random.uniform(0.5, 1.0) * 0.2 * 2**turn))
        raise AssertionError("unreachable")

    def list(
        self,
        path: str,
        selector: str = "",
        fields: str = "",
        trim: Callable[[Object], Object] = lambda o: o,
        limit: int | None = None,
    ) -> tuple[list[Object], str]:
        """Return every object of a list, and the version for a watch.

        The list is read in pages of ``limit`` objects, and each object passes through ``trim``. A watch continues at
        the returned version.
        """
        items: list[Object] = []
        more = ""
        while True:
            query = {
                "labelSelector": selector,
                "fieldSelector": fields,
                "limit": limit or PAGE_OBJECTS,
                "continue": more,
            }
            try:
                page = self.request("GET", path, query=query)
            except TooDeep:
                page = self._one_by_one(path, query)
            items += map(trim, page["items"])
            more = page["metadata"].get("continue", "")
            if not more:
                return items, page["metadata"]["resourceVersion"]

    def _one_by_one(self, path: str, query: dict[str, Any]) -> Object:
        """Return a page of a list that contains an unreadable object.

        For an unreadable object the page contains its metadata alone.
        """
        page = self.request("GET", path, query=query, accept=METADATA)
        items = []
        for each in page["items"]:
            try:
                # A user who may list may not always get; therefore list by name.
                named = {"fieldSelector": f"metadata.name={each['metadata']['name']}"}
                items += self.request("GET", path, query=named)["items"]
            except TooDeep:
                items.append({"metadata": each["metadata"], "spec": None, "unreadable": True})
        return {**page, "items": items}

    def watch(self, path: str, selector: str, version: str) -> Iterator[tuple[str, Object]]:
        """Yield the changes since ``version``, until the server ends the watch.

        A change is a pair: ADDED, MODIFIED or DELETED, and the object. Occasionally the pair is BOOKMARK and an
        object with nothing but the version that has been reached.

        Raises:
            ApiError: refused, cut, silent for too long, or (410) the version is too old.
        """
        query = {
            "watch": "true",
            "labelSelector": selector,
            "resourceVersion": version,
            "timeoutSeconds": WATCH_SECONDS,
            "allowWatchBookmarks": "true",
        }
        with self._open("GET", path, WATCH_SECONDS + CONNECT_SECONDS, query) as response:
            for line in _lines(response):
                try:
                    event = json.loads(line)
                except RecursionError:
                    # A list tells which object is unreadable; therefore the status that makes the caller list again.
                    raise ApiError(410, "an object is nested too deep to be read") from None
                if event["type"] == "ERROR":
                    raise ApiError(int(event["object"].get("code", 500)), event["object"].get("message", "watch ended"))
                yield event["type"], event["object"]

    def delete(self, path: str, uid: str) -> bool:
        """Delete this very object and, after it, the objects that it owns.

        Returns False if the object is gone already, or if another object has its name.
        """
        body = {"propagationPolicy": "Background", "preconditions": {"uid": uid}}
        try:
            self.request("DELETE", path, body)
        except ApiError as error:
            if error.status not in (404, 409):
                raise
            return False
        return True

    def log(
        self, namespace: str, pod: str, container: str, tail: int | None = None, follow: bool = False
    ) -> Iterator[str]:
        """Yield the lines of a container's log.

        ``tail`` limits the lines to the last ones. With ``follow`` the lines are yielded as they come, until the log
        ends.

        Raises:
            ApiError: there is none (yet), or the node does not answer.
        """
        path = f"/api/v1/namespaces/{namespace}/pods/{pod}/log"
        query = {"container": container, "tailLines": tail, "follow": "true" if follow else None}
        with self._open("GET", path, LOG_SILENCE_SECONDS if follow else READ_SECONDS, query) as response:
            for line in _lines(response):
                yield line.decode(errors="replace")

    @contextlib.contextmanager
    def _open(
        self,
        method: str,
        path: str,
        read: float,
        query: dict[str, Any],
        body: Object | None = None,
        accept: str = "application/json",
    ) -> Iterator[Any]:
        from urllib3 import HTTPHeaderDict
        from urllib3.exceptions import HTTPError
        from urllib3.util import Timeout

        content = "application/merge-patch+json" if method == "PATCH" else "application/json"
        own = {"Accept": accept, "Content-Type": content, "User-Agent": self._agent}
        given = urlencode([(k, v) for k, v in query.items() if v not in ("", None)])
        data = None if body is None else json.dumps(body, separators=(",", ":")).encode()
        response: Any = None
        try:
            for last in (False, True):
                authorization = self._authorization()
                headers = HTTPHeaderDict(own | ({"Authorization": authorization} if authorization else {}))
                headers.extend(self._login.extra)
                response = self._login.connections().request(
                    method,
                    f"{self.address}{path}" + (f"?{given}" if given else ""),
                    body=data,
                    headers=headers,
                    preload_content=False,
                    timeout=Timeout(connect=CONNECT_SECONDS, read=read),
                )
                # The token may have been replaced, or have expired, since it was read; therefore renew it once.
                if last or response.status != 401 or not self._login.renew(authorization):
                    break
                response.drain_conn()
                response.release_conn()
            if not 200 <= response.status < 300:
                raise _refused(response)
            yield response
        except (HTTPError, OSError, ValueError) as error:  # ValueError: JSON that is cut short
            raise ApiError(0, f"{self.address} does not answer: {_words(error)}") from None
        finally:
            if response is not None:
                response.close()
                response.release_conn()


def _lines(response: Any) -> Iterator[bytes]:
    rest = b""
    while chunk := response.read1(2**16, decode_content=True):  # the present bytes, without waiting for more
        *lines, rest = (rest + chunk).split(b"\n")
        yield from lines
    if rest:
        yield rest


def _refused(response: Any) -> ApiError:
    message, after = str(response.reason), None
    with contextlib.suppress(ValueError, KeyError, TypeError):
        message = json.loads(response.read())["message"]
    with contextlib.suppress(ValueError, TypeError):
        after = float(response.headers.get("Retry-After"))
    return ApiError(int(response.status), message, after)


def _words(error: BaseException) -> str:
    from urllib3.exceptions import ProxyError

    cause = getattr(error, "reason", None) or error
    if isinstance(cause, ProxyError):
        return f"its proxy: {_words(cause.original_error)}"
    if isinstance(cause, json.JSONDecodeError):
        return "its answer is no JSON: a page of a proxy, perhaps, or cut short"
    if isinstance(cause, ValueError):  # The message may contain a header's value; therefore hide it.
        return "the request cannot be made"
    text = str(cause).rpartition(": ")[2] if "Failed to establish" in str(cause) else str(cause)
    return text or type(error).__name__
