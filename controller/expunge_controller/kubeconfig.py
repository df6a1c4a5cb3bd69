"""The cluster that kubectl would ask. Credentials, TLS and connections are the official client's: the only module that imports
it, and no more of it than these. Its packages load 800 classes of models and calls that nothing here uses, two fifths of what
the operator would take of memory, until its next generation loads them on demand (kubernetes-client/python, pull request 2631).
"""

from __future__ import annotations

import importlib.util
import os
import sys
from functools import cache
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any

import yaml
from expunge_jobs.errors import nearest

from expunge_controller.document import ExperimentError
from expunge_controller.kubeapi import Cluster

CONNECTIONS = 32
"""That are kept for the next call: the operator's workers and watches have one each."""


def connect(context: str | None = None, namespace: str | None = None) -> Cluster:
    """The cluster of ``context``, of $KUBECONFIG's or ~/.kube/config's current one, or the one that this process runs in. Asks
    it nothing yet.

    Raises:
        ExperimentError: no such context, or nothing says where a cluster is.
    """
    configurations, connections, config = _official()
    configuration = configurations()
    inside = False
    # Named here, since the client reads the variable once and for all when it is imported.
    files = os.environ.get("KUBECONFIG") or str(Path.home() / ".kube" / "config")
    try:
        contexts, active = config.list_kube_config_contexts(files)
    except (OSError, TypeError, yaml.YAMLError) as error:
        raise ExperimentError([f"the kubeconfig {files} cannot be read: {' '.join(str(error).split())}"]) from None
    except config.ConfigException as error:
        there = any(Path(f).expanduser().exists() for f in files.split(os.pathsep) if f)
        if context is not None and not there:
            raise ExperimentError([f"no kubeconfig, so no context '{context}' ({error})"]) from None
        if there:
            raise ExperimentError([f"the kubeconfig {files} cannot be used: {error}"]) from None
        try:
            config.load_incluster_config(client_configuration=configuration)
        except config.ConfigException:
            raise ExperimentError(
                ["no cluster: neither $KUBECONFIG nor ~/.kube/config names one, and this is no pod of one"]
            ) from None
        inside, contexts, active = True, [], {}
    if not inside:
        chosen = next((c for c in contexts if c["name"] == context), None) if context else active
        if chosen is None:
            names = [c["name"] for c in contexts]
            raise ExperimentError(
                [f"no context '{context}' in the kubeconfig; one of: {', '.join(names)}{nearest(str(context), names)}"]
            )
        try:
            config.load_kube_config(files, context=chosen["name"], client_configuration=configuration)
        except (config.ConfigException, OSError) as error:
            raise ExperimentError([f"context '{chosen['name']}' of the kubeconfig cannot be used: {error}"]) from None
        namespace = namespace or chosen["context"].get("namespace")
    configuration.retries = False  # ours are enough
    configuration.connection_pool_maxsize = CONNECTIONS
    return Cluster(
        str(configuration.host), connections(configuration).pool_manager, lambda: _authorization(configuration),
        agent=f"expunge/{version('expunge')}",  # by which an audit log tells who asked
        namespace=namespace or (_own_namespace() if inside else "default"),
    )  # fmt: skip


def _authorization(configuration: Any) -> str:
    """The header's value as it is now (the client reads a token's file again before it expires); empty where a certificate says
    who asks."""
    return str(configuration.auth_settings().get("BearerToken", {}).get("value") or "")


def _own_namespace() -> str:
    return Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace").read_text().strip()


@cache
def _official() -> tuple[Any, Any, Any]:
    """The client's Configuration, RESTClientObject and config, imported from packages that stand in for its own meanwhile."""
    found = importlib.util.find_spec("kubernetes")
    assert found is not None
    assert found.submodule_search_locations
    root = Path(found.submodule_search_locations[0])
    others = _taken_out()  # somebody's in this process who uses all of it
    try:
        for name, folder in (("kubernetes", root), ("kubernetes.client", root / "client")):
            sys.modules[name] = package = ModuleType(name)
            package.__path__ = [str(folder)]
        from kubernetes.client.configuration import Configuration
        from kubernetes.client.rest import RESTClientObject

        # What config asks its package for; the second for calls that are not made here.
        vars(package).update(Configuration=Configuration, ApiClient=None)
        from kubernetes import config

        return Configuration, RESTClientObject, config
    finally:
        _taken_out()
        sys.modules.update(others)


def _taken_out() -> dict[str, ModuleType]:
    """The client's modules, which are imported no longer."""
    return {name: sys.modules.pop(name) for name in list(sys.modules) if name.partition(".")[0] == "kubernetes"}
