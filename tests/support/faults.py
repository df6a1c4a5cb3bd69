"""A proxy before an HTTP(S) server that sees every request and spoils those that a test names.

It speaks plain HTTP to its client; to a server with TLS it shows its own certificate.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import ssl
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    headers: dict[str, str]


@dataclass(frozen=True)
class Answer:
    """What the server said, or what is said in its place."""

    status: int
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    declared: int | None = None
    """The length that is told, where it is not the body's."""


Serve = Callable[[], Answer]
Fault = Callable[[Serve], Answer | None]
"""Given the way to the server; None: the connection is cut."""


def answer(status: int, code: str, message: str = "as the test wishes") -> Fault:
    """An error of S3 in place of the server's answer."""
    body = f'<?xml version="1.0"?><Error><Code>{code}</Code><Message>{message}</Message></Error>'.encode()
    return lambda serve: Answer(status, body, {"Content-Type": "application/xml"})


def refusal(status: int, reason: str, after: int | None = None) -> Fault:
    """An error of Kubernetes in place of the server's answer."""
    body = json.dumps({"kind": "Status", "code": status, "reason": reason, "message": "as the test wishes"}).encode()
    headers = {"Content-Type": "application/json"} | ({"Retry-After": str(after)} if after is not None else {})
    return lambda serve: Answer(status, body, headers)


def before(act: Callable[[], object]) -> Fault:
    """Something happens, and the server never sees the request."""

    def fault(serve: Serve) -> Answer | None:
        act()
        return None

    return fault


def after(act: Callable[[], object]) -> Fault:
    """The server does what it is asked; then something happens, and its answer never comes."""

    def fault(serve: Serve) -> Answer | None:
        serve()
        act()
        return None

    return fault


def silent(seconds: float) -> Fault:
    """Nobody answers; the connection stays."""

    def fault(serve: Serve) -> Answer | None:
        time.sleep(seconds)
        return None

    return fault


def cut(serve: Serve) -> Answer | None:
    """The connection breaks before the server has seen the request."""
    return None


def lose(serve: Serve) -> Answer | None:
    """The server does what it is asked; its answer never comes."""
    serve()
    return None


def truncate(serve: Serve) -> Answer:
    """Half of the body, then the end."""
    whole = serve()
    return Answer(whole.status, whole.body[: len(whole.body) // 2], whole.headers, len(whole.body))


def corrupt(serve: Serve) -> Answer:
    """One byte of the body is another."""
    whole = serve()
    middle = len(whole.body) // 2
    body = whole.body[:middle] + bytes([whole.body[middle] ^ 1]) + whole.body[middle + 1 :]
    return Answer(whole.status, body, whole.headers)


def slow(seconds: float) -> Fault:
    """The server is asked only after a while."""

    def wait(serve: Serve) -> Answer:
        time.sleep(seconds)
        return serve()

    return wait


@dataclass
class _Rule:
    fault: Fault
    when: Callable[[Request], bool]
    left: int


class FaultProxy:
    """Forwards to one server; ``seen`` has every request in order."""

    def __init__(self, to: str, context: ssl.SSLContext | None = None) -> None:
        where = urlsplit(to)
        self.host, self.port, self.context = where.hostname or "", where.port or 80, context
        self.seen: list[Request] = []
        self._rules: list[_Rule] = []
        self._streams: list[socket.socket] = []
        self._lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def inject(self, fault: Fault, when: Callable[[Request], bool] = lambda request: True, times: int = 1) -> None:
        """Spoil the next ``times`` requests of this kind."""
        self._rules.append(_Rule(fault, when, times))

    def calm(self) -> None:
        """Spoil nothing any more."""
        self._rules.clear()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def drop_streams(self) -> int:
        """Cut every answer that is still coming in; how many."""
        with self._lock:
            streams, self._streams = self._streams, []
        for each in streams:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
        return len(streams)

    def stream(self, connection: socket.socket) -> None:
        with self._lock:
            self._streams.append(connection)

    def take(self, request: Request) -> Fault | None:
        with self._lock:
            self.seen.append(request)
            for rule in self._rules:
                if rule.left and rule.when(request):
                    rule.left -= 1
                    return rule.fault
        return None

    def connect(self) -> http.client.HTTPConnection:
        if self.context is not None:
            return http.client.HTTPSConnection(self.host, self.port, timeout=120, context=self.context)
        return http.client.HTTPConnection(self.host, self.port, timeout=60)

    def forward(self, request: Request, body: bytes) -> Answer:
        connection = self.connect()
        try:
            connection.putrequest(request.method, request.path, skip_host=True, skip_accept_encoding=True)
            for name, value in request.headers.items():
                if name.lower() not in ("connection", "expect"):
                    connection.putheader(name, value)
            connection.endheaders(body)
            got = connection.getresponse()
            headers = {
                k: v
                for k, v in got.getheaders()
                if k.lower() not in ("content-length", "transfer-encoding", "connection")
            }
            data = got.read()
            declared = int(got.getheader("Content-Length") or 0) if request.method == "HEAD" else None
            return Answer(got.status, data, headers, declared)
        finally:
            connection.close()


def _handler(proxy: FaultProxy) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle_one(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            request = Request(self.command, self.path, dict(self.headers.items()))
            fault = proxy.take(request)

            def serve() -> Answer:
                return proxy.forward(request, body)

            if fault is None and any(w in self.path for w in ("watch=true", "follow=true")):
                self.pass_on(request)
                return
            said = fault(serve) if fault else serve()
            if said is None:
                self.close_connection = True
                self.connection.shutdown(socket.SHUT_RDWR)
                return
            self.send_response_only(said.status)
            for name, value in said.headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(said.body) if said.declared is None else said.declared))
            self.end_headers()
            self.wfile.write(said.body)
            if said.declared is not None and self.command != "HEAD":
                self.close_connection = True

        def pass_on(self, request: Request) -> None:
            """An answer that comes in pieces, each as soon as it is there."""
            upstream = proxy.connect()
            try:
                upstream.request(request.method, request.path, headers={"Accept": "application/json"})
                proxy.stream(self.connection)
                got = upstream.getresponse()
                self.send_response_only(got.status)
                self.send_header("Connection", "close")
                self.end_headers()
                while piece := got.read1(65536):
                    self.wfile.write(piece)
                    self.wfile.flush()
            except (OSError, http.client.HTTPException):
                pass  # either side has gone
            finally:
                self.close_connection = True
                upstream.close()

        do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = do_PATCH = handle_one

        def log_message(self, format: str, *args: object) -> None:
            pass

    return Handler
