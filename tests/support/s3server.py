"""A real S3 server on loopback for the tests: versitygw over a folder."""

from __future__ import annotations

import http.client
import os
import socket
import ssl
import subprocess
import time
from pathlib import Path

from tests.support.toolchain import binary

ACCESS_KEY, SECRET_KEY, BUCKET = "test-access-key", "test-secret-key", "bucket"
CREDENTIALS = {"AWS_ACCESS_KEY_ID": ACCESS_KEY, "AWS_SECRET_ACCESS_KEY": SECRET_KEY, "AWS_DEFAULT_REGION": "us-east-1"}


class S3Server:
    """Keeps its port and its objects when it is stopped and started again."""

    def __init__(self, folder: Path, host: str = "127.0.0.1", certificate: tuple[Path, Path] | None = None) -> None:
        self.folder, self.host, self.certificate = folder, host, certificate
        self.port = free_port(host)
        (folder / "objects" / BUCKET).mkdir(parents=True)
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    @property
    def url(self) -> str:
        return f"{'https' if self.certificate else 'http'}://{self.host}:{self.port}"

    def start(self) -> None:
        words = [
            str(binary("versitygw")),
            "--port",
            f"{self.host}:{self.port}",
            "--keep-alive",  # as S3 itself does
            "--health",
            "/healthz",
            f"--access-log={self.folder / 'access.log'}",
        ]
        if self.certificate:
            words += ["--cert", str(self.certificate[0]), "--key", str(self.certificate[1])]
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [*words, "posix", str(self.folder / "objects")],
                stdout=log,
                stderr=log,
                env=os.environ | {"ROOT_ACCESS_KEY": ACCESS_KEY, "ROOT_SECRET_KEY": SECRET_KEY},
            )
        until = time.monotonic() + 30
        while not self._healthy():
            assert self._process.poll() is None, (self.folder / "log").read_text()
            assert time.monotonic() < until, (self.folder / "log").read_text()
            time.sleep(0.02)

    def accessed(self, since: int = 0) -> tuple[list[str], int]:
        """The access log's lines from this place on, and its end."""
        with (self.folder / "access.log").open("rb") as log:
            log.seek(since)
            lines = log.readlines()
        return [line.decode() for line in lines], since + sum(map(len, lines))

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def _healthy(self) -> bool:
        if self.certificate:
            context = ssl.create_default_context()
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
            connection = http.client.HTTPSConnection(self.host, self.port, timeout=5, context=context)
        else:
            connection = http.client.HTTPConnection(self.host, self.port, timeout=5)
        try:
            connection.request("GET", "/healthz")
            return connection.getresponse().status == 200
        except OSError:
            return False
        finally:
            connection.close()


def free_port(host: str = "127.0.0.1") -> int:
    """A port that nobody listens on now."""
    with socket.socket() as listener:
        listener.bind((host, 0))
        return int(listener.getsockname()[1])
