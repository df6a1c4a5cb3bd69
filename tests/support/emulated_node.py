"""A node for a control plane that has none: pods' own commands run as processes of this machine, and their status is
told as a kubelet tells it. There is no container: what is tested with it is the controller, not the image or its
limits.
"""

from __future__ import annotations

import base64
import contextlib
import multiprocessing
import os
import signal
import ssl
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing.reduction import DupFd
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import trustme
from expunge_jobs import forkserver
from kubernetes import client, config, watch
from kubernetes.client.exceptions import ApiException
from urllib3.exceptions import HTTPError

from tests.support.kubelet import expanded

Object = dict[str, Any]
MISSING = "missing"
"""An image of this word cannot be pulled here."""
CONTEXT: Any = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(
    [
        "expunge_jobs.forkserver",
        "kubernetes.client",
        "boto3.session",
        "expunge_controller.cli.main",
        "expunge_controller.serve",
    ]
)


class Node:
    """``start`` until ``stop``. A pod whose command is a step's is a fork of a process that has imported torch
    already.
    """

    def __init__(self, kubeconfig: Path, folder: Path, name: str = "node", gpus: int = 2) -> None:
        configuration = client.Configuration()
        config.load_kube_config(str(kubeconfig), client_configuration=configuration)
        self.api = client.CoreV1Api(client.ApiClient(configuration))
        self.folder, self.name, self.gpus = folder, name, gpus
        self.pods: dict[str, Pod] = {}
        """By uid, every pod that it has met."""
        self._stop = threading.Event()
        folder.mkdir(parents=True, exist_ok=True)
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _logs_of(self))
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        trustme.CA().issue_cert("127.0.0.1").configure_cert(context)
        self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self._server.daemon_threads = True

    def start(self) -> None:
        self._register()
        os.environ["EXPUNGE_PRELOAD"] = "1"
        CONTEXT.Process(target=int).start()  # torch is imported once, before the first pod
        del os.environ["EXPUNGE_PRELOAD"]
        for target in (self._server.serve_forever, self._beat, self._watch):
            threading.Thread(target=target, daemon=True).start()

    def stop(self) -> None:
        self._stop.set()
        self._server.shutdown()
        self._server.server_close()
        for pod in self.pods.values():
            pod.signal(signal.SIGKILL)

    def set_gpus(self, count: int) -> None:
        """So many from now on."""
        self.gpus = count
        self.api.patch_node_status(self.name, {"status": self._status()})

    def pod(self, name: str) -> Pod:
        """The pod of this name."""
        return next(p for p in self.pods.values() if p.name == name)

    def _register(self) -> None:
        node = {"metadata": {"name": self.name, "labels": {"kubernetes.io/hostname": self.name}}}
        with contextlib.suppress(ApiException):  # there already
            self.api.create_node(node)
        self.api.patch_node_status(self.name, {"status": self._status()})
        self.api.patch_node(self.name, {"spec": {"taints": None}})

    def _status(self) -> Object:
        room = {
            "cpu": "16",
            "memory": "64Gi",
            "pods": "110",
            "ephemeral-storage": "200Gi",
            "nvidia.com/gpu": str(self.gpus),
        }
        now = _now()
        ready = {
            "type": "Ready",
            "status": "True",
            "reason": "KubeletReady",
            "lastHeartbeatTime": now,
            "lastTransitionTime": now,
        }
        return {
            "capacity": room,
            "allocatable": room,
            "conditions": [ready],
            "addresses": [{"type": "InternalIP", "address": "127.0.0.1"}],
            "daemonEndpoints": {"kubeletEndpoint": {"Port": self._server.server_port}},
        }

    def _beat(self) -> None:
        while not self._stop.wait(10):
            with contextlib.suppress(ApiException, HTTPError):
                self.api.patch_node_status(self.name, {"status": self._status()})

    def _watch(self) -> None:
        while not self._stop.is_set():
            try:
                stream = watch.Watch().stream(
                    self.api.list_pod_for_all_namespaces,
                    field_selector=f"spec.nodeName={self.name}",
                    timeout_seconds=60,
                )
                for event in stream:
                    self._meet(event["raw_object"], event["type"])
            except (ApiException, HTTPError):
                time.sleep(0.2)

    def _meet(self, found: Object, kind: str) -> None:
        uid = found["metadata"]["uid"]
        if uid not in self.pods:
            if kind == "DELETED" or found["status"].get("phase") in ("Succeeded", "Failed"):
                return
            self.pods[uid] = Pod(self, found)
        pod = self.pods[uid]
        if pod.lost:
            return
        if kind == "DELETED":
            pod.signal(signal.SIGKILL)
        elif found["metadata"].get("deletionTimestamp"):
            pod.end(found["metadata"].get("deletionGracePeriodSeconds") or 0)


