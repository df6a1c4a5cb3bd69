"""Every store that there is, behind one fixture; a real S3 server among them."""

from __future__ import annotations

import uuid
from pathlib import Path

import pytest
from expunge_jobs.store import Store, open_store

from tests.support.faults import FaultProxy
from tests.support.s3fixtures import credentials, proxy, server
from tests.support.s3server import BUCKET, S3Server

__all__ = ["credentials", "proxy", "server"]


@pytest.fixture
def prefix() -> str:
    """A prefix of its own for each test: one server serves them all."""
    return f"{BUCKET}/{uuid.uuid4().hex[:12]}"


@pytest.fixture(params=["file", "s3", "s3 with checksums"])
def store(request: pytest.FixtureRequest, tmp_path: Path, prefix: str) -> Store:
    """An empty store. Tests that ask for it use the protocol alone."""
    if request.param == "file":
        return open_store(f"file://{tmp_path}/store")
    server: S3Server = request.getfixturevalue("server")
    checksums = "&checksums=when_supported" if request.param == "s3 with checksums" else ""
    return open_store(f"s3://{prefix}?endpoint_url={server.url}{checksums}")


@pytest.fixture
def behind(proxy: FaultProxy, prefix: str) -> Store:
    """A store that the proxy stands before."""
    return open_store(f"s3://{prefix}?endpoint_url={proxy.url}")
