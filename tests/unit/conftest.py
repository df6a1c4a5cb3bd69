"""Fixtures of the unit tests; nothing here loads torch."""

from __future__ import annotations

from pathlib import Path

import pytest
from expunge_jobs.store import Store, open_store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """An empty store. Tests that ask for it use the protocol alone, so that they can run on any kind of store."""
    return open_store(f"file://{tmp_path}/store")
