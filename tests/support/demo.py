"""A real cluster of one node with two GPUs that are none, an S3 server and our images; as root.

python -m tests.support.demo          start it, install the chart, hand the quickstart to its operator, end it
python -m tests.support.demo up       start it in the background and print how to use it
python -m tests.support.demo down     end what ``up`` started
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

from tests.support import images
from tests.support.machine import SMALL, Real
from tests.support.s3server import BUCKET, CREDENTIALS
from tests.support.toolchain import CACHE

QUICKSTART = str(Path(__file__).parents[2] / "examples" / "quickstart.yaml")
STATE = CACHE / "cluster"
"""``lock`` is held by whoever holds the cluster, ``pid`` says by whom; ``exports`` is there once it can be used;
``log``.
"""
TIMES = {"STARTED": "startedAt", "FINISHED": "finishedAt"}
WAIT = 30 * 60.0
"""Seconds for everything to be built and started."""


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


@contextlib.contextmanager
def cluster() -> Iterator[tuple[Real, dict[str, str]]]:
    """The cluster and the settings of whoever uses it, until the end of the block."""
    with tempfile.TemporaryDirectory(prefix="expunge-demo-") as folder:
        real = Real(Path(folder))
        try:
            real.start()
            assert real.server is not None
            values = CREDENTIALS | {"AWS_ENDPOINT_URL_S3": real.server.url}
            real.plane.kubectl(
                "create", "secret", "generic", "store", *(f"--from-literal={k}={v}" for k, v in values.items())
            )
            real.install(f"s3://{BUCKET}/demo", "default", "store")
            yield (
                real,
                values
                | {
                    "KUBECONFIG": str(real.plane.kubeconfig),
                    "EXPUNGE_EXECUTOR": "kubernetes",
                    "EXPUNGE_STORE": f"s3://{BUCKET}/demo",
                    "EXPUNGE_IMAGE": "localhost/expunge-jobs:test",
                },
            )
        finally:
            real.stop()


def run() -> int:
    """The quickstart in pods, to its table."""
    say("building what is missing: Kubernetes, helm, images (10 to 20 minutes the first time)")
    with cluster() as (real, settings):

        def expunge(*words: str) -> int:
            command = [sys.executable, "-m", "expunge_controller", *words]
            return subprocess.run(command, env=os.environ | settings, check=False).returncode

        say(real.plane.kubectl("get", "pods"))
        code = expunge("submit", QUICKSTART, "--wait", *SMALL)
        say(real.plane.kubectl("get", "experiments,jobs,pods"))
        times = ",".join(f"{n}:.status.containerStatuses[0].state.terminated.{f}" for n, f in TIMES.items())
        say(real.plane.kubectl("get", "pods", "-o", f"custom-columns=POD:.metadata.name,{times}"))
        return code or expunge("results", "experiment/quickstart", "--store", f"s3://{BUCKET}/demo/default")


def hold() -> int:
    """What ``up`` leaves in the background: the cluster, until SIGTERM."""
    with (STATE / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        (STATE / "pid").write_text(str(os.getpid()))
        signal.signal(signal.SIGTERM, _end)
        with contextlib.suppress(KeyboardInterrupt), cluster() as (_, settings):
            (STATE / "new").write_text("".join(f"export {k}={shlex.quote(v)}\n" for k, v in settings.items()))
            (STATE / "new").replace(STATE / "exports")
            while True:
                signal.pause()
        (STATE / "exports").unlink(missing_ok=True)
    return 0


def _end(number: int, frame: FrameType | None) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the end takes its time, and a second one would leave half of it
    raise KeyboardInterrupt


def up() -> int:
    """Start it, unless it is there or under way already; when it can be used, say how."""
    STATE.mkdir(parents=True, exist_ok=True)
    held: subprocess.Popen[bytes] | None = None
    if not is_held():
        say("building what is missing: Kubernetes, images (10 to 20 minutes the first time)")
        for name in ("exports", "pid"):
            (STATE / name).unlink(missing_ok=True)
        with (STATE / "log").open("wb") as log:
            held = subprocess.Popen(
                [sys.executable, "-m", "tests.support.demo", "hold"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                cwd=Path(__file__).parents[2],
            )
    end = time.monotonic() + WAIT
    try:
        while not (STATE / "exports").exists():
            ended = held.poll() is not None if held else not is_held()
            if ended or time.monotonic() > end:
                say((STATE / "log").read_text()[-3000:] + f"\nerror: it did not start; see {STATE / 'log'}")
                return 1
            time.sleep(0.2)
    except KeyboardInterrupt:
        if held is not None:
            held.terminate()
            held.wait()
        return 130
    print((STATE / "exports").read_text(), end="", flush=True)
    say(f"the cluster is up; for example: expunge submit {QUICKSTART} --wait {' '.join(SMALL)}")
    say("make cluster-down ends it")
    return 0


def down() -> int:
    """End what ``up`` started, and nothing else."""
    if not is_held():
        say("no cluster of `make cluster-up` is there")
        return 0
    while not (STATE / "pid").exists():
        time.sleep(0.1)  # it has just begun
    os.kill(int((STATE / "pid").read_text()), signal.SIGTERM)
    with (STATE / "lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # until it has ended everything
    say("ended")
    return 0


def is_held() -> bool:
    """Whether there is a process that holds a cluster, or is about to."""
    try:
        with (STATE / "lock").open() as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def main(words: list[str]) -> int:
    if why := images.why_not():
        say(f"error: {why}")
        return 2
    return {"": run, "up": up, "down": down, "hold": hold}["".join(words)]()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
