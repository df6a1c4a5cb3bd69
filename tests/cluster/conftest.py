"""A real control plane for all of these tests, and a namespace of its own for each."""

from __future__ import annotations

import os
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.control_plane import ControlPlane, GivenCluster
from tests.support.emulated_node import Node
from tests.support.runs import finished, finished_slower, tiny
from tests.support.s3fixtures import credentials, server
from tests.support.testsite import site

__all__ = ["credentials", "finished", "finished_slower", "server", "site", "tiny"]


@pytest.fixture(scope="session")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    if given := os.environ.get("EXPUNGE_TEST_KUBECONFIG"):  # not KUBECONFIG: nobody's cluster is tested by chance
        yield GivenCluster(tmp_path_factory.mktemp("given"), Path(given).expanduser())
        return
    if os.environ.get("KUBEBUILDER_ASSETS"):
        print(f"programs of {os.environ['KUBEBUILDER_ASSETS']}", file=sys.stderr)
    plane = ControlPlane(tmp_path_factory.mktemp("plane"))
    plane.start()
    yield plane
    plane.stop()


@pytest.fixture(scope="session")
def node(plane: ControlPlane, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    """A node with two GPUs that are none."""
    if isinstance(plane, GivenCluster):
        pytest.skip("needs a node that is none: for a control plane of the tests' own")
    node = Node(plane.kubeconfig, tmp_path_factory.mktemp("node"))
    node.start()
    yield node
    node.stop()


@pytest.fixture
def namespace(plane: ControlPlane) -> Iterator[str]:
    """A namespace whose pods must be ``restricted``."""
    name = f"test-{uuid.uuid4().hex[:8]}"
    plane.kubectl("create", "namespace", name)
    plane.kubectl("label", "namespace", name, "pod-security.kubernetes.io/enforce=restricted")
    yield name
    if isinstance(plane, GivenCluster):
        plane.kubectl("delete", "namespace", name, "--wait=false")
