"""Whole runs by the shipped command."""

from __future__ import annotations

from tests.support.runs import finished, finished_slower, tiny
from tests.support.s3fixtures import credentials, server

__all__ = ["credentials", "finished", "finished_slower", "server", "tiny"]
