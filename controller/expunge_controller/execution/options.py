"""What a backend is told of where to run steps. Loads nothing: the command line shows it in --help."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from expunge_controller.kube_client.client import Cluster


@dataclass(frozen=True)
class Option:
    """An option of a backend's own: ``--hub-secret NAME`` for the name ``hub_secret``."""

    name: str
    metavar: str
    help: str
    environment: str = ""
    """The variable that gives it where nobody says it."""

    @property
    def flag(self) -> str:
        """As the command line has it."""
        return f"--{self.name.replace('_', '-')}"

    def value(self, given: Mapping[str, str | None]) -> str | None:
        """Return what is given, or what the environment says."""
        return given.get(self.name) or (os.environ.get(self.environment) if self.environment else None) or None


@dataclass(frozen=True, kw_only=True)
class Where:
    """Where steps run and artifacts lie."""

    store: str = ""
    """The store's address, as a step on the backend opens it."""
    context: str | None = None
    """Of the kubeconfig; None: its current one."""
    namespace: str | None = None
    """None: the context's."""
    options: Mapping[str, str | None] = field(default_factory=dict)
    """The backend's own, by name."""

    def cluster(self) -> Cluster:
        """Connect to the cluster. Raises ExperimentError for a kubeconfig that cannot be used."""
        from expunge_controller.kube_client.config import connect

        return connect(self.context, self.namespace)
