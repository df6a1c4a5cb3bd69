"""Calls, lists and watches before a real API server, with faults in between."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from expunge_controller.errors import ExperimentError
from expunge_controller.kube_client import client
from expunge_controller.kube_client.client import ApiError, Cluster
from expunge_controller.kube_client.config import connect
from expunge_controller.kube_client.informer import Informer

from tests.support.control_plane import ControlPlane
from tests.support.faults import FaultProxy, Request, cut, lose, refusal
from tests.support.testsite import until


@pytest.fixture
def proxy(plane: ControlPlane) -> Iterator[FaultProxy]:
    proxy = FaultProxy(plane.url, plane.context)
    yield proxy
    proxy.close()


@pytest.fixture
def cluster(plane: ControlPlane, proxy: FaultProxy, namespace: str, monkeypatch: pytest.MonkeyPatch) -> Cluster:
    monkeypatch.setenv("KUBECONFIG", str(plane.kubeconfig_by(proxy.url)))
    return connect(namespace=namespace)


def configmaps(cluster: Cluster, name: str = "") -> str:
    return f"/api/v1/namespaces/{cluster.namespace}/configmaps" + (f"/{name}" if name else "")


def make(cluster: Cluster, name: str, **labels: str) -> dict[str, Any]:
    return cluster.request("POST", configmaps(cluster), {"metadata": {"name": name, "labels": labels or {"a": "b"}}})


@pytest.mark.parametrize(
    ("fault", "seconds"), [(cut, 0), (refusal(500, "InternalError"), 0), (refusal(429, "TooManyRequests", after=1), 2)]
)
def test_a_call_is_sent_again(cluster: Cluster, proxy: FaultProxy, fault: Any, seconds: float) -> None:
    proxy.inject(fault, times=2)
    began = time.monotonic()
    assert make(cluster, "one")["metadata"]["uid"]
    assert len(proxy.seen) == 3
    assert time.monotonic() - began > seconds, "as long as the server asks for"


def test_a_call_whose_answer_is_lost_meets_itself(cluster: Cluster, proxy: FaultProxy) -> None:
    proxy.inject(lose)
    with pytest.raises(ApiError, match="already exists") as caught:
        make(cluster, "one")
    assert caught.value.status == 409
    assert not caught.value.passing


def test_what_is_refused_is_told_in_the_servers_words_and_not_sent_again(cluster: Cluster, proxy: FaultProxy) -> None:
    with pytest.raises(ApiError, match='configmaps "none" not found'):
        cluster.request("GET", configmaps(cluster, "none"))
    assert len(proxy.seen) == 1


def test_an_address_where_nobody_is(plane: ControlPlane, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBECONFIG", str(plane.kubeconfig_by("http://127.0.0.1:9")))
    with pytest.raises(ApiError, match=r"http://127.0.0.1:9 does not answer: .*[Rr]efused") as caught:
        connect().request("GET", "/api", tries=2)
    assert caught.value.passing


def test_tls_that_breaks_is_an_answer_that_did_not_come(
    plane: ControlPlane, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The proxy speaks no TLS."""
    monkeypatch.setenv("KUBECONFIG", str(plane.kubeconfig_by(proxy.url.replace("http:", "https:"))))
    with pytest.raises(ApiError, match="does not answer: .*SSL") as caught:
        connect().request("GET", "/api", tries=1)
    assert caught.value.passing


@pytest.mark.parametrize("text", ["]not yaml[", "kind: Config", ""])
def test_a_kubeconfig_that_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    (tmp_path / "config").write_text(text)
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "config"))
    with pytest.raises(ExperimentError, match="the kubeconfig .* cannot be"):
        connect()
    monkeypatch.setenv("KUBECONFIG", str(tmp_path))
    with pytest.raises(ExperimentError, match="the kubeconfig .* cannot be"):
        connect()


