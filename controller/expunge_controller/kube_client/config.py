"""The choice of the cluster and the user, as kubectl makes it.

The source is a kubeconfig's context, or the cluster that this process runs in.
"""

from __future__ import annotations

import base64
import binascii
import os
import stat
import tempfile
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml
from expunge_jobs.core.errors import BadTask, suggestion

from expunge_controller.errors import ExperimentError
from expunge_controller.kube_client.client import ApiError, Cluster
from expunge_controller.kube_client.login import Files, Login, Oidc, Plugin, Server, Source

ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
"""Folder of a pod's service account."""


_UNUSABLE = (OSError, TypeError, KeyError, AttributeError, ValueError, yaml.YAMLError)
"""Errors that may occur while reading a file that is no kubeconfig."""


def connect(context: str | None = None, namespace: str | None = None) -> Cluster:
    """Return the cluster of a kubeconfig's context, or of this process.

    The kubeconfig is $KUBECONFIG or ~/.kube/config. Without ``context``, the current context counts. Without a
    kubeconfig, the cluster is the one that this process runs in. The function logs in, but sends the cluster no
    request yet.

    Raises:
        ExperimentError: no such context, nothing says where a cluster is, or the login fails.
    """
    files = os.environ.get("KUBECONFIG") or str(Path.home() / ".kube" / "config")
    there = [f for f in files.split(os.pathsep) if f and Path(f).expanduser().exists()]
    if there:
        return _of_kubeconfig(files, context, namespace)
    if context is not None:
        raise ExperimentError([f"no kubeconfig, so no context '{context}' ({files}: no such file)"])
    if not os.environ.get("KUBERNETES_SERVICE_HOST") or not (ACCOUNT / "token").is_file():
        raise ExperimentError(
            ["no cluster: neither $KUBECONFIG nor ~/.kube/config names one, and this is no pod of one"]
        )
    return _of_this_pod(namespace)


def _cluster(login: Login, namespace: str) -> Cluster:
    agent = f"expunge/{version('expunge')}"  # the caller's name in an audit log
    try:
        login.authorization()
        login.connections()
    except (ApiError, BadTask) as error:
        raise ExperimentError([str(error)]) from None
    return Cluster(login.server.address, login, agent=agent, namespace=namespace)


def _of_this_pod(namespace: str | None) -> Cluster:
    host, port = os.environ["KUBERNETES_SERVICE_HOST"], os.environ.get("KUBERNETES_SERVICE_PORT", "443")
    address = f"https://{f'[{host}]' if ':' in host else host}:{port}"
    # The address is internal to the cluster, and a proxy leads out of the cluster; therefore no proxy.
    server = Server(address, (ACCOUNT / "ca.crt").read_text(), proxy="")
    login = Login(server, Files(token=(ACCOUNT / "token").read_text))
    return _cluster(login, namespace or (ACCOUNT / "namespace").read_text().strip())


def _of_kubeconfig(files: str, context: str | None, namespace: str | None) -> Cluster:
    try:
        config = _Kubeconfig(files)
        chosen = config.context(context)
        login = config.login(chosen)
    except _UNUSABLE as error:
        said = f"no {error}" if isinstance(error, KeyError) else " ".join(str(error).split())
        raise ExperimentError([f"the kubeconfig {files} cannot be used: {said}"]) from None
    return _cluster(login, namespace or chosen.get("namespace") or "default")


