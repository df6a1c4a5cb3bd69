"""Which proxy the environment names for which server."""

from __future__ import annotations

import pytest
from expunge_jobs.core.errors import BadTask
from expunge_jobs.core.proxies import connections, proxy_for


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


def test_each_scheme_has_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    assert proxy_for("https://api.test") is None
    monkeypatch.setenv("HTTP_PROXY", "http://one:1")
    assert proxy_for("https://api.test") is None
    assert proxy_for("http://api.test") == "http://one:1"
    monkeypatch.setenv("HTTPS_PROXY", "http://two:2")
    assert proxy_for("https://api.test") == "http://two:2"


@pytest.mark.parametrize(
    ("listed", "url", "direct"),
    [
        ("api.test", "https://api.test:6443", True),
        ("api.test:6443", "https://api.test:6443", True),
        ("api.test:443", "https://api.test:6443", False),
        (".test", "https://api.test", True),
        ("*.test", "https://api.test", True),
        ("test", "https://api.test", True),
        ("pi.test", "https://api.test", False),
        ("10.0.0.0/8", "https://10.96.0.1", True),
        ("10.0.0.0/8", "https://11.96.0.1", False),
        ("10.0.0.0/8", "https://ten.test", False),
        ("10.96.0.1", "https://10.96.0.1:443", True),
        ("fd00::/8", "https://[fd00::1]:6443", True),
        ("[fd00::1]", "https://[fd00::1]:6443", True),
        ("fd00::2", "https://[fd00::1]:6443", False),
        ("*", "https://anything.test", True),
        (" , a.test , .B.test ", "https://x.b.test", True),
        ("", "https://api.test", False),
    ],
)
def test_what_no_proxy_covers(monkeypatch: pytest.MonkeyPatch, listed: str, url: str, direct: bool) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy:1")
    monkeypatch.setenv("NO_PROXY", listed)
    assert (proxy_for(url) is None) == direct


def test_a_proxy_may_lack_a_scheme_and_have_a_login() -> None:
    pool = connections("http://api.test", "me:p%40ss@proxy.test:3128")
    assert pool.proxy.host == "proxy.test"
    assert pool.proxy_headers["proxy-authorization"] == "Basic bWU6cEBzcw=="


@pytest.mark.parametrize("proxy", ["ftp://me:secret@proxy.test", "socks5://me:secret@proxy.test"])
def test_a_kind_that_is_not_spoken_is_refused_without_its_password(proxy: str) -> None:
    with pytest.raises(BadTask, match="proxy.test") as caught:
        connections("http://api.test", proxy)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "proxy", ["http://me:pa#secret@proxy.test", "http://me:secret€@proxy.test", "http://me:secret@[proxy"]
)
def test_a_password_that_no_address_holds_is_told_to_nobody(proxy: str) -> None:
    with pytest.raises(BadTask, match="is no address") as caught:
        connections("http://api.test", proxy)
    assert "secret" not in str(caught.value)
