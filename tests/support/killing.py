"""Killing a controller at a call of a given number, and what two servers' logs say of it afterwards."""

from __future__ import annotations

import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterator

import pytest

from tests.support.control_plane import ControlPlane
from tests.support.faults import Fault, FaultProxy, Request, after, before
from tests.support.runs import attempts, weights
from tests.support.s3server import S3Server
from tests.support.testsite import Site, until

Moment = Callable[[Callable[[], object]], Fault]


@pytest.fixture
def proxies(plane: ControlPlane, server: S3Server) -> Iterator[dict[str, FaultProxy]]:
    """Before the API server and before the S3 server."""
    proxies = {"cluster": FaultProxy(plane.url, plane.context), "store": FaultProxy(server.url)}
    yield proxies
    for proxy in proxies.values():
        proxy.close()


def by_way_of(site: Site, proxies: dict[str, FaultProxy]) -> None:
    """A controller that begins from here on speaks to the proxies."""
    site.environment |= {
        "KUBECONFIG": str(site.plane.kubeconfig_by(proxies["cluster"].url)),
        "AWS_ENDPOINT_URL_S3": proxies["store"].url,
    }


class Once:
    """What must hold of these steps, however often a controller was killed: each was run once, to the same bits.

    ``forget`` begins a round, ``check`` ends it.
    """

    def __init__(self, site: Site, steps: set[str]) -> None:
        self.site, self.steps = site, steps
        self.expected = weights(site.objects)

    def forget(self) -> None:
        forget(self.site, self.steps)
        (_, self._audited), (_, self._accessed) = self.site.plane.audited(), self.site.server.accessed()

    def check(self, what: str) -> None:
        site, steps = self.site, self.steps
        assert weights(site.objects) == self.expected, what
        assert {attempts(site.objects)[s] for s in steps} == {1}, f"{what}: a step ran twice"
        assert len(pods_made(site.plane, site, self._audited)) == len(steps), f"{what}: a pod too many"
        assert manifests_put(site.server, site, self._accessed) == Counter(steps), f"{what}: an artifact was made twice"


def is_nth(count: int) -> Callable[[Request], bool]:
    """A predicate that holds for the call of this number alone, counted from 1."""
    seen = 0

    def when(request: Request) -> bool:
        nonlocal seen
        seen += 1
        return seen == count

    return when


def moments_of(seen: list[Request]) -> list[tuple[int, Moment]]:
    """Numbers of calls, and whether to kill before or after them. A read changes nothing: before it and after it are
    one moment, and like reads in a row are one.
    """
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


def forget(site: Site, steps: set[str]) -> None:
    """As if these steps had never been: neither their Jobs nor their artifacts."""
    site.plane.kubectl("delete", "jobs", "--all", "-n", site.namespace)
    for step in steps:
        shutil.rmtree(site.objects / step, ignore_errors=True)
    until(lambda: not site.get("pods"))


def pods_made(plane: ControlPlane, site: Site, since: int) -> list[str]:
    """Pods that the Job controller has created in the test's namespace."""
    return [
        e["requestURI"]
        for e in plane.audited(since)[0]
        if e["verb"] == "create"
        and e["objectRef"]["resource"] == "pods"
        and "subresource" not in e["objectRef"]
        and e["objectRef"]["namespace"] == site.namespace
        and e["responseStatus"]["code"] == 201
    ]


def manifests_put(server: S3Server, site: Site, since: int) -> Counter[str]:
    """Artifacts whose manifest the S3 server has taken, by their folder."""
    lines = [x for x in server.accessed(since)[0] if " s3_PutObject " in x and "/manifest.json " in x and " 200 " in x]
    return Counter(re.findall(rf" s3_PutObject {site.namespace}/(\S+)/manifest\.json ", "".join(lines)))