class _Kubeconfig:
    """One or several kubeconfig files, merged as kubectl does.

    Of two entries with the same name, the first counts.
    """

    def __init__(self, files: str) -> None:
        from kubernetes.config import ConfigException
        from kubernetes.config.kube_config import KubeConfigMerger

        self.files = files
        try:
            merger = KubeConfigMerger(files)
        except ConfigException as error:
            raise ValueError(str(error)) from None
        self.merged: dict[str, list[Any]] = merger.config.value
        contents = merger.config_files.values()
        self.current = next((c["current-context"] for c in contents if c.get("current-context")), None)

    def context(self, name: str | None) -> dict[str, Any]:
        """Return the context of this name, or the current context."""
        names = [c["name"] for c in self.merged["contexts"]]
        if name is None and not self.current:
            raise ValueError(f"it has no current-context; --context takes one of: {', '.join(names) or 'none'}")
        wanted = name or str(self.current)
        if wanted not in names:
            known = f"no context '{wanted}' in the kubeconfig; one of: {', '.join(names)}{suggestion(wanted, names)}"
            raise ExperimentError([known])
        found, _ = self._entry("contexts", wanted, "context")
        return found

    def login(self, context: dict[str, Any]) -> Login:
        """Return the login for the context's cluster as the context's user."""
        cluster, folder = self._entry("clusters", context["cluster"], "cluster")
        address = str(cluster["server"]).rstrip("/")
        server = Server(
            address,
            _pem(cluster, "certificate-authority", folder),
            bool(cluster.get("insecure-skip-tls-verify")),
            cluster.get("tls-server-name"),
            cluster.get("proxy-url"),
        )
        name = context.get("user")
        if not name:
            return Login(server, Files())
        user, _ = self._entry("users", name, "user")

        def again() -> Source | None:
            try:
                return _Kubeconfig(self.files)._source(name, cluster)
            except _UNUSABLE:
                # Another program may be writing the file; therefore keep the last credentials.
                return None

        return Login(server, self._source(name, cluster), _impersonation(user), again)

    def _entry(self, group: str, name: str, what: str) -> tuple[dict[str, Any], Path]:
        """Return an entry and the folder of its file.

        Relative paths in the entry start from this folder.
        """
        entries = self.merged[group]
        found = next((e for e in entries if e["name"] == name), None)
        if found is None:
            names = [e["name"] for e in entries]
            raise ValueError(
                f"it has no {what} '{name}'; one of: {', '.join(names) or 'none'}{suggestion(name, names)}"
            )
        entry = found.value.get(what) or {}
        if not isinstance(entry, dict):
            raise TypeError(f"the {what} '{name}' is no mapping")
        return entry, Path(found.path).expanduser().absolute().parent

    def _source(self, name: str, cluster: dict[str, Any]) -> Source:
        user, folder = self._entry("users", name, "user")
        certificate = _certificate(user, folder)
        if file := user.get("tokenFile"):
            return Files((folder / file).read_text, certificate)
        if token := user.get("token"):
            return Files(lambda: str(token), certificate)
        if given := user.get("exec"):
            return Plugin(
                name,
                str(given["command"]),
                str(given["apiVersion"]),
                [str(a) for a in given.get("args") or ()],
                {str(e["name"]): str(e["value"]) for e in given.get("env") or ()},
                str(given.get("installHint") or ""),
                str(given.get("interactiveMode") or "IfAvailable"),
                folder,
                _told(cluster, folder) if given.get("provideClusterInfo") else None,
            )
        if given := user.get("auth-provider"):
            kind = given.get("name")
            if kind != "oidc":
                said = "kubectl has none of it since 1.26: use the provider's login plugin (users[].user.exec)"
                raise ValueError(f"auth-provider {kind} of user '{name}' is not supported; {said}")
            settings = {str(k): str(v) for k, v in (given.get("config") or {}).items()}
            if file := settings.get("idp-certificate-authority"):
                settings["idp-certificate-authority"] = str(folder / file)
            return Oidc(name, settings, self._keeper(name))
        if "username" in user:
            return Files(basic=(str(user["username"]), str(user.get("password", ""))), certificate=certificate)
        return Files(certificate=certificate)

    def _keeper(self, name: str) -> Callable[[dict[str, str]], None]:
        """Return a function that stores new tokens of a user.

        The function writes into the file that contains the user, as kubectl does.
        """
        file = next(Path(e.path).expanduser() for e in self.merged["users"] if e["name"] == name).resolve()

        def keep(settings: dict[str, str]) -> None:
            config = yaml.safe_load(file.read_text())
            (user,) = [u["user"] for u in config["users"] if u["name"] == name]
            known = user["auth-provider"]["config"]
            known |= {k: settings[k] for k in ("id-token", "refresh-token") if k in settings}
            descriptor, new = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}.")
            with os.fdopen(descriptor, "w") as out:
                os.fchmod(descriptor, stat.S_IMODE(file.stat().st_mode))
                yaml.safe_dump(config, out, sort_keys=False)
            Path(new).replace(file)

        return keep


def _pem(entry: dict[str, Any], field: str, folder: Path) -> str | None:
    """Return the PEM text of a field, or None if the entry has none.

    The text is the value of ``<field>-data``, or the content of the file that ``<field>`` names.
    """
    if data := entry.get(f"{field}-data"):
        try:
            return base64.b64decode(data).decode()
        except (binascii.Error, ValueError):
            raise ValueError(f"{field}-data is not Base64") from None
    file = entry.get(field)
    return (folder / file).read_text() if file else None


def _certificate(user: dict[str, Any], folder: Path) -> Callable[[], tuple[str, str]] | None:
    """Return a function that reads a user's certificate and key.

    Each call reads their present state. For a user without a certificate, the result is None.
    """
    if not any(user.get(f"client-certificate{end}") for end in ("", "-data")):
        return None

    def read() -> tuple[str, str]:
        chain, key = (_pem(user, f"client-{what}", folder) for what in ("certificate", "key"))
        if not chain or not key:
            raise ApiError(0, "the login: client-certificate has no client-key beside it")
        return chain, key

    return read


def _told(cluster: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Return the description of the cluster for a login plugin."""
    told: dict[str, Any] = {
        k: cluster[k] for k in ("server", "tls-server-name", "insecure-skip-tls-verify", "proxy-url") if k in cluster
    }
    if ca := _pem(cluster, "certificate-authority", folder):
        told["certificate-authority-data"] = base64.b64encode(ca.encode()).decode()
    for extension in cluster.get("extensions") or ():
        if extension.get("name") == "client.authentication.k8s.io/exec":
            told["config"] = extension.get("extension")
    return told


def _impersonation(user: dict[str, Any]) -> list[tuple[str, str]]:
    """Return the headers with which a user impersonates another user.

    The fields of the kubeconfig are ``as``, ``as-uid``, ``as-groups`` and ``as-user-extra``.
    """
    named = [("Impersonate-User", user.get("as")), ("Impersonate-Uid", user.get("as-uid"))]
    named += [("Impersonate-Group", group) for group in user.get("as-groups") or ()]
    for key, values in (user.get("as-user-extra") or {}).items():
        named += [(f"Impersonate-Extra-{key}", value) for value in values]
    return [(name, str(value)) for name, value in named if value]