class Pod:
    """One pod, run by a thread of its own. ``job``: its Job's uid."""

    def __init__(self, node: Node, found: Object) -> None:
        self.node, self.api, self.found = node, node.api, found
        meta = found["metadata"]
        self.name, self.namespace, self.uid = meta["name"], meta["namespace"], meta["uid"]
        self.job = meta.get("labels", {}).get("batch.kubernetes.io/controller-uid", "")
        self.container = found["spec"]["containers"][0]
        self.folder = node.folder / self.uid
        self.log = self.folder / "log"
        self.oom = False
        self.lost = False
        """Cut off: nobody can end it any more, and nobody hears of it."""
        self.alive = threading.Event()
        self.done = threading.Event()
        self._process: Any = None
        self.ending = False
        self._started = _now()
        self.folder.mkdir()
        self.log.touch()
        threading.Thread(target=self._run, daemon=True).start()

    def signal(self, number: signal.Signals) -> None:
        """To the container's processes."""
        if self._process is not None and not self.done.is_set():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, number)

    def kill_for_memory(self) -> None:
        """As the kernel does at the limit."""
        self.oom = True
        self.signal(signal.SIGKILL)

    def end(self, grace: int) -> None:
        """TERM, and KILL after the grace period."""
        if not self.ending:
            self.ending = True
            self.signal(signal.SIGTERM)
            threading.Timer(grace, self.signal, [signal.SIGKILL]).start()
            if self._process is None:
                self._say("Failed", {"terminated": {"exitCode": 137, "reason": "Error"}})
                self._remove()

    def _run(self) -> None:
        image = self.container["image"]
        if MISSING in image:
            message = f'Back-off pulling image "{image}": ErrImagePull: not found'
            self._say("Pending", {"waiting": {"reason": "ImagePullBackOff", "message": message}})
            return
        try:
            environment = self._environment()
        except LookupError as error:
            self._say("Pending", {"waiting": {"reason": "CreateContainerConfigError", "message": str(error.args[0])}})
            return
        with self.log.open("wb") as log, Path(os.devnull).open("rb") as nothing:
            # A fork has the hub's address and folders as they were when huggingface_hub was imported.
            forked = self.found["metadata"].get("labels", {}).get("expunge.dev/kind") != "stage"
            if forked and list(self.container["command"][1:]) == ["-m", "expunge_jobs"]:
                fds = [DupFd(f.fileno()) for f in (log, nothing, nothing)]
                self._process = CONTEXT.Process(target=forkserver.child, args=(environment, *fds), daemon=True)
                self._process.start()
                wait = self._join
            else:
                command = [sys.executable if w == "python" else w for w in self.container["command"]]
                self._process = subprocess.Popen(
                    command, env=environment, stdout=log, stderr=log, start_new_session=True
                )
                wait = self._process.wait
            self._say("Running", {"running": {"startedAt": _now()}})
            self.alive.set()
            code = wait()
        self.done.set()
        code = code if code >= 0 else 128 - code
        terminated = {
            "exitCode": code,
            "reason": "OOMKilled" if self.oom else "Completed" if code == 0 else "Error",
            "startedAt": self._started,
            "finishedAt": _now(),
            "message": "" if code == 0 else self.log.read_bytes()[-2048:].decode(errors="replace"),
        }
        self._say("Succeeded" if code == 0 else "Failed", {"terminated": terminated})
        if self.ending:
            self._remove()

    def _join(self) -> int:
        self._process.join()
        return int(self._process.exitcode)

    def _environment(self) -> dict[str, str]:
        values = {n: os.environ[n] for n in ("PATH", "PYTHONPATH", "COVERAGE_PROCESS_CONFIG") if n in os.environ}
        for each in self.container.get("env", []):
            name, source = each["name"], each.get("valueFrom", {})
            path = source.get("fieldRef", {}).get("fieldPath", "")
            value: str | None = expanded(each.get("value", ""), values)
            if path == "metadata.uid":
                value = self.uid
            elif path.startswith("metadata.labels["):
                value = self.found["metadata"]["labels"].get(path[17:-2], "")
            elif "secretKeyRef" in source:
                value = self._secret(source["secretKeyRef"])
            if value is not None:
                values[name] = value.replace("/scratch", str(self.folder))
        claims = {
            v["name"]: v["persistentVolumeClaim"]["claimName"]
            for v in self.found["spec"]["volumes"]
            if "persistentVolumeClaim" in v
        }
        for mount in [m for m in self.container["volumeMounts"] if m["name"] in claims]:
            place = self.node.folder / "claims" / self.namespace / claims[mount["name"]]
            place.mkdir(parents=True, exist_ok=True)
            values = {k: str(place) if v == mount["mountPath"] else v for k, v in values.items()}
        return values

    def _secret(self, ref: Object) -> str | None:
        """The value of a Secret's key. None: it is not there, and optional."""
        secret = self.api.read_namespaced_secret(ref["name"], self.namespace)
        value = (secret.data or {}).get(ref["key"])
        if value is None and not ref.get("optional"):
            raise LookupError(f"couldn't find key {ref['key']} in Secret {self.namespace}/{ref['name']}")
        return None if value is None else base64.b64decode(value).decode()

    def _say(self, phase: str, state: Object) -> None:
        """The pod's status, as a kubelet writes it."""
        status = status_of(self.container, phase, state, self._started)
        body = {"metadata": {"uid": self.uid}, "status": status}
        self._persist(lambda: self.api.patch_namespaced_pod_status(self.name, self.namespace, body))

    def _remove(self) -> None:
        options = client.V1DeleteOptions(grace_period_seconds=0, preconditions=client.V1Preconditions(uid=self.uid))
        self._persist(lambda: self.api.delete_namespaced_pod(self.name, self.namespace, body=options))

    def _persist(self, call: Any) -> None:
        """A kubelet tells it until it is heard, or the pod is no more."""
        while not self.node._stop.is_set():
            try:
                call()
                return
            except ApiException as error:
                if error.status in (404, 409):
                    return
                time.sleep(0.2)
            except HTTPError:
                time.sleep(0.2)


