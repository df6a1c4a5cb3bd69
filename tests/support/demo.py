"""The quickstart in pods of a real cluster of one node with two GPUs that are none, an S3 server and our images; as root.

demo.py          run it, then end all of it
demo.py up       only the cluster, until Ctrl-C
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import images
from machine import SMALL, Real
from s3server import BUCKET, CREDENTIALS

QUICKSTART = str(Path(__file__).parents[2] / "examples" / "quickstart.yaml")


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main() -> int:
    if why := images.why_not():
        say(f"error: {why}")
        return 2
    with tempfile.TemporaryDirectory(prefix="expunge-demo-") as folder:
        say("building what is missing: Kubernetes, images (10 to 20 minutes the first time)")
        real = Real(Path(folder))
        try:
            real.start()
            assert real.server is not None
            values = CREDENTIALS | {"AWS_ENDPOINT_URL_S3": real.server.url}
            real.plane.kubectl(
                "create", "secret", "generic", "store", *(f"--from-literal={k}={v}" for k, v in values.items())
            )
            settings = values | {
                "KUBECONFIG": str(real.plane.kubeconfig), "EXPUNGE_EXECUTOR": "kubernetes",
                "EXPUNGE_STORE": f"s3://{BUCKET}/demo", "EXPUNGE_IMAGE": "localhost/expunge-jobs:test",
            }  # fmt: skip
            for name, value in settings.items():
                print(f"export {name}={value}", flush=True)
            if sys.argv[1:] == ["up"]:
                say(f"the cluster is up; for example: expunge run {QUICKSTART} --secret store {' '.join(SMALL)}")
                say("Ctrl-C ends it")
                signal.sigwait({signal.SIGINT, signal.SIGTERM})
                return 0
            words = ["run", QUICKSTART, "--secret", "store", *SMALL]
            done = subprocess.run(
                [sys.executable, "-m", "expunge_controller", *words], env=os.environ | settings, check=False
            )
            say(real.plane.kubectl("get", "jobs,pods"))
            return done.returncode
        finally:
            real.stop()


if __name__ == "__main__":
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM} if sys.argv[1:] == ["up"] else set())
    sys.exit(main())
