"""How fast artifacts travel to an S3 server on this machine, against a bare boto3 transfer of the same bytes.

Builds and starts the server that the tests use. Each is done several times in turn; the medians are compared.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from expunge_jobs.store.schemes.s3 import S3Store

from tests.support.s3server import BUCKET, CREDENTIALS, S3Server

SIZE, ROUNDS = 256 << 20, 7


def seconds(act: Callable[[], object]) -> float:
    start = time.perf_counter()
    act()
    return time.perf_counter() - start


def main() -> None:
    os.environ.update(CREDENTIALS)
    os.environ.pop("AWS_CA_BUNDLE", None)
    import boto3

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        server = S3Server(folder / "server")
        try:
            store = S3Store(f"s3://{BUCKET}/store?endpoint_url={server.url}")
            bare = boto3.client("s3", endpoint_url=server.url)
            source, to = folder / "source", folder / "to"
            source.write_bytes(os.urandom(SIZE))
            acts: dict[str, tuple[Callable[[], object], Callable[[], object]]] = {
                "up": (lambda: store.put_file("a", source), lambda: bare.upload_file(str(source), BUCKET, "bare")),
                "down": (lambda: store.get_file("a", to), lambda: bare.download_file(BUCKET, "bare", str(to))),
            }
            for what, (ours, theirs) in acts.items():
                seconds(ours), seconds(theirs)
                pairs = [(seconds(ours), seconds(theirs)) for _ in range(ROUNDS)]
                mine, other = (statistics.median(p[n] for p in pairs) for n in (0, 1))
                print(
                    f"{what}: {SIZE / mine / 1e6:.0f} MB/s, bare boto3 {SIZE / other / 1e6:.0f} MB/s; ratio {other / mine:.2f} "
                    "(aim: .9 and more)"
                )
        finally:
            server.stop()


if __name__ == "__main__":
    main()