def test_an_object_is_deleted_only_if_it_is_that_one(cluster: Cluster) -> None:
    uid = make(cluster, "one")["metadata"]["uid"]
    assert not cluster.delete(configmaps(cluster, "one"), "00000000-0000-0000-0000-000000000000")
    assert cluster.delete(configmaps(cluster, "one"), uid)
    assert not cluster.delete(configmaps(cluster, "one"), uid)


def test_lists_come_whole_over_pages(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "PAGE_OBJECTS", 3)
    for n in range(7):
        make(cluster, f"c{n}", of="test")
    items, version = cluster.list(configmaps(cluster), "of=test")
    assert [i["metadata"]["name"] for i in items] == [f"c{n}" for n in range(7)]
    assert version


def test_contexts_as_kubectl_knows_them(plane: ControlPlane, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBECONFIG", str(plane.kubeconfig))
    assert connect().namespace == "default"
    assert connect(context="test", namespace="other").namespace == "other"
    with pytest.raises(ExperimentError, match="no context 'tset' in the kubeconfig; one of: test; did you mean 'test'"):
        connect(context="tset")
    plane.kubectl("config", "set-context", "test", "--namespace=elsewhere", "--kubeconfig", str(_copy(plane, tmp_path)))
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "config"))
    assert connect().namespace == "elsewhere"
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(ExperimentError, match=r"no cluster: neither \$KUBECONFIG nor ~/.kube/config names one"):
        connect()


def _copy(plane: ControlPlane, folder: Path) -> Path:
    file = folder / "config"
    file.write_text(plane.kubeconfig.read_text())
    return file


class Watched:
    """A mirror of the namespace's ConfigMaps, and what it told."""

    def __init__(self, cluster: Cluster) -> None:
        self.told: list[str] = []
        self.lock = threading.Lock()
        self.mirror = Informer(
            cluster, configmaps(cluster), "of=test", lambda o: {"metadata": o["metadata"]}, self.take
        )
        self.mirror.start()
        assert self.mirror.wait(10)

    def take(self, what: dict[str, Any]) -> None:
        with self.lock:
            self.told.append(what["metadata"]["name"])

    def names(self) -> set[str]:
        return {o["metadata"]["name"] for o in self.mirror.by_index("")}


@pytest.fixture
def watched(cluster: Cluster) -> Iterator[Watched]:
    watched = Watched(cluster)
    yield watched
    watched.mirror.stop()


def is_watch(request: Request) -> bool:
    return "watch=true" in request.path


def test_a_mirror_sees_what_comes_and_goes(cluster: Cluster, watched: Watched) -> None:
    uid = make(cluster, "one", of="test")["metadata"]["uid"]
    make(cluster, "other", of="nothing")
    until(lambda: watched.names() == {"one"}, 5)
    cluster.delete(configmaps(cluster, "one"), uid)
    until(lambda: watched.names() == set(), 5)
    assert watched.told == ["one", "one"]


def test_objects_are_found_by_their_group(plane: ControlPlane, cluster: Cluster) -> None:
    mirror = Informer(
        cluster,
        configmaps(cluster),
        "of=test",
        lambda o: {"metadata": o["metadata"]},
        lambda _: None,
        lambda o: str(o["metadata"]["labels"]["group"]),
    )

    def found() -> dict[str, list[str]]:
        return {g: [o["metadata"]["name"] for o in mirror.by_index(g)] for g in ("a", "b")}

    for name, group in (("one", "a"), ("two", "b")):
        make(cluster, name, of="test", group=group)
    mirror.start()
    try:
        until(lambda: found() == {"a": ["one"], "b": ["two"]}, 5)
        make(cluster, "three", of="test", group="a")
        until(lambda: sorted(found()["a"]) == ["one", "three"], 5)
        plane.kubectl("label", "configmap", "two", "group=a", "--overwrite", "-n", cluster.namespace)
        until(lambda: found()["b"] == [], 5)
        assert sorted(found()["a"]) == ["one", "three", "two"]
        plane.kubectl("delete", "configmap", "one", "-n", cluster.namespace)
        until(lambda: sorted(found()["a"]) == ["three", "two"], 5)
    finally:
        mirror.stop()