def status_of(container: Object, phase: str, state: Object, started: str) -> Object:
    """What a kubelet writes of a pod of one container (tests/node compares it with a real one's)."""
    ready = "True" if phase == "Running" else "False"
    why = {"Succeeded": "PodCompleted", "Failed": "PodFailed", "Pending": "ContainersNotReady"}.get(phase, "")
    begun = "PodCompleted" if phase == "Succeeded" else ""
    now = _now()
    conditions = [
        {"type": t, "status": s, "reason": r, "lastTransitionTime": now}
        for t, s, r in [("Initialized", "True", begun), ("Ready", ready, why), ("ContainersReady", ready, why)]
    ]
    told = {
        "name": container["name"],
        "image": container["image"],
        "imageID": "",
        "ready": phase == "Running",
        "restartCount": 0,
        "started": phase == "Running",
        "state": state,
    }
    return {"phase": phase, "conditions": conditions, "containerStatuses": [told], "startTime": started}


def _logs_of(node: Node) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        """GET /containerLogs/NAMESPACE/POD/CONTAINER, as the API server asks a kubelet."""

        protocol_version = "HTTP/1.0"

        def do_GET(self) -> None:
            where = urlsplit(self.path)
            query = {k: v[0] for k, v in parse_qs(where.query).items()}
            pod = node.pod(where.path.split("/")[3])
            self.send_response(200)
            self.end_headers()
            with pod.log.open("rb") as log:
                lines = log.readlines()
                tail = int(query["tailLines"]) if "tailLines" in query else len(lines)
                self.wfile.writelines(lines[max(0, len(lines) - tail) :])
                while query.get("follow") == "true":
                    ended = pod.done.is_set()
                    self.wfile.write(log.read())
                    self.wfile.flush()
                    if ended:
                        break
                    time.sleep(0.05)

        def log_message(self, format: str, *args: object) -> None:
            pass

    return Handler


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
