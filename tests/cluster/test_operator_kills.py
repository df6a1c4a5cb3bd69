"""The operator killed before and after its calls to the API server and to the store: begun again, it ends the same.

At one call of each kind; `make test-slow` does it at every one.
"""

from __future__ import annotations

import os
import re
import signal
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from cluster import ControlPlane
from faults import FaultProxy, Request
from killing import Moment, forget, is_nth, manifests_put, moments_of, pods_made
from operating import Operating, apply, experiment, install_definition, status
from runs import attempts, weights
from s3server import S3Server
from testsite import Site, until


@pytest.fixture
def proxies(plane: ControlPlane, server: S3Server) -> Iterator[dict[str, FaultProxy]]:
    proxies = {"cluster": FaultProxy(plane.url, plane.context), "store": FaultProxy(server.url)}
    yield proxies
    for proxy in proxies.values():
        proxy.close()


def ended(site: Site, name: str) -> bool:
    return status(site, name).get("phase") in ("Complete", "Failed", "Invalid")


def to_its_end(site: Site, operating: Operating, resource: dict[str, Any]) -> None:
    """Applied, run by an operator of its own, and seen complete."""
    apply(site, resource)
    process = operating.fork()
    until(lambda: ended(site, resource["metadata"]["name"]), 120)
    process.terminate()
    process.join()
    assert status(site, resource["metadata"]["name"])["phase"] == "Complete", operating.said.read_text()[-3000:]


@pytest.mark.timeout(3000)
@pytest.mark.parametrize("all_of_them", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_killed_at_its_calls(
    all_of_them: bool,
    site: Site,
    plane: ControlPlane,
    server: S3Server,
    proxies: dict[str, FaultProxy],
    capsys: pytest.CaptureFixture[str],
) -> None:
    install_definition(plane)
    operating = Operating(site)
    to_its_end(site, operating, experiment(site))
    whole = set(attempts(site.objects))
    # Another merge: of a finished experiment three steps are left, one after the other.
    half = experiment(site, "half", merge={"method": "ties", "density": 0.5})
    site.environment |= {
        "KUBECONFIG": str(plane.kubeconfig_by(proxies["cluster"].url)), "AWS_ENDPOINT_URL_S3": proxies["store"].url,
    }  # fmt: skip
    to_its_end(site, operating, half)
    moments = {name: moments_of(proxy.seen) for name, proxy in proxies.items()}
    if not all_of_them:  # one call of each kind
        moments = {name: first_of_each(proxy.seen, moments[name]) for name, proxy in proxies.items()}
    calls = sum(len(proxy.seen) for proxy in proxies.values())
    steps = set(attempts(site.objects)) - whole
    assert len(steps) == 3
    expected = weights(site.objects)
    killed = 0
    for name, proxy in proxies.items():
        for number, moment in moments[name]:
            site.plane.kubectl("delete", "experiment", "half", "-n", site.namespace)
            forget(site, steps)
            (_, audited), (_, accessed) = plane.audited(), server.accessed()
            apply(site, half)
            killed += kill_at(site, operating, proxy, number, moment)
            again = operating.fork()
            what = f"{name} call {number}, {moment.__name__}"
            until(lambda: ended(site, "half"), 120)
            again.terminate()
            again.join()
            assert status(site, "half")["phase"] == "Complete", f"{what}:\n{operating.said.read_text()[-4000:]}"
            assert weights(site.objects) == expected, what
            assert {attempts(site.objects)[s] for s in steps} == {1}, f"{what}: a step ran twice"
            assert len(pods_made(plane, site, audited)) == len(steps), f"{what}: a pod too many"
            assert manifests_put(server, site, accessed) == Counter(steps), f"{what}: an artifact was made twice"
    of = sum(map(len, moments.values()))
    with capsys.disabled():
        print(f"\noperator killed at {killed} of {of} moments in {calls} calls")
    assert killed >= 0.7 * of


def first_of_each(seen: list[Request], moments: list[tuple[int, Moment]]) -> list[tuple[int, Moment]]:
    """Of calls that are like each other but for keys and names of objects, the first."""
    out: dict[tuple[str, str], tuple[int, Moment]] = {}
    for number, moment in moments:
        request = seen[number - 1]
        like = re.sub(r"[0-9a-f]{8,}|[.-][0-9a-z]{5,}", "", request.path.partition("?")[0])
        out.setdefault((f"{request.method} {like}", moment.__name__), (number, moment))
    return list(out.values())


def kill_at(site: Site, operating: Operating, proxy: FaultProxy, number: int, moment: Moment) -> bool:
    """Whether the operator was killed there; it may make a call less than last time."""
    proxy.inject(moment(lambda: os.kill(process.pid or 0, signal.SIGKILL)), is_nth(number))
    process = operating.fork()
    until(lambda: not process.is_alive() or ended(site, "half"), 120)
    killed = not process.is_alive()
    proxy.calm()
    process.kill()
    process.join()
    return killed
