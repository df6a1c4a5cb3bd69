"""A real node, as root: containerd, kubelet and kube-proxy in namespaces of their own, joined to this machine by a
pair of network interfaces. Ending its first process ends every container in it; no rule and no mount is left behind.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from tests.support import images
from tests.support.chart import CHART, helm
from tests.support.control_plane import ControlPlane
from tests.support.s3server import S3Server
from tests.support.toolchain import CACHE, binary, dies_with_us

HOST, NODE, PODS = "10.99.0.1", "10.99.0.2", "10.244.0.0/24"
"""Addresses of this machine's end and of the node's, and the network of its pods."""
PACKAGES = ("containerd", "runc", "containernetworking-plugins", "iptables", "iproute2")
_HIERARCHIES = ("cpu", "cpuacct", "cpuset", "memory", "devices", "freezer", "blkio", "pids", "systemd")
_CONTAINERD = """\
version = 2
root = "/var/lib/containerd"
state = "/run/containerd"
[grpc]
  address = "/run/containerd/containerd.sock"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{pause}"
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "/etc/cni/net.d"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"
"""
# The kubelet would set these for the whole machine: it is shown files of its own that have the values it wants.
_SYSCTLS = {
    "vm/overcommit_memory": "1",
    "vm/panic_on_oom": "0",
    "kernel/panic": "10",
    "kernel/panic_on_oops": "1",
    "kernel/keys/root_maxkeys": "1000000",
    "kernel/keys/root_maxbytes": "25000000",
}


def install_tools() -> None:
    """The node's programs, from the distribution, if they are not there."""
    images.install_tools()
    if not all(map(shutil.which, ("containerd", "runc", "iptables", "ip"))) or not Path("/usr/lib/cni/bridge").exists():
        environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
        words = ["apt-get", "-qq", "install", "-y", "--no-install-recommends", *PACKAGES]
        subprocess.run(words, env=environment, check=True, capture_output=True)


