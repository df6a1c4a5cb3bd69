"""The operator killed before and after each of its calls to the API server and to the store: begun again, it ends the
same.
"""

from __future__ import annotations

import os
import signal
from typing import Any

import pytest

from tests.support.control_plane import ControlPlane
from tests.support.faults import FaultProxy
from tests.support.killing import Moment, Once, by_way_of, is_nth, moments_of, proxies
from tests.support.operating import Operating, apply, experiment, install_definition, status
from tests.support.runs import attempts
from tests.support.testsite import Site, until

__all__ = ["proxies"]


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
def test_killed_at_each_of_its_calls(
    site: Site, plane: ControlPlane, proxies: dict[str, FaultProxy], capsys: pytest.CaptureFixture[str]
) -> None:
    install_definition(plane)
    operating = Operating(site)
    to_its_end(site, operating, experiment(site))
    whole = set(attempts(site.objects))
    # Another merge: of a finished experiment three steps are left, one after the other.
    half = experiment(site, "half", merge={"method": "ties", "density": 0.5})
    by_way_of(site, proxies)
    account = f"system:serviceaccount:{site.namespace}:expunge"
    proxies["cluster"].context = plane.context_of(account, "system:serviceaccounts")
    operating.kubeconfig = plane.kubeconfig_by(proxies["cluster"].url)
    to_its_end(site, operating, half)
    moments = {name: moments_of(proxy.seen) for name, proxy in proxies.items()}
    calls = sum(len(proxy.seen) for proxy in proxies.values())
    steps = set(attempts(site.objects)) - whole
    assert len(steps) == 3
    once = Once(site, steps)
    killed = 0
    for name, proxy in proxies.items():
        for number, moment in moments[name]:
            site.plane.kubectl("delete", "experiment", "half", "-n", site.namespace)
            once.forget()
            apply(site, half)
            killed += kill_at(site, operating, proxy, number, moment)
            again = operating.fork()
            what = f"{name} call {number}, {moment.__name__}"
            until(lambda: ended(site, "half"), 120)
            again.terminate()
            again.join()
            assert status(site, "half")["phase"] == "Complete", f"{what}:\n{operating.said.read_text()[-4000:]}"
            once.check(what)
    of = sum(map(len, moments.values()))
    with capsys.disabled():
        print(f"\noperator killed at {killed} of {of} moments in {calls} calls")
    assert killed >= 0.7 * of


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
