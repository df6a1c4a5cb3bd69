"""What an hf:// address may be, and how its commit is asked for, before a real HTTP server."""

from __future__ import annotations

import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from expunge_controller.execution.kubernetes.pod_config import PodConfig
from expunge_controller.experiment.crd import resource_definition
from expunge_controller.operator.config import Settings
from expunge_controller.planning.allowed import is_allowed
from expunge_jobs.core.errors import BadTask
from expunge_jobs.inputs import hub
from expunge_jobs.store import Unavailable
from hypothesis import example, given
from hypothesis import strategies as st

from tests.support.hub_server import COMMIT, TOKEN
from tests.support.hub_server import Hub as Server


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    (tmp_path / "files").mkdir()
    server = Server("org/name", tmp_path / "files", private=False)
    yield server
    server.stop()


@pytest.mark.parametrize("revision", ["", "@main", "@v1.0+cpu", "@refs/pr/1", "@feature/a_b"])
def test_a_revision_is_pinned_to_the_hub_s_answer(server: Server, revision: str) -> None:
    assert hub.Hub(server.url).commit(f"hf://org/name{revision}") == COMMIT


def test_a_commit_needs_no_hub() -> None:
    assert hub.Hub("http://127.0.0.1:1").commit(f"hf://org/name@{COMMIT}") == COMMIT


@pytest.mark.parametrize(
    "rest",
    [
        "org/name@/etc/passwd",
        "org/name@../x",
        "org/name@a/../b",
        "org/name@a//b",
        "org/name@.hidden",
        "org/name@a/.b",
        "org/name@",
        "org/name@a/",
        "org/name@main\n",
        "org/name@a b",
        "org/name@a%2f..%2fb",
        "../name",
        "org/..",
        "/org/name",
        "org",
        "org/name/more",
        "",
        "org/name@main@x",
        "org/name?endpoint_url=http://evil",
        "org/name#x",
        "org/n\\ame",
        "@/etc/passwd",
        "org/name@" + "a/" * 9 + "a",
        "org/name@" + "a" * 97,
    ],
)
def test_an_address_that_leads_elsewhere_is_refused(rest: str) -> None:
    for ask in (hub.parse_address, hub.Hub("http://127.0.0.1:1").commit):
        with pytest.raises(BadTask, match="allowed: hf://org/name@revision"):
            ask(f"hf://{rest}")


@pytest.mark.parametrize(
    "digest", ["commit:/etc/passwd", "commit:", f"sha256:{COMMIT}", f"commit:{COMMIT}\n", "commit:abc"]
)
def test_a_pin_is_forty_hex_digits(digest: str) -> None:
    with pytest.raises(BadTask, match="pins no commit"):
        hub.commit_of(digest)
    assert hub.commit_of(f"commit:{COMMIT}") == COMMIT


def test_a_private_model_is_the_user_s_to_name_by_commit(server: Server) -> None:
    server.private = True
    with pytest.raises(BadTask, match="private: then name its commit"):
        hub.Hub(server.url).commit("hf://org/name")
    assert hub.Hub(server.url, TOKEN).commit("hf://org/name") == COMMIT
    with pytest.raises(BadTask, match="not for this HF_TOKEN"):
        hub.Hub(server.url, "another").commit("hf://org/name")
    with pytest.raises(BadTask, match="no such model"):
        hub.Hub(server.url, TOKEN).commit("hf://org/other")


@pytest.mark.parametrize("status", [429, 500, 503, 200])
def test_a_hub_that_is_away_is_waited_for(server: Server, status: int) -> None:
    server.away = status  # 200: a portal's page in place of an answer
    with pytest.raises(Unavailable, match="gives no commit" if status == 200 else f"answers {status}"):
        hub.Hub(server.url).commit("hf://org/name")


def test_a_hub_that_does_not_answer_is_waited_for() -> None:
    with pytest.raises(Unavailable, match="does not answer"):
        hub.Hub("http://127.0.0.1:1").commit("hf://org/name")


