"""What is imported of the Kubernetes client, and that somebody beside us still has all of it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

KUBECONFIG = """\
apiVersion: v1
kind: Config
current-context: one
contexts: [{name: one, context: {cluster: c, user: u, namespace: mine}}]
clusters: [{name: c, cluster: {server: "https://127.0.0.1:6443"}}]
users: [{name: u, user: {token: secret-word}}]
"""
HERE = """\
from expunge_controller.kubeconfig import connect
cluster = connect()
assert (cluster.address, cluster.namespace) == ("https://127.0.0.1:6443", "mine")
assert cluster._authorization() == "Bearer secret-word"
"""
THERE = """\
from kubernetes import client
assert client.ApiClient().sanitize_for_serialization(client.V1Pod(kind="Pod")) == {"kind": "Pod"}
"""


def python(tmp_path: Path, code: str) -> None:
    (tmp_path / "config").write_text(KUBECONFIG)
    environment = {"KUBECONFIG": str(tmp_path / "config")}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr


def test_none_of_its_models_is_loaded(tmp_path: Path) -> None:
    python(
        tmp_path,
        f"{HERE}import sys\nassert not [n for n in sys.modules if n.startswith('kubernetes.')], 'left behind'\n"
        "import gc\nassert not [c for c in gc.get_objects() if isinstance(c, type) and 'client.models' in repr(c)]\n",
    )


def test_whoever_wants_all_of_it_has_it_before_and_after(tmp_path: Path) -> None:
    python(tmp_path, HERE + THERE)
    python(tmp_path, f"{THERE}{HERE}import sys\nassert sys.modules['kubernetes.client'] is client\n")
