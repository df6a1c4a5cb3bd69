"""An Experiment as the operator keeps it: the fields that are read, its spec as text."""

from __future__ import annotations

import json
from typing import Any

from expunge_controller.experiment.resource import RETRY
from expunge_controller.kube_client.client import Object
from expunge_controller.operator.work_queue import NamespacedName

LARGEST_SPEC = 1 << 18
"""Bytes of a spec that is kept; each Experiment's is, whether it is at work or not."""
PAGE = 20
"""Experiments in a page of their list: each may have the size of what the API server takes, a megabyte and a half."""
_UNREADABLE = "unreadable"
"""In place of a spec: why it is not read."""
_KEPT = ("name", "namespace", "uid", "resourceVersion", "generation", "creationTimestamp", "deletionTimestamp")


def project(resource: Object) -> Object:
    """Return those fields of an Experiment that are read; its spec as text, which takes a fifth of the memory."""
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
    """Return an Experiment's spec, or why it is not read."""
    spec = json.loads(found["spec"])
    if isinstance(spec, dict) and _UNREADABLE in spec:
        return None, str(spec[_UNREADABLE])
    return spec, ""


def is_asked(spec: Any, field: str) -> bool:
    """Return whether a spec, which nobody has checked yet, sets ``suspend`` or ``cancel``."""
    return isinstance(spec, dict) and spec.get(field) is True


def is_observed(found: Object) -> bool:
    """Return whether this generation and retry is the one that the status is about."""
    status, meta = found["status"], found["metadata"]
    return bool(status.get("observedGeneration") == meta["generation"] and status.get("retried", "") == meta["retry"])