def test_no_token_goes_to_another_host(server: Server) -> None:
    server.away = 307
    with pytest.raises(Unavailable):
        hub.Hub(server.url, TOKEN).commit("hf://org/name")
    assert server.tokens[0] == f"Bearer {TOKEN}"
    assert server.tokens[1:]
    assert not any(server.tokens[1:])


def test_the_cache_answers_where_the_hub_does_not(tmp_path: Path) -> None:
    refs = tmp_path / "models--org--name" / "refs" / "feature"
    refs.mkdir(parents=True)
    (refs / "a").write_text(f"{COMMIT}\n")
    (refs / "b").write_text("a secret")
    mine = hub.Hub("http://127.0.0.1:1", cache=tmp_path)
    assert mine.commit("hf://org/name@feature/a") == COMMIT
    for revision in ("feature/b", "feature/c", "feature"):
        with pytest.raises(Unavailable):
            mine.commit(f"hf://org/name@{revision}")
    with pytest.raises(Unavailable, match="HF_HUB_OFFLINE"):
        hub.Hub("http://127.0.0.1:1", cache=tmp_path, offline=True).commit("hf://org/name@main")


def test_whose_hub_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (
        "HF_TOKEN",
        "HUGGING_FACE_HUB_TOKEN",
        "HF_TOKEN_PATH",
        "HF_HUB_CACHE",
        "HF_ENDPOINT",
        "HF_HUB_OFFLINE",
    ):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    assert hub.own_hub() == hub.Hub(cache=tmp_path / "hub")
    (tmp_path / "token").write_text("mine\n")
    monkeypatch.setenv("HF_ENDPOINT", "https://mirror.test/")
    assert hub.own_hub() == hub.Hub("https://mirror.test", "mine", tmp_path / "hub")
    monkeypatch.setenv("HF_TOKEN", "other")
    assert hub.own_hub().token == "other"
    assert hub.public_hub() == hub.Hub("https://mirror.test"), "the operator has no token and reads no cache"


PARTS = st.lists(
    st.sampled_from(
        ["..", ".", "", "/", "//", "etc", "passwd", "@", "org", "name", "main", "%2e%2e", "\\", "~", "$HOME", ":"]
    )
    | st.text(max_size=4),
    max_size=8,
)
_opened: list[str] | None = None


def _hear(event: str, words: tuple[Any, ...]) -> None:
    if event == "open" and _opened is not None:
        _opened.append(str(words[0]))


sys.addaudithook(_hear)


@given(PARTS, st.sampled_from(["", "org/name@", "org/name"]))
@example(["/var/run/secrets/kubernetes.io/serviceaccount/token"], "org/name@")
@example(["proc/self/environ"], "org/name@/")
def test_no_address_that_the_operator_accepts_opens_a_file(rest: list[str], start: str) -> None:
    global _opened
    uri = f"hf://{start}{''.join(rest)}"
    if not is_allowed(
        uri, Settings(namespaces=(), store="s3://b", site=PodConfig(namespace="", image="", store="")).inputs
    ):
        return
    _opened = []
    try:
        hub.Hub("http://127.0.0.1:1").commit(uri)
    except (BadTask, Unavailable):
        pass
    finally:
        heard, _opened = _opened, None
    assert not heard


def test_the_definition_refuses_such_an_address_too() -> None:
    (version,) = resource_definition()["spec"]["versions"]
    rules = version["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]["model"][
        "x-kubernetes-validations"
    ]
    assert "hf://" in rules[0]["rule"]


def test_a_proxy_is_taken_by_scheme(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as nobody:
        gone = f"http://127.0.0.1:{nobody.getsockname()[1]}"
    monkeypatch.setenv("HTTPS_PROXY", gone)
    assert hub.Hub(server.url).commit("hf://org/name") == COMMIT, "http goes by HTTP_PROXY alone"
    monkeypatch.setenv("HTTP_PROXY", server.url)  # a server that answers the path of any host's address
    assert hub.Hub("http://hub.test").commit("hf://org/name") == COMMIT
    monkeypatch.setenv("NO_PROXY", "hub.test")
    with pytest.raises(Unavailable):
        hub.Hub("http://hub.test").commit("hf://org/name")
