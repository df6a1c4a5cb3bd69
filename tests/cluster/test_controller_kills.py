"""The controller killed before and after each call to the API server and to the store: run again, it ends the same."""

from __future__ import annotations

import os
import re
import shutil
import signal
from collections import Counter
from collections.abc import Callable, Iterator

import pytest
from cluster import ControlPlane
from faults import Fault, FaultProxy, Request, after, before
from runs import attempts, weights
from s3server import S3Server
from testsite import Site, until

HALF = ("--set", "merge.density=0.5")
"""Another merge: of a finished experiment two steps are left, one after the other."""


@pytest.fixture
def proxies(plane: ControlPlane, server: S3Server) -> Iterator[dict[str, FaultProxy]]:
    proxies = {"cluster": FaultProxy(plane.url, plane.context), "store": FaultProxy(server.url)}
    yield proxies
    for proxy in proxies.values():
        proxy.close()


def is_nth(count: int) -> Callable[[Request], bool]:
    """A predicate that holds for the call of this number alone, counted from 1."""
    seen = 0

    def when(request: Request) -> bool:
        nonlocal seen
        seen += 1
        return seen == count

    return when


def forget(site: Site, steps: set[str]) -> None:
    """As if these steps had never been: neither their Jobs nor their artifacts."""
    site.plane.kubectl("delete", "jobs", "--all", "-n", site.namespace)
    for step in steps:
        shutil.rmtree(site.objects / step, ignore_errors=True)
    until(lambda: not site.get("pods"))


@pytest.mark.timeout(3000)  # some forty runs
def test_killed_at_every_call(
    site: Site,
    plane: ControlPlane,
    server: S3Server,
    proxies: dict[str, FaultProxy],
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert site.command("run").returncode == 0
    whole = set(attempts(site.objects))
    site.environment |= {
        "KUBECONFIG": str(plane.kubeconfig_by(proxies["cluster"].url)), "AWS_ENDPOINT_URL_S3": proxies["store"].url,
    }  # fmt: skip
    _, since = plane.audited()
    undisturbed = site.fork("run", *HALF)
    undisturbed.join()
    assert undisturbed.exitcode == 0, site.said.read_text()
    asked = Counter((r.method, r.path) for r in proxies["cluster"].seen if "watch=true" not in r.path)
    assert asked == answered(plane, since), "the proxy sees every call"
    calls = sum(len(proxy.seen) for proxy in proxies.values())
    moments = {name: moments_of(proxy.seen) for name, proxy in proxies.items()}
    steps = set(attempts(site.objects)) - whole
    assert len(steps) == 2
    expected = weights(site.objects)
    killed = 0
    for name, proxy in proxies.items():
        for number, moment in moments[name]:
            forget(site, steps)
            (_, audited), (_, accessed) = plane.audited(), server.accessed()
            killed += kill_at(site, proxy, number, moment)
            again = site.fork("run", *HALF)
            again.join()
            what = f"{name} call {number}, {moment.__name__}"
            assert again.exitcode == 0, f"{what}:\n{site.said.read_text()[-4000:]}"
            assert weights(site.objects) == expected, what
            assert {attempts(site.objects)[s] for s in steps} == {1}, f"{what}: a step ran twice"
            assert len(pods_made(plane, site, audited)) == len(steps), f"{what}: a pod too many"
            assert manifests_put(server, site, accessed) == Counter(steps), f"{what}: an artifact was made twice"
    of = sum(map(len, moments.values()))
    with capsys.disabled():
        print(f"\nkilled at {killed} of {of} moments in {calls} calls")
    assert killed >= 0.8 * of


def answered(plane: ControlPlane, since: int) -> Counter[tuple[str, str]]:
    """What the API server has answered to the controller, as its audit log tells; without watches, which may still be open."""
    verbs = {"get": "GET", "list": "GET", "create": "POST", "delete": "DELETE", "patch": "PATCH"}
    events = [e for e in plane.audited(since)[0] if e["userAgent"].startswith("expunge/")]
    return Counter((verbs[e["verb"]], e["requestURI"]) for e in events if e["verb"] != "watch")


def pods_made(plane: ControlPlane, site: Site, since: int) -> list[str]:
    """Pods that the Job controller has created in the test's namespace."""
    return [
        e["requestURI"] for e in plane.audited(since)[0]
        if e["verb"] == "create" and e["objectRef"]["resource"] == "pods" and "subresource" not in e["objectRef"]
        and e["objectRef"]["namespace"] == site.namespace and e["responseStatus"]["code"] == 201
    ]  # fmt: skip


def manifests_put(server: S3Server, site: Site, since: int) -> Counter[str]:
    """Artifacts whose manifest the S3 server has taken, by their folder."""
    lines = [x for x in server.accessed(since)[0] if " s3_PutObject " in x and "/manifest.json " in x and " 200 " in x]
    return Counter(re.findall(rf" s3_PutObject {site.namespace}/(\S+)/manifest\.json ", "".join(lines)))


Moment = Callable[[Callable[[], object]], Fault]


def moments_of(seen: list[Request]) -> list[tuple[int, Moment]]:
    """Numbers of calls, and whether to kill before or after them. A read changes nothing: before it and after it are one
    moment, and like reads in a row are one."""
    out: list[tuple[int, Moment]] = []
    last = ""
    for number, request in enumerate(seen, 1):
        like = re.sub(r"[0-9a-f]{8,}", "", f"{request.method} {request.path}")
        if request.method != "GET":
            out += [(number, before), (number, after)]
        elif like != last:
            out.append((number, before))
        last = like
    return out


def kill_at(site: Site, proxy: FaultProxy, number: int, moment: Moment) -> bool:
    """Whether the controller was killed there; it may make a call less than last time."""
    proxy.inject(moment(lambda: os.kill(process.pid or 0, signal.SIGKILL)), is_nth(number))
    process = site.fork("run", *HALF)
    process.join()
    proxy.calm()
    return process.exitcode == -signal.SIGKILL
