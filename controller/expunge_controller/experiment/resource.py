"""An Experiment as a custom resource: its group, its paths, its phases and annotations."""

from __future__ import annotations

from typing import Literal

from expunge_controller.experiment.schema import API_VERSION

GROUP, VERSION = API_VERSION.split("/")
PLURAL, KIND = "experiments", "Experiment"
PREFIX = "experiment/"
"""In place of a file: an Experiment of the cluster, as kubectl names it."""
RETRY = "expunge.dev/retry"
"""An annotation: whenever its value is new, what has failed is tried again."""

Phase = Literal["Pending", "Running", "Suspended", "Complete", "Failed", "Cancelled", "Invalid", "Held"]
FINAL: tuple[Phase, ...] = ("Complete", "Failed", "Cancelled", "Invalid", "Held")
"""Nothing is done for a generation that is in one of these."""


def resources_path(namespace: str, name: str = "", status: bool = False) -> str:
    """Of the Experiments of a namespace, of one, or of its status."""
    path = f"/apis/{GROUP}/{VERSION}/namespaces/{namespace}/{PLURAL}"
    return path + (f"/{name}" if name else "") + ("/status" if status else "")
