"""A model hub of one's own: what is asked of it to pin and download a model."""

from __future__ import annotations

import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
TOKEN = "hf_of_the_tests"


class Hub:
    """``folder`` as ``hf://<name>`` at one commit: for everybody, or (``private``) for those who have the token."""

    def __init__(self, name: str, folder: Path, private: bool = True, host: str = "127.0.0.1") -> None:
        self.name, self.folder, self.private = name, folder, private
        self.asked: list[str] = []
        """The files that were downloaded, in order."""
        self.tokens: list[str | None] = []
        """The header Authorization of every request."""
        self.away: int | None = None
        """A status that answers every request."""
        self._server = ThreadingHTTPServer((host, 0), _handler(self))
        self._server.daemon_threads = True
        self.url = f"http://{host}:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def _handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self._answer(body=False)

        def do_GET(self) -> None:
            self._answer(body=True)

        def _answer(self, body: bool) -> None:
            path = urlsplit(self.path).path  # by a proxy the whole address is asked for
            file = hub.folder / path.rsplit("/", 1)[-1]
            token = self.headers.get("Authorization")
            hub.tokens.append(token)
            if hub.away:
                self._send(
                    hub.away, b"<html>later</html>", {"Location": f"{hub.url.replace('127.0.0.1', 'localhost')}/x"}
                )
            elif hub.private and token != f"Bearer {TOKEN}":
                self._send(401, b"", {"X-Error-Code": "RepoNotFound"})
            elif path.startswith(f"/api/models/{hub.name}/revision/"):
                names = [{"rfilename": f.name} for f in sorted(hub.folder.iterdir())]
                self._send(200, json.dumps({"id": hub.name, "sha": COMMIT, "siblings": names}).encode(), {})
            elif path.startswith(f"/api/models/{hub.name}/tree/{COMMIT}"):
                entries = [
                    {"type": "file", "path": f.name, "size": f.stat().st_size, "oid": f"oid-{f.name}"}
                    for f in sorted(hub.folder.iterdir())
                ]
                self._send(200, json.dumps(entries).encode(), {"Content-Type": "application/json"})
            elif path.startswith(f"/{hub.name}/resolve/{COMMIT}/") and file.is_file():
                content = file.read_bytes()
                if body:
                    hub.asked.append(file.name)
                etag = hashlib.sha256(content).hexdigest()
                self._send(200, content, {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT}, body)
            else:
                self._send(404, b"", {"X-Error-Code": "EntryNotFound" if "/resolve/" in path else "RepoNotFound"})

        def _send(self, status: int, content: bytes, headers: dict[str, str], body: bool = True) -> None:
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(content))}.items():
                self.send_header(name, value)
            self.end_headers()
            if body:
                self.wfile.write(content)

        def log_message(self, format: str, *args: object) -> None:
            pass

    return Handler
