"""An Experiment as the operator keeps it in memory.

The operator keeps the fields that it reads, and the spec as text.
"""

from __future__ import annotations

import json
from typing import Any

from expunge_controller.experiment.resource import RETRY
from expunge_controller.kube_client.client import Object
from expunge_controller.operator.work_queue import NamespacedName

LARGEST_SPEC = 1 << 18
"""Largest spec that is kept, in bytes. The operator keeps the spec of every Experiment, at work or not."""
PAGE = 20
"""Experiments in a page of their list.

Each may have the largest size that the API server accepts, 1.5 megabytes.
"""
_UNREADABLE = "unreadable"
"""Key of the reason why a spec is not read. The reason replaces the spec."""
_KEPT = ("name", "namespace", "uid", "resourceVersion", "generation", "creationTimestamp", "deletionTimestamp")


def project(resource: Object) -> Object:
    """Return the fields of an Experiment that the operator reads.

    The spec becomes a text, which takes a fifth of the memory.
    """
    meta = resource["metadata"]
    spec = json.dumps(resource.get("spec"), separators=(",", ":"))
    if resource.get("unreadable"):
        spec = json.dumps({_UNREADABLE: "nested too deep"})
    if len(spec) > LARGEST_SPEC:
        spec = json.dumps({_UNREADABLE: f"{len(spec):,} bytes; at most {LARGEST_SPEC:,} are read"})
    return {
        "metadata": {k: meta.get(k) for k in _KEPT} | {"retry": (meta.get("annotations") or {}).get(RETRY, "")},
        "spec": spec,
        "status": resource.get("status") or {},
    }


def name_of(found: Object) -> NamespacedName:
    """Return an Experiment's namespace and name."""
    return found["metadata"]["namespace"], found["metadata"]["name"]


def read_spec(found: Object) -> tuple[Any, str]:
    """Return an Experiment's spec, or None and why it is not read."""
    spec = json.loads(found["spec"])
    if isinstance(spec, dict) and _UNREADABLE in spec:
        return None, str(spec[_UNREADABLE])
    return spec, ""


def is_asked(spec: Any, field: str) -> bool:
    """Return whether a spec sets ``suspend`` or ``cancel``.

    The spec has not been validated yet.
    """
    return isinstance(spec, dict) and spec.get(field) is True


def is_observed(found: Object) -> bool:
    """Return whether the status is about this generation and retry."""
    status, meta = found["status"], found["metadata"]
    return bool(status.get("observedGeneration") == meta["generation"] and status.get("retried", "") == meta["retry"])
