"""An Experiment as a custom resource: group, paths, phases, annotations."""

from __future__ import annotations

from typing import Literal

from expunge_controller.experiment.schema import API_VERSION

GROUP, VERSION = API_VERSION.split("/")
PLURAL, KIND = "experiments", "Experiment"
PREFIX = "experiment/"
"""Prefix that names an Experiment of the cluster in place of a file. kubectl uses the same form."""
RETRY = "expunge.dev/retry"
"""Annotation that asks for a retry. A new value makes the operator retry failed steps."""

Phase = Literal["Pending", "Running", "Suspended", "Complete", "Failed", "Cancelled", "Invalid", "Held"]
FINAL: tuple[Phase, ...] = ("Complete", "Failed", "Cancelled", "Invalid", "Held")
"""Final phases. The operator does nothing for a generation in a final phase."""


def resources_path(namespace: str, name: str = "", status: bool = False) -> str:
    """Return the API path of a namespace's Experiments.

    With ``name``, the path is that of one Experiment. With ``status`` too, the path is that of the Experiment's status.
    """
    path = f"/apis/{GROUP}/{VERSION}/namespaces/{namespace}/{PLURAL}"
    return path + (f"/{name}" if name else "") + ("/status" if status else "")
