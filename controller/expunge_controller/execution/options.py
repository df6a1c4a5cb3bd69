"""Options that tell a backend where to run steps.

The command line shows the options in --help; therefore the module loads no backend and no cluster client.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from expunge_controller.kube_client.client import Cluster


@dataclass(frozen=True)
class Option:
    """A backend-specific option.

    An option with the name ``hub_secret`` is ``--hub-secret NAME`` on the command line.
    """

    name: str
    metavar: str
    help: str
    environment: str = ""
    """The environment variable with the value if the user gives no option."""

    @property
    def flag(self) -> str:
        """The option as written on the command line."""
        return f"--{self.name.replace('_', '-')}"

    def value(self, given: Mapping[str, str | None]) -> str | None:
        """Return the given value, or the value from the environment."""
        return given.get(self.name) or (os.environ.get(self.environment) if self.environment else None) or None


@dataclass(frozen=True, kw_only=True)
class Where:
    """The place where steps run and artifacts lie."""

    store: str = ""
    """The address by which a step on the backend opens the store."""
    context: str | None = None
    """A context of the kubeconfig. None: the current context."""
    namespace: str | None = None
    """A namespace of the cluster. None: the context's namespace."""
    options: Mapping[str, str | None] = field(default_factory=dict)
    """Values of the backend's own options, by option name."""

    def cluster(self) -> Cluster:
        """Connect to the cluster.

        Raises:
            ExperimentError: the kubeconfig cannot be used.
        """
        from expunge_controller.kube_client.config import connect

        return connect(self.context, self.namespace)
