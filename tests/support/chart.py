"""The chart, by the real helm."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import yaml

from tests.support.control_plane import ControlPlane
from tests.support.toolchain import binary

CHART = Path(__file__).parents[2] / "charts" / "expunge"
Object = dict[str, Any]


def helm(*words: str, plane: ControlPlane | None = None) -> subprocess.CompletedProcess[str]:
    environment = os.environ | ({"KUBECONFIG": str(plane.kubeconfig)} if plane else {})
    return subprocess.run([str(binary("helm")), *words], env=environment, capture_output=True, text=True, timeout=120)


def template(namespace: str, *values: str, name: str = "expunge") -> subprocess.CompletedProcess[str]:
    """``helm template`` with ``--set`` values; the store is given."""
    given = [w for v in ("store.uri=s3://bucket", *values) for w in ("--set", v)]
    return helm("template", name, str(CHART), "--namespace", namespace, "--kube-version", "1.34.0", *given)


def rendered(namespace: str, *values: str, name: str = "expunge") -> list[Object]:
    """What would be installed."""
    done = template(namespace, *values, name=name)
    assert done.returncode == 0, done.stderr
    return [o for o in yaml.safe_load_all(done.stdout) if o]


def of_kind(objects: list[Object], *kinds: str) -> list[Object]:
    return [o for o in objects if o["kind"] in kinds]


def identity(plane: ControlPlane, namespace: str, name: str = "expunge") -> Path:
    """A kubeconfig of the operator's own ServiceAccount, with the chart's Roles and nothing more."""
    objects = of_kind(rendered(namespace, name=name), "ServiceAccount", "Role", "RoleBinding", "ClusterRole")
    plane.kubectl("apply", "-f", "-", give=yaml.safe_dump_all(objects))
    return plane.kubeconfig_of(f"system:serviceaccount:{namespace}:{name}", "system:serviceaccounts")
