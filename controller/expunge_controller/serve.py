"""The operator as a program: ``python -m expunge_controller.serve``.

The program has options, JSON logs, health endpoints and an orderly end.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import threading
from collections.abc import Sequence
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from expunge_jobs.core.errors import StepError
from pydantic import TypeAdapter

from expunge_controller.errors import ExperimentError
from expunge_controller.execution.kubernetes.pod_config import PodConfig, check_reachable
from expunge_controller.experiment.scheduling import Quantity, bytes_of
from expunge_controller.kube_client.client import ApiError
from expunge_controller.kube_client.config import connect
from expunge_controller.operator.config import Limits, Settings
from expunge_controller.operator.work_queue import NamespacedName
from expunge_controller.operator.workers import Operator

PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the operator until SIGTERM or SIGINT.

    The exit code is 0 then, and 2 if the operator cannot start.
    """
    given = parser().parse_args(argv)
    try:
        cluster = connect(given.context)
        site = PodConfig(
            namespace="",
            image=given.image,
            store=given.store,
            secret=given.secret,
            hub_secret=given.hub_secret,
            hub_endpoint=os.environ.get("HF_ENDPOINT"),
            service_account=given.service_account,
            proxies=tuple(given.pod_proxy or ()),
            ca_bundle=given.pod_ca_bundle,
            gpu=given.gpu,
            pull_policy=given.pull_policy,
        )
        check_reachable(site, [])
        settings = Settings(
            namespaces=tuple(given.namespace or [cluster.namespace]),
            store=given.store,
            site=site,
            inputs=tuple(given.allow_input or Settings.inputs),
            max_jobs=given.max_jobs,
            workers=given.workers,
            limits=Limits(
                trials=given.max_trials, input_bytes=bytes_of(given.max_input), object_bytes=bytes_of(given.max_object)
            ),
            state=Path(given.state) if given.state else None,
        )
        operator = Operator(cluster, settings, log)
        operator.start()
    except (ExperimentError, StepError, ApiError) as error:
        log("error", None, str(error))
        return 2
    server = ThreadingHTTPServer(("", given.port), _handler(operator))
    threading.Thread(target=server.serve_forever, daemon=True, name="health").start()
    log("info", None, "watching", namespaces=list(settings.namespaces), port=server.server_port)
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    ended.wait()
    operator.stop()
    server.shutdown()
    log("info", None, "ended; the Jobs keep running")
    return 0


def log(level: str, who: NamespacedName | None, message: str, **more: object) -> None:
    """Write one JSON line to stdout.

    The line contains the Experiment that the message is about, if any.
    """
    about = {"namespace": who[0], "experiment": who[1]} if who else {}
    now = datetime.now(UTC).isoformat(timespec="milliseconds")
    line = {"time": now, "level": level, **about, "message": message, **more}
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()


def parser() -> argparse.ArgumentParser:
    """Return the parser of the program's options.

    The chart sets the options.
    """
    options = argparse.ArgumentParser(prog="expunge-operator", description="Runs the Experiments of a cluster.")
    add = options.add_argument
    add(
        "--store",
        required=True,
        metavar="URI",
        help="s3://bucket/prefix; each namespace has a folder of its name in it",
    )
    add("--image", required=True, help="the jobs image")
    add("--namespace", action="append", metavar="NAME", help="to watch, once for each (default: its own)")
    add("--secret", metavar="NAME", help="of the pods' namespace, with the store's credentials")
    add("--hub-secret", metavar="NAME", help="one with HF_TOKEN, for the steps that copy hf:// models")
    add("--service-account", metavar="NAME", help="of the pods")
    add("--pod-proxy", action="append", type=_proxy, metavar="NAME=VALUE", help=f"of the pods: {', '.join(PROXIES)}")
    add("--pod-ca-bundle", metavar="NAME", help="a ConfigMap of the pods' namespace with ca.crt, for the store")
    add("--gpu", default="nvidia.com/gpu", metavar="RESOURCE", help="a GPU's resource name")
    add("--pull-policy", default="IfNotPresent", choices=("Always", "IfNotPresent", "Never"))
    add(
        "--allow-input",
        action="append",
        metavar="PREFIX",
        help="of inputs that may be read (default: {store} and hf://)",
    )
    add("--max-jobs", type=int, default=Settings.max_jobs, metavar="N", help="unfinished Jobs of all experiments")
    add("--workers", type=int, default=Settings.workers, metavar="N", help="experiments looked at side by side")
    add("--max-trials", type=int, default=Limits.trials, metavar="N", help="of a sweep")
    add(
        "--max-input",
        type=_quantity,
        default="64Mi",
        metavar="SIZE",
        help="of an experiment's data files, all together",
    )
    add("--max-object", type=_quantity, default="32Mi", metavar="SIZE", help="of any other object that is read whole")
    add("--state", metavar="DIR", help="that outlives this program: which experiments it was beginning when it died")
    add("--port", type=int, default=8080, help="of /healthz, /readyz and /metrics")
    add("--context", metavar="NAME", help="of the kubeconfig, where this is no pod")
    return options


def _proxy(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if name not in PROXIES or not equals:  # Some other variables are ways into a step.
        raise argparse.ArgumentTypeError(f"'{text}' is not NAME=VALUE of {', '.join(PROXIES)}")
    return name, value


def _quantity(text: str) -> str:
    try:
        return TypeAdapter(Quantity).validate_python(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"'{text}' is no quantity as 512Mi or 16Gi") from None


def _handler(operator: Operator) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        # Any client may connect, and each connection takes a thread; therefore limit the seconds for a request's line.
        timeout = 10

        def do_GET(self) -> None:
            if self.path == "/metrics":
                self._answer(200, operator.metrics.text())
                return
            problem = {"/healthz": operator.liveness_problem, "/readyz": operator.readiness_problem}.get(self.path)
            said = problem() if problem else "not here"
            self._answer(200 if not said else 503 if problem else 404, f"{said or 'ok'}\n".encode())

        def _answer(self, status: int, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    return Handler


if __name__ == "__main__":
    sys.exit(main())
