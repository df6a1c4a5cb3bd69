"""The S3 server and its credentials as fixtures; a conftest.py imports those that it wants."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.faults import FaultProxy
from tests.support.s3server import CREDENTIALS, S3Server


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    server = S3Server(tmp_path_factory.mktemp("s3"))
    yield server
    server.stop()


@pytest.fixture
def proxy(server: S3Server) -> Iterator[FaultProxy]:
    """Before the S3 server."""
    proxy = FaultProxy(server.url)
    yield proxy
    proxy.close()


@pytest.fixture(autouse=True)
def credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests' own, whatever this machine has."""
    for name in ("AWS_PROFILE", "AWS_CA_BUNDLE", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nonexistent")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
