"""A real Kubernetes control plane for the tests: etcd, API server, controllers and scheduler, on loopback, as any user.

There is no node: pods stay Pending until a test, or an agent in its place, says what a kubelet would say.
"""

from __future__ import annotations

import base64
import http.client
import json
import signal
import ssl
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import trustme
import yaml

from tests.support.s3server import free_port
from tests.support.toolchain import binary, dies_with_us

ADMINS = "system:masters"
_GROUPS = {
    "jobs": "/apis/batch/v1",
    "deployments": "/apis/apps/v1",
    "experiments": "/apis/expunge.dev/v1alpha1",
    "priorityclasses": "/apis/scheduling.k8s.io/v1",
}
"""Where objects of a kind are, if not in Kubernetes' first group."""


class ControlPlane:
    """``start`` until ``stop``; ``kubeconfig`` is an administrator's."""

    def __init__(self, folder: Path, host: str = "127.0.0.1") -> None:
        self.folder, self.host = folder, host
        self.port, self._etcd, self._peers = free_port(host), free_port(), free_port()
        self._ports = {"kube-controller-manager": free_port(), "kube-scheduler": free_port()}
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._commands: dict[str, list[str]] = {}
        folder.mkdir(parents=True, exist_ok=True)
        self._make_certificates()
        self._write_audit_policy()
        self.kubeconfig = self.kubeconfig_of("admin", ADMINS)

    @property
    def url(self) -> str:
        return f"https://{self.host}:{self.port}"

    def start(self) -> None:
        for name in ("etcd", "kube-apiserver"):
            self.begin(name)
        for name in ("kube-controller-manager", "kube-scheduler"):
            self.begin(name)
        self._until(
            "the default service account", lambda: self._asks("/api/v1/namespaces/default/serviceaccounts/default")
        )

    def stop(self) -> None:
        for name in ("kube-scheduler", "kube-controller-manager", "kube-apiserver", "etcd"):
            self.end(name)

    def begin(self, name: str) -> None:
        """Start one program (again), and wait until it is ready."""
        words = self._words()[name]
        with (self.folder / f"{name}.log").open("ab") as log:
            self._processes[name] = subprocess.Popen(
                [*dies_with_us(), str(binary(name)), *words],
                cwd=self.folder,
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
            )
        if name == "etcd":
            self._until(
                name, lambda: _answers(http.client.HTTPConnection("127.0.0.1", self._etcd, timeout=2), "/health")
            )
        elif name == "kube-apiserver":
            self._until(name, lambda: self._asks("/readyz"))
        else:
            port = self._ports[name]
            self._until(name, lambda: _answers(_https("127.0.0.1", port), "/healthz"))

    def end(self, name: str, number: signal.Signals = signal.SIGKILL) -> None:
        """End one program. What etcd has written is kept."""
        process = self._processes.pop(name, None)
        if process is not None:
            process.send_signal(number)
            process.wait()

    @property
    def context(self) -> ssl.SSLContext:
        """An administrator's TLS, for whoever speaks to the API server by hand."""
        return self._context

    def kubeconfig_by(self, url: str) -> Path:
        """A kubeconfig without credentials for an address that has its own, such as a proxy's."""
        file = self.folder / f"by-{url.rpartition(':')[2]}.kubeconfig"
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "test",
            "users": [{"name": "nobody", "user": {}}],
            "clusters": [{"name": "test", "cluster": {"server": url}}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "nobody"}}],
        }
        file.write_text(yaml.safe_dump(config))
        return file

    def kubectl(self, *words: str, give: str | None = None) -> str:
        """The output of kubectl as an administrator."""
        done = subprocess.run(
            [str(binary("kubectl")), "--kubeconfig", str(self.kubeconfig), *words],
            input=give,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def audited(self, since: int = 0) -> tuple[list[dict[str, Any]], int]:
        """The API server's audit log (a line for each request, when it is answered) from this place on, and its end."""
        with (self.folder / "audit.log").open("rb") as log:
            log.seek(since)
            lines = log.readlines()
        return [json.loads(line) for line in lines], since + sum(map(len, lines))

    def get(self, kind: str, *words: str) -> Any:
        """What ``kubectl get KIND [NAME] [-n NAMESPACE] -o json`` says, without a process of its own: tests ask ten
        times a second.
        """
        plural = kind if kind.endswith("s") else f"{kind}s"
        namespace = f"/namespaces/{words[words.index('-n') + 1]}" if "-n" in words else ""
        name = f"/{words[0]}" if words and words[0] != "-n" else ""
        path = f"{_GROUPS.get(plural, '/api/v1')}{namespace}/{plural}{name}"
        connection = http.client.HTTPSConnection(self.host, self.port, timeout=30, context=self._context)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            data = answer.read()
        finally:
            connection.close()
        assert answer.status == 200, data.decode()
        return json.loads(data)

    def context_of(self, user: str, group: str = "") -> ssl.SSLContext:
        """A user's TLS, for whoever speaks to the API server by hand."""
        context = ssl.create_default_context(cafile=str(self.folder / "ca.crt"))
        identity = self._authority.issue_cert("client.test", common_name=user, organization_name=group or None)
        identity.configure_cert(context)
        return context

    def kubeconfig_of(self, user: str, group: str = "") -> Path:
        """A kubeconfig of a user of this name and group."""
        identity = self._authority.issue_cert("client.test", common_name=user, organization_name=group or None)
        file = self.folder / f"{user.replace(':', '-')}-{len(list(self.folder.glob('*.kubeconfig')))}.kubeconfig"
        cluster = {
            "server": self.url,
            "certificate-authority-data": _base64(self._authority.cert_pem.bytes()),
        }
        credentials = {
            "client-certificate-data": _base64(identity.cert_chain_pems[0].bytes()),
            "client-key-data": _base64(identity.private_key_pem.bytes()),
        }
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "test",
            "clusters": [{"name": "test", "cluster": cluster}],
            "users": [{"name": user, "user": credentials}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": user}}],
        }
        file.write_text(yaml.safe_dump(config))
        file.chmod(0o600)
        return file

    def _write_audit_policy(self) -> None:
        policy = {
            "apiVersion": "audit.k8s.io/v1",
            "kind": "Policy",
            "omitStages": ["RequestReceived", "ResponseStarted"],
            "rules": [
                {"level": "None", "nonResourceURLs": ["*"]},
                {"level": "None", "resources": [{"group": "coordination.k8s.io"}]},
                {"level": "Metadata"},
            ],
        }
        (self.folder / "audit.yaml").write_text(yaml.safe_dump(policy))

    def _make_certificates(self) -> None:
        self._authority = trustme.CA()
        self._authority.cert_pem.write_to_path(self.folder / "ca.crt")
        self._authority.private_key_pem.write_to_path(self.folder / "ca.key")
        server = self._authority.issue_cert(
            self.host, "127.0.0.1", "10.96.0.1", "localhost", "kubernetes.default.svc", common_name="kube-apiserver"
        )
        server.cert_chain_pems[0].write_to_path(self.folder / "apiserver.crt")
        server.private_key_pem.write_to_path(self.folder / "apiserver.key")
        client = self._authority.issue_cert("client.test", common_name="kubelet-client", organization_name=ADMINS)
        client.cert_chain_pems[0].write_to_path(self.folder / "kubelet-client.crt")
        client.private_key_pem.write_to_path(self.folder / "kubelet-client.key")
        self._authority.issue_cert("accounts.test").private_key_pem.write_to_path(self.folder / "accounts.key")
        self._context = self.context_of("tests", ADMINS)

    def _words(self) -> dict[str, list[str]]:
        if not self._commands:
            etcd, peers = f"http://127.0.0.1:{self._etcd}", f"http://127.0.0.1:{self._peers}"
            self._commands = {
                "etcd": [
                    "--data-dir=etcd",
                    f"--listen-client-urls={etcd}",
                    f"--advertise-client-urls={etcd}",
                    f"--listen-peer-urls={peers}",
                    f"--initial-advertise-peer-urls={peers}",
                    f"--initial-cluster=default={peers}",
                    "--unsafe-no-fsync",
                    "--log-level=warn",
                ],
                "kube-apiserver": [
                    f"--etcd-servers={etcd}",
                    f"--bind-address={self.host}",
                    f"--advertise-address={self.host}",
                    f"--secure-port={self.port}",
                    "--tls-cert-file=apiserver.crt",
                    "--tls-private-key-file=apiserver.key",
                    "--client-ca-file=ca.crt",
                    "--authorization-mode=Node,RBAC",
                    "--enable-admission-plugins=NodeRestriction",
                    "--service-account-issuer=https://kubernetes.default.svc",
                    "--service-account-key-file=accounts.key",
                    "--service-account-signing-key-file=accounts.key",
                    "--service-cluster-ip-range=10.96.0.0/16",
                    "--kubelet-client-certificate=kubelet-client.crt",
                    "--kubelet-client-key=kubelet-client.key",
                    "--kubelet-preferred-address-types=InternalIP",
                    "--endpoint-reconciler-type=lease",
                    "--max-requests-inflight=2000",
                    "--max-mutating-requests-inflight=1000",
                    "--allow-privileged",
                    "--audit-policy-file=audit.yaml",
                    "--audit-log-path=audit.log",
                ],
                "kube-controller-manager": [
                    *self._client("system:kube-controller-manager", "kube-controller-manager"),
                    "--use-service-account-credentials",
                    "--service-account-private-key-file=accounts.key",
                    "--root-ca-file=ca.crt",
                    "--cluster-signing-cert-file=ca.crt",
                    "--cluster-signing-key-file=ca.key",
                    "--concurrent-job-syncs=20",
                    "--concurrent-gc-syncs=20",
                    "--concurrent-ttl-after-finished-syncs=10",
                ],
                "kube-scheduler": self._client("system:kube-scheduler", "kube-scheduler"),
            }
        return self._commands

    def _client(self, user: str, program: str) -> list[str]:
        file = self.kubeconfig_of(user)
        return [
            f"--kubeconfig={file}",
            f"--authentication-kubeconfig={file}",
            f"--authorization-kubeconfig={file}",
            "--leader-elect=false",
            "--bind-address=127.0.0.1",
            f"--secure-port={self._ports[program]}",
            "--kube-api-qps=1000",
            "--kube-api-burst=2000",
        ]

    def _asks(self, path: str) -> bool:
        return _answers(http.client.HTTPSConnection(self.host, self.port, timeout=2, context=self._context), path)

    def _until(self, what: str, ready: Callable[[], bool], seconds: float = 120) -> None:
        until = time.monotonic() + seconds
        while not ready():
            for name, process in self._processes.items():
                assert process.poll() is None, f"{name} ended:\n{self._tail(name)}"
            assert time.monotonic() < until, f"{what} is not ready after {seconds:.0f} s:\n" + "\n".join(
                map(self._tail, self._processes)
            )
            time.sleep(0.05)

    def _tail(self, name: str) -> str:
        return f"{name}: " + (self.folder / f"{name}.log").read_text()[-2000:]


def _answers(connection: http.client.HTTPConnection, path: str) -> bool:
    try:
        connection.request("GET", path)
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()


def _https(host: str, port: int) -> http.client.HTTPSConnection:
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return http.client.HTTPSConnection(host, port, timeout=2, context=context)


class GivenCluster(ControlPlane):
    """A cluster that somebody else has started, for the tests that only ask a real API server. Whatever would end it,
    read its log or let others into it skips the test. ``kubeconfig``: of an administrator with a client certificate
    (kind, minikube, kubeadm).
    """

    def __init__(self, folder: Path, kubeconfig: Path) -> None:
        self.folder, self.kubeconfig = folder, kubeconfig
        config = yaml.safe_load(self.kubectl("config", "view", "--raw", "--minify", "--flatten"))
        server, user = config["clusters"][0]["cluster"], config["users"][0]["user"]
        where = urlsplit(server["server"])
        self.host, self.port = where.hostname or "", where.port or 443
        self._context = ssl.create_default_context(
            cadata=base64.b64decode(server["certificate-authority-data"]).decode()
        )
        pair = folder / "administrator.pem"
        pair.touch(mode=0o600)
        pair.write_bytes(b"".join(base64.b64decode(user[f"client-{n}-data"]) for n in ("certificate", "key")))
        self._context.load_cert_chain(pair)

    def start(self) -> None: ...

    def stop(self) -> None: ...

    def begin(self, name: str) -> None:
        pytest.skip(f"begins {name}: for a control plane of the tests' own")

    def end(self, name: str, number: signal.Signals = signal.SIGKILL) -> None:
        pytest.skip(f"ends {name}: for a control plane of the tests' own")

    def audited(self, since: int = 0) -> tuple[list[dict[str, Any]], int]:
        pytest.skip("reads the API server's audit log: for a control plane of the tests' own")

    def context_of(self, user: str, group: str = "") -> ssl.SSLContext:
        pytest.skip(f"issues a certificate for {user}: for a control plane of the tests' own")

    def kubeconfig_of(self, user: str, group: str = "") -> Path:
        pytest.skip(f"issues a certificate for {user}: for a control plane of the tests' own")


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def main() -> None:
    """A control plane for a developer, until Ctrl-C or TERM."""
    signal.pthread_sigmask(signal.SIG_BLOCK, (ends := {signal.SIGINT, signal.SIGTERM}))
    with tempfile.TemporaryDirectory(prefix="expunge-cluster-") as folder:
        plane = ControlPlane(Path(folder))
        start = time.monotonic()
        plane.start()
        print(
            f"ready after {time.monotonic() - start:.1f} s; Ctrl-C ends it\nexport KUBECONFIG={plane.kubeconfig}",
            flush=True,
        )
        signal.sigwait(ends)
        plane.stop()


if __name__ == "__main__":
    main()
