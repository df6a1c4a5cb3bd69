"""The controller killed before and after each call to the API server and to the store: run again, it ends the same."""

from __future__ import annotations

import os
import signal
from collections import Counter

import pytest

from tests.support.control_plane import ControlPlane
from tests.support.faults import FaultProxy
from tests.support.killing import Moment, Once, by_way_of, is_nth, moments_of, proxies
from tests.support.runs import attempts
from tests.support.testsite import Site

HALF = ("--set", "merge.density=0.5")
"""Another merge: of a finished experiment three steps are left, one after the other."""

__all__ = ["proxies"]


@pytest.mark.timeout(3000)  # some forty runs
def test_killed_at_every_call(
    site: Site,
    plane: ControlPlane,
    proxies: dict[str, FaultProxy],
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert site.command("run").returncode == 0
    whole = set(attempts(site.objects))
    by_way_of(site, proxies)
    _, since = plane.audited()
    undisturbed = site.fork("run", *HALF)
    undisturbed.join()
    assert undisturbed.exitcode == 0, site.said.read_text()
    asked = Counter((r.method, r.path) for r in proxies["cluster"].seen if "watch=true" not in r.path)
    assert asked == answered(plane, since), "the proxy sees every call"
    calls = sum(len(proxy.seen) for proxy in proxies.values())
    moments = {name: moments_of(proxy.seen) for name, proxy in proxies.items()}
    steps = set(attempts(site.objects)) - whole
    assert len(steps) == 3
    once = Once(site, steps)
    killed = 0
    for name, proxy in proxies.items():
        for number, moment in moments[name]:
            once.forget()
            killed += kill_at(site, proxy, number, moment)
            again = site.fork("run", *HALF)
            again.join()
            what = f"{name} call {number}, {moment.__name__}"
            assert again.exitcode == 0, f"{what}:\n{site.said.read_text()[-4000:]}"
            once.check(what)
    of = sum(map(len, moments.values()))
    with capsys.disabled():
        print(f"\nkilled at {killed} of {of} moments in {calls} calls")
    assert killed >= 0.8 * of


def answered(plane: ControlPlane, since: int) -> Counter[tuple[str, str]]:
    """What the API server has answered to the controller, as its audit log tells; without watches, which may still be
    open.
    """
    verbs = {"get": "GET", "list": "GET", "create": "POST", "delete": "DELETE", "patch": "PATCH"}
    events = [e for e in plane.audited(since)[0] if e["userAgent"].startswith("expunge/")]
    return Counter((verbs[e["verb"]], e["requestURI"]) for e in events if e["verb"] != "watch")


def kill_at(site: Site, proxy: FaultProxy, number: int, moment: Moment) -> bool:
    """Whether the controller was killed there; it may make a call less than last time."""
    proxy.inject(moment(lambda: os.kill(process.pid or 0, signal.SIGKILL)), is_nth(number))
    process = site.fork("run", *HALF)
    process.join()
    proxy.calm()
    return process.exitcode == -signal.SIGKILL