class Machine:
    """``prepare``, start a control plane on ``HOST``, ``join`` it; ``stop`` ends all of it."""

    def __init__(self, folder: Path, name: str = "machine") -> None:
        self.folder, self.name = folder, name
        self.group = f"/expunge-{os.getpid()}"
        self.link = f"ex{os.getpid()}"
        self._outer: subprocess.Popen[bytes] | None = None
        self._first = 0
        self._programs: dict[str, subprocess.Popen[bytes]] = {}

    def prepare(self) -> None:
        """The namespaces and the network; from here on ``HOST`` is an address of this machine."""
        for name in ("kubelet", "cni", "pods"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        (CACHE / "containerd").mkdir(parents=True, exist_ok=True)
        # Its last words, when its child is killed, are of no use to anybody.
        with (self.folder / "namespaces.log").open("wb") as log:
            self._outer = subprocess.Popen(
                [
                    *dies_with_us(),
                    "unshare",
                    "--mount",
                    "--net",
                    "--uts",
                    "--pid",
                    "--fork",
                    "--kill-child",
                    "--mount-proc",
                    "--propagation",
                    "slave",
                    "sleep",
                    "infinity",
                ],
                stdin=subprocess.DEVNULL,
                stderr=log,
            )
        children = Path(f"/proc/{self._outer.pid}/task/{self._outer.pid}/children")
        self._until("its first process", lambda: bool(children.read_text().strip()))
        self._first = int(children.read_text())
        self._until("its network", lambda: self._namespace(self._first) != self._namespace(os.getpid()))
        _run(
            "ip",
            "link",
            "add",
            self.link,
            "type",
            "veth",
            "peer",
            "name",
            "eth0",
            "netns",
            f"/proc/{self._first}/ns/net",
        )
        _run("ip", "addr", "add", f"{HOST}/24", "dev", self.link)
        _run("ip", "link", "set", self.link, "up")
        _run("ip", "route", "replace", PODS, "dev", self.link, "via", NODE, "onlink")
        self._make_groups()
        state = CACHE / "containerd"
        binds = {
            self.folder / "kubelet": "/var/lib/kubelet",
            state: "/var/lib/containerd",
            self.folder / "cni": "/etc/cni/net.d",
            self.folder / "pods": "/var/log/pods",
        }
        lines = [
            f"hostname {self.name}",
            "mount --make-rshared /",
            "ip link set lo up",
            f"ip addr add {NODE}/24 dev eth0",
            "ip link set eth0 up",
            f"ip route add default via {HOST}",
            "mount -t tmpfs tmpfs /run",
            "mkdir -p /run/lock /run/sys",
            "echo 1 > /proc/sys/net/ipv4/ip_forward",
            *(f"mkdir -p {to} && mount --bind {source} {to}" for source, to in binds.items()),
            "mkdir -p /var/log/containers && mount -t tmpfs tmpfs /var/log/containers",
            *(
                f"echo {v} > /run/sys/{k.replace('/', '.')} && mount --bind /run/sys/{k.replace('/', '.')} /proc/sys/{k}"
                for k, v in _SYSCTLS.items()
            ),
        ]
        _run(*self._inside(), "sh", "-eu", "-c", "\n".join(lines))

    def join(self, plane: ControlPlane, names: list[str], gpus: int = 2) -> None:
        """Become a node that has these images, and GPUs that are none."""
        pause = images.make_pause()
        self._write(plane, pause)
        self._begin("containerd", "containerd", "-c", str(self.folder / "containerd.toml"))
        self._until("containerd", lambda: self._answers("ctr", "version"))
        for image in (pause, *names):
            self.bring(image)
        self.begin_kubelet(plane)
        proxy = [f"--config={self.folder / 'proxy.yaml'}"]
        self._begin("kube-proxy", str(binary("kube-proxy")), *proxy)
        self._until("the node", lambda: self._is_ready(plane), 120)
        room = json.dumps({"status": {f: {"nvidia.com/gpu": str(gpus)} for f in ("capacity", "allocatable")}})
        plane.kubectl("patch", "node", self.name, "--subresource=status", "--type=merge", "-p", room)

    def begin_kubelet(self, plane: ControlPlane) -> None:
        """Start it (again)."""
        kubeconfig = plane.kubeconfig_of(f"system:node:{self.name}", "system:nodes")
        self._begin(
            "kubelet",
            str(binary("kubelet")),
            f"--config={self.folder / 'kubelet.yaml'}",
            f"--kubeconfig={kubeconfig}",
            f"--hostname-override={self.name}",
            f"--node-ip={NODE}",
            "--root-dir=/var/lib/kubelet",
        )

    def end_kubelet(self) -> None:
        """As a node's kubelet that crashes: containers go on."""
        self._end("kubelet")

    def stop(self) -> None:
        for name in ("kubelet", "kube-proxy", "containerd"):
            self._end(name)
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._first, signal.SIGKILL)
        if self._outer is not None:
            self._outer.wait()
        subprocess.run(["ip", "link", "del", self.link], capture_output=True, check=False)
        for _ in range(20):  # groups go once their last process has
            groups = [d for h in _HIERARCHIES for d in Path(f"/sys/fs/cgroup/{h}{self.group}").rglob("*") if d.is_dir()]
            for each in sorted(groups, key=lambda d: -len(d.parts)):
                with contextlib.suppress(OSError):
                    each.rmdir()
            for hierarchy in _HIERARCHIES:
                with contextlib.suppress(OSError):
                    Path(f"/sys/fs/cgroup/{hierarchy}{self.group}").rmdir()
            if not any(Path(f"/sys/fs/cgroup/{h}{self.group}").exists() for h in _HIERARCHIES):
                return
            time.sleep(0.2)

    def _make_groups(self) -> None:
        for hierarchy in _HIERARCHIES:
            top = Path(f"/sys/fs/cgroup/{hierarchy}")
            if not top.is_dir():
                continue
            group = Path(f"{top}{self.group}")
            group.mkdir(exist_ok=True)
            for name in ("cpuset.cpus", "cpuset.mems") if hierarchy == "cpuset" else ():
                (group / name).write_text((top / name).read_text())

    def _write(self, plane: ControlPlane, pause: str) -> None:
        network = {
            "cniVersion": "0.4.0",
            "name": "pods",
            "plugins": [
                {
                    "type": "bridge",
                    "bridge": "cni0",
                    "isGateway": True,
                    "ipMasq": False,
                    "hairpinMode": True,
                    "ipam": {
                        "type": "host-local",
                        "dataDir": "/run/cni-ipam",
                        "ranges": [[{"subnet": PODS}]],
                        "routes": [{"dst": "0.0.0.0/0"}],
                    },
                }
            ],
        }
        kubelet = {
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "address": NODE,
            "authentication": {
                "anonymous": {"enabled": False},
                "webhook": {"enabled": True},
                "x509": {"clientCAFile": str(plane.folder / "ca.crt")},
            },
            "authorization": {"mode": "Webhook"},
            "cgroupDriver": "cgroupfs",
            "cgroupRoot": self.group,
            "containerRuntimeEndpoint": "unix:///run/containerd/containerd.sock",
            "failSwapOn": False,
            "imageGCHighThresholdPercent": 100,
            "imageMinimumGCAge": "24h",
            "evictionHard": {"memory.available": "64Mi"},
            "resolvConf": "",
            "nodeStatusUpdateFrequency": "5s",
            "volumeStatsAggPeriod": "2s",  # how soon a full volume is seen; a minute by default
        }
        proxy = {
            "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
            "kind": "KubeProxyConfiguration",
            "mode": "iptables",
            "clientConnection": {"kubeconfig": str(plane.kubeconfig_of("system:kube-proxy"))},
            "clusterCIDR": PODS,
            "hostnameOverride": self.name,
            "conntrack": {"maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"},
        }
        (self.folder / "cni" / "10-pods.conflist").write_text(json.dumps(network))
        (self.folder / "kubelet.yaml").write_text(json.dumps(kubelet))
        (self.folder / "proxy.yaml").write_text(json.dumps(proxy))
        (self.folder / "containerd.toml").write_text(_CONTAINERD.format(pause=pause))

    def bring(self, image: str) -> None:
        """Into containerd's own store, which is kept, unless this very image is there."""
        mark = CACHE / "containerd" / f"{image.replace('/', '_')}.imported"
        identity = images.identity(image)
        if mark.exists() and mark.read_text() == identity:
            return
        file = CACHE / "image.tar"
        images.archive(image, file)
        _run(*self._containerd("import", str(file)))
        file.unlink()
        mark.write_text(identity)
        # It keeps what a name stood for earlier, by its digest: 6 GB where torch has changed.
        current = {f"sha256:{m.read_text()}" for m in mark.parent.glob("*.imported")}
        names = subprocess.run(
            self._containerd("ls", "--quiet"), capture_output=True, text=True, check=True
        ).stdout.split()
        if stale := [n for n in names if n.startswith("sha256:") and n not in current]:
            _run(*self._containerd("rm", "--sync", *stale))

    def _containerd(self, *words: str) -> list[str]:
        return [*self._inside(), "ctr", "--namespace", "k8s.io", "images", *words]

    def _inside(self) -> list[str]:
        return ["nsenter", "--target", str(self._first), "--mount", "--net", "--uts", "--pid"]

    def _begin(self, name: str, *words: str) -> None:
        with (self.folder / f"{name}.log").open("ab") as log:
            self._programs[name] = subprocess.Popen(
                [*self._inside(), *words], stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )

    def _end(self, name: str) -> None:
        """The program and nsenter, which waits for it; not the containers, which are no children of theirs."""
        process = self._programs.pop(name, None)
        if process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def _answers(self, *words: str) -> bool:
        return subprocess.run([*self._inside(), *words], capture_output=True, check=False).returncode == 0

    def _is_ready(self, plane: ControlPlane) -> bool:
        nodes = plane.get("nodes")["items"]
        return any(
            c["type"] == "Ready" and c["status"] == "True" for n in nodes for c in n["status"].get("conditions", [])
        )

    @staticmethod
    def _namespace(pid: int) -> str:
        return str(Path(f"/proc/{pid}/ns/net").readlink())

    def _until(self, what: str, ready: Callable[[], bool], seconds: float = 30) -> None:
        end = time.monotonic() + seconds
        while not ready():
            for name, process in self._programs.items():
                assert process.poll() is None, f"{name} ended:\n{(self.folder / f'{name}.log').read_text()[-3000:]}"
            assert time.monotonic() < end, f"{what} is not ready after {seconds:.0f} s"
            time.sleep(0.05)


