"""A level of tests that did not run is not green: a skip that is not expected here fails the run."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent
LINUX_ROOT = sys.platform == "linux" and os.geteuid() == 0


def may_skip(level: str) -> tuple[str, ...]:
    """Beginnings or parts of the reasons for which tests of a level may be skipped on this machine."""
    if level == "store" and LINUX_ROOT:
        return ("root writes everywhere",)
    if level == "run" and not LINUX_ROOT:
        return ("needs Linux's unshare", "needs a small tmpfs")
    if level == "node":
        return ("a cluster of `make cluster-up` is there",)
    if level == "cluster" and os.environ.get("EXPUNGE_TEST_KUBECONFIG"):
        return ("for a control plane of the tests' own",)
    return ()


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(Skips(), "skips")


class Skips:
    """Collects the skips that nobody expects."""

    def __init__(self) -> None:
        self.unexpected: list[str] = []

    @pytest.hookimpl
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if not report.skipped or hasattr(report, "wasxfail"):
            return
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        if not any(known in reason for known in may_skip(level_of(report.nodeid))):
            self.unexpected.append(f"{report.nodeid}: {reason}")

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if self.unexpected and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED
            print("\nskipped, though nothing here allows it (tests/conftest.py):", *self.unexpected, sep="\n  ")


def level_of(nodeid: str) -> str:
    """Return the level of a test: the folder below tests/."""
    parts = Path(nodeid).parts
    return parts[parts.index("tests") + 1] if "tests" in parts else ""