def test_a_mirror_outlives_what_nobody_foresaw(cluster: Cluster) -> None:
    fail = [True]

    def trim(found: dict[str, Any]) -> dict[str, Any]:
        if fail[0]:
            raise KeyError("a field that is missing")
        return {"metadata": found["metadata"]}

    make(cluster, "one", of="test")
    mirror = Informer(cluster, configmaps(cluster), "of=test", trim, lambda _: None)
    mirror.start()
    try:
        until(lambda: mirror.problem == "KeyError: 'a field that is missing'", 5)
        fail[0] = False
        until(lambda: [o["metadata"]["name"] for o in mirror.by_index("")] == ["one"], 5)
        assert mirror.problem == ""
    finally:
        mirror.stop()


def test_what_happens_while_nobody_listens_is_found(
    plane: ControlPlane, cluster: Cluster, proxy: FaultProxy, watched: Watched
) -> None:
    uid = make(cluster, "goes", of="test")["metadata"]["uid"]
    make(cluster, "stays", of="test")
    until(lambda: watched.names() == {"goes", "stays"}, 5)
    watched.told.clear()
    proxy.inject(refusal(500, "InternalError"), lambda r: "labelSelector" in r.path, times=2)
    assert proxy.drop_streams()
    cluster.delete(configmaps(cluster, "goes"), uid)
    make(cluster, "comes", of="test")
    until(lambda: watched.names() == {"stays", "comes"}, 10)
    until(lambda: sorted(watched.told) == ["comes", "goes"], 5)
    assert watched.mirror.problem == ""


@pytest.mark.parametrize(
    "fault", [refusal(410, "Expired"), refusal(429, "TooManyRequests", after=1), refusal(500, "InternalError"), cut]
)
def test_a_watch_that_is_refused_begins_again(
    cluster: Cluster, proxy: FaultProxy, watched: Watched, fault: Any
) -> None:
    until(lambda: any(map(is_watch, proxy.seen)), 5)
    proxy.inject(fault, is_watch, times=2)
    until(lambda: proxy.drop_streams() > 0, 5)
    until(lambda: sum(map(is_watch, proxy.seen)) >= 4, 10)
    make(cluster, "one", of="test")
    until(lambda: watched.names() == {"one"}, 5)


def test_a_watch_that_the_server_ends_goes_on_where_it_was(
    cluster: Cluster, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "WATCH_SECONDS", 1)
    make(cluster, "one", of="test")
    watched = Watched(cluster)
    try:
        for name in ("two", "three"):
            turns = sum(map(is_watch, proxy.seen))
            until(lambda turns=turns: sum(map(is_watch, proxy.seen)) > turns + 1, 20)
            make(cluster, name, of="test")
            until(lambda name=name: name in watched.names(), 5)
        assert watched.names() == {"one", "two", "three"}
        assert watched.told == ["one", "two", "three"]
        assert len([r for r in proxy.seen if "labelSelector" in r.path and not is_watch(r)]) == 1, "listed once"
    finally:
        watched.mirror.stop()


def test_trouble_is_told_while_it_lasts(cluster: Cluster, proxy: FaultProxy, watched: Watched) -> None:
    until(lambda: any(map(is_watch, proxy.seen)), 5)
    proxy.inject(refusal(403, "Forbidden"), lambda r: "labelSelector" in r.path, times=6)
    until(lambda: proxy.drop_streams() > 0, 5)
    until(lambda: watched.mirror.problem == "as the test wishes", 5)
    until(lambda: watched.mirror.problem == "", 20)


def test_a_server_that_is_restarted(plane: ControlPlane, cluster: Cluster, watched: Watched) -> None:
    make(cluster, "one", of="test")
    plane.end("kube-apiserver")
    until(lambda: "does not answer" in watched.mirror.problem or bool(watched.mirror.problem), 15)
    plane.begin("kube-apiserver")
    make(cluster, "two", of="test")
    until(lambda: watched.names() == {"one", "two"}, 20)