SMALL = [
    w
    for kind in ("memorize", "finetune", "merge", "evaluate")
    for field in ("memory=3Gi", "cpu=1", "disk=2Gi")
    for w in ("--set", f"resources.{kind}.{field}")
]
"""Options with which two fine-tunes fit side by side on two cores."""


class Real:
    """A whole cluster of one node, with our images, and an S3 server that its pods reach."""

    def __init__(self, folder: Path) -> None:
        install_tools()
        self.folder, self.machine = folder, Machine(folder / "machine")
        self.machine.prepare()
        self.plane = ControlPlane(folder / "plane", host=HOST)
        self.server: S3Server | None = None

    def start(self) -> None:
        self.plane.start()
        self.server = S3Server(self.folder / "s3", host=HOST)
        images.make_base()
        self.machine.join(self.plane, [images.build("jobs")])

    def install(
        self, store: str, namespace: str, secret: str, authority: str = "", values: dict[str, str] | None = None
    ) -> None:
        """The chart, with our own images, until its operator is ready; or its upgrade. ``authority``: the ConfigMap
        of the store's certificate; ``values``: more of them.
        """
        self.machine.bring(images.build("controller"))
        given = {
            "store.uri": store,
            "store.existingSecret": secret,
            "operator.image.registry": "localhost",
            "operator.image.tag": "test",
            "jobs.image.registry": "localhost",
            "jobs.image.tag": "test",
            "operator.resources.requests.memory": "128Mi",
            "caBundleConfigMap": authority,
            **(values or {}),
        }
        words = [w for k, v in given.items() for w in ("--set", f"{k}={v}")]
        done = helm(
            "upgrade",
            "--install",
            "expunge",
            str(CHART),
            "--namespace",
            namespace,
            *words,
            "--wait",
            "--timeout=110s",
            plane=self.plane,
        )
        assert done.returncode == 0, done.stderr + self.plane.kubectl("describe", "pods", "-n", namespace)

    def stop(self) -> None:
        self.machine.stop()
        self.plane.stop()
        if self.server is not None:
            self.server.stop()


def _run(*words: str) -> None:
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(words)[:200]}: {done.stderr[-2000:]}"
