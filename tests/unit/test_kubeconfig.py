"""Which cluster is asked and as whom: kubeconfigs as people have them, before a server that writes down what it is
asked.
"""

from __future__ import annotations

import base64
import json
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import pytest
import trustme
import yaml
from expunge_controller.errors import ExperimentError
from expunge_controller.kube_client import config, login
from expunge_controller.kube_client.client import ApiError, Cluster
from expunge_controller.kube_client.config import connect

V1 = "client.authentication.k8s.io/v1"


class Pretend:
    """An API server, an HTTP proxy and an identity provider in one: every request's path and headers are kept."""

    def __init__(self, authority: trustme.CA | None = None) -> None:
        self.asked: list[tuple[str, dict[str, str]]] = []
        self.forms: list[dict[str, list[str]]] = []
        self.certificates: list[Any] = []
        self.good = ""
        """The only header Authorization that is not answered by 401; empty: any, and none."""
        self.page = b""
        """In place of an answer."""
        self.tokens: dict[str, Any] = {}
        """What the identity provider gives."""
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        if authority:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            authority.issue_cert("127.0.0.1", "api.test").configure_cert(context)
            authority.configure_trust(context)
            context.verify_mode = ssl.CERT_OPTIONAL
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self.url = f"{'https' if authority else 'http'}://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def headers(self, name: str) -> list[str | None]:
        return [headers.get(name) for _, headers in self.asked]

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        pretend = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                pretend.asked.append((self.path, dict(self.headers.items())))
                if isinstance(self.connection, ssl.SSLSocket):
                    pretend.certificates.append(self.connection.getpeercert())
                if self.path.endswith("/.well-known/openid-configuration"):
                    self._send(200, {"token_endpoint": f"{pretend.url}/token"})
                elif pretend.good and self.headers.get("Authorization") != pretend.good:
                    self._send(401, {"message": "Unauthorized"})
                else:
                    self._send(200, {"gitVersion": "v1"})

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"])).decode()
                pretend.forms.append(parse_qs(body))
                self._send(200 if pretend.tokens else 400, pretend.tokens or {"error": "invalid_grant"})

            def _send(self, status: int, answer: dict[str, Any]) -> None:
                data = pretend.page or json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, format: str, *args: object) -> None:
                pass

        return Handler


@pytest.fixture
def server() -> Iterator[Pretend]:
    server = Pretend()
    yield server
    server.stop()


@pytest.fixture
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def secure(authority: trustme.CA) -> Iterator[Pretend]:
    server = Pretend(authority)
    yield server
    server.stop()


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "KUBERNETES_SERVICE_HOST"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "config"))


Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """A kubeconfig of one context."""

    def write(cluster: dict[str, Any], user: dict[str, Any] | None, name: str = "config") -> Path:
        context = {"cluster": "c", "namespace": "mine"} | ({"user": "u"} if user is not None else {})
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "one",
            "contexts": [{"name": "one", "context": context}],
            "clusters": [{"name": "c", "cluster": cluster}],
            "users": [{"name": "u", "user": user or {}}],
        }
        file = tmp_path / name
        file.write_text(yaml.safe_dump(config))
        return file

    return write


def ask(cluster: Cluster) -> str:
    return str(cluster.request("GET", "/version", tries=1)["gitVersion"])


def refused() -> str:
    with pytest.raises(ExperimentError) as caught:
        connect()
    return str(caught.value)


def test_a_token_and_its_namespace(server: Pretend, write: Write) -> None:
    write({"server": f"{server.url}/"}, {"token": "abc"})
    cluster = connect()
    assert ask(cluster) == "v1"
    assert (cluster.address, cluster.namespace) == (server.url, "mine")
    assert server.headers("Authorization") == ["Bearer abc"]


def test_the_first_file_wins_as_with_kubectl(
    server: Pretend, write: Write, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    first, second = (
        write({"server": server.url}, {"token": "first"}),
        write({"server": "http://other"}, {"token": "b"}, "2"),
    )
    second.write_text(second.read_text().replace("current-context: one", "current-context: two"))
    monkeypatch.setenv("KUBECONFIG", f"{first}:{tmp_path / 'none'}:{second}")
    ask(connect())
    assert server.headers("Authorization") == ["Bearer first"]


def test_a_password_a_certificate_and_nothing(server: Pretend, write: Write) -> None:
    write({"server": server.url}, {"username": "ada", "password": "p:w"})
    ask(connect())
    write({"server": server.url}, {})
    ask(connect())
    write({"server": server.url}, None)
    ask(connect())
    assert server.headers("Authorization") == ["Basic " + base64.b64encode(b"ada:p:w").decode(), None, None]


def test_a_token_file_is_stripped_and_read_again(server: Pretend, write: Write, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("abc\n")
    write({"server": server.url}, {"tokenFile": "token", "token": "old"})
    cluster = connect()
    ask(cluster)
    (tmp_path / "token").write_text("def\n")
    ask(cluster)
    (tmp_path / "token").unlink()  # it is being replaced, perhaps
    ask(cluster)
    assert server.headers("Authorization") == ["Bearer abc", "Bearer def", "Bearer def"]
    assert "No such file" in refused()


def test_who_asks_as_another(server: Pretend, write: Write) -> None:
    user = {"token": "abc", "as": "ada", "as-uid": "7", "as-groups": ["a", "b"], "as-user-extra": {"scope": ["x"]}}
    write({"server": server.url}, user)
    ask(connect())
    (_, headers) = server.asked[0]
    assert (headers["Impersonate-User"], headers["Impersonate-Uid"], headers["Impersonate-Extra-scope"]) == (
        "ada",
        "7",
        "x",
    )
    assert "Impersonate-Group" in headers


def test_the_cluster_s_own_proxy(server: Pretend, write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    monkeypatch.setenv("NO_PROXY", "api.internal.example")
    write({"server": "http://api.internal.example", "proxy-url": server.url}, {"token": "abc"})
    ask(connect())
    assert server.asked[0][0] == "http://api.internal.example/version"
    write({"server": "http://api.internal.example", "proxy-url": "gopher://x"}, {"token": "abc"})
    assert "gopher://x: allowed: http://" in refused()


def test_https_goes_by_https_proxy_alone(
    secure: Pretend, authority: trustme.CA, write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    write({"server": secure.url, "certificate-authority": "ca.pem"}, {"token": "abc"})
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    assert ask(connect()) == "v1"
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:2")
    with pytest.raises(ApiError, match="its proxy: .*[Rr]efused"):
        ask(connect())


def test_certificates(secure: Pretend, authority: trustme.CA, write: Write, tmp_path: Path) -> None:
    write({"server": secure.url}, {})
    with pytest.raises(ApiError, match="CERTIFICATE_VERIFY_FAILED"):
        ask(connect())
    write({"server": secure.url, "insecure-skip-tls-verify": True}, {})
    assert ask(connect()) == "v1"
    ca = base64.b64encode(authority.cert_pem.bytes()).decode()
    write({"server": secure.url, "certificate-authority-data": ca, "tls-server-name": "other.test"}, {})
    with pytest.raises(ApiError, match="other.test"):
        ask(connect())
    one, two = authority.issue_cert("one@test"), authority.issue_cert("two@test")
    one.private_key_and_cert_chain_pem.write_to_path(tmp_path / "mine.pem")
    user = {"client-certificate": "mine.pem", "client-key": "mine.pem"}
    write({"server": secure.url, "certificate-authority-data": ca, "tls-server-name": "api.test"}, user)
    cluster = connect()
    ask(cluster)
    two.private_key_and_cert_chain_pem.write_to_path(tmp_path / "mine.pem")  # renewed while the run goes on
    ask(cluster)
    names = [dict(c["subjectAltName"]).get("email") for c in secure.certificates if c]
    assert names == ["one@test", "two@test"]
    write({"server": secure.url, "certificate-authority-data": ca}, {"client-certificate": "mine.pem"})
    assert "no client-key beside it" in refused()


@pytest.mark.parametrize(
    ("user", "words"),
    [
        ({"auth-provider": {"name": "azure"}}, "auth-provider azure of user 'u' is not supported"),
        ({"exec": {"apiVersion": V1, "command": "nowhere-to-be", "installHint": "ask\nada"}}, "is not there; ask\nada"),
        (
            {"exec": {"apiVersion": V1, "command": "sh", "args": ["-c", "echo log in >&2; exit 3"]}},
            "(exit code 3): log in",
        ),
        ({"exec": {"apiVersion": V1, "command": "true"}}, "printed no credentials"),
        ({"exec": {"apiVersion": V1, "command": "echo", "args": ["[]"]}}, "printed no credentials"),
        ({"exec": {"apiVersion": V1, "command": "true", "interactiveMode": "Always"}}, "there is no terminal here"),
        ({"exec": {"apiVersion": V1, "command": "./not-here"}}, "is not there"),
        ({"exec": {"command": "true"}}, "no 'apiVersion'"),
        (
            {"auth-provider": {"name": "oidc", "config": {"id-token": "x"}}},
            "no refresh-token can renew it: log in again",
        ),
        ({"client-certificate-data": "eA==", "client-key-data": "eA=="}, "not usable"),
        ({"client-certificate-data": "ö"}, "client-certificate-data is not Base64"),
        ("text", "is no mapping"),
    ],
)
def test_nobody_goes_on_as_nobody(secure: Pretend, write: Write, user: Any, words: str) -> None:
    write({"server": secure.url, "insecure-skip-tls-verify": True}, user)
    assert words in refused()
    assert not secure.asked


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("user: u", "user: v", "it has no user 'v'; one of: u"),
        ("cluster: c", "cluster: d", "it has no cluster 'd'; one of: c"),
        ("current-context: one", "current-context: two", "no context 'two' in the kubeconfig; one of: one"),
        ("current-context: one", "current-context: ''", "it has no current-context; --context takes one of: one"),
    ],
)
def test_names_that_lead_nowhere(server: Pretend, write: Write, old: str, new: str, words: str) -> None:
    file = write({"server": server.url}, {"token": "abc"})
    file.write_text(file.read_text().replace(old, new, 1))
    assert words in refused()


def plugin(tmp_path: Path, **status: Any) -> dict[str, Any]:
    """A plugin that prints a new token each time, and what it is told."""
    printed = json.dumps({"apiVersion": V1, "kind": "ExecCredential", "status": status}).replace("COUNT", "'$n'")
    script = (
        f'cd {tmp_path}; echo x >> runs; n=$(grep -c x runs); echo "$KUBERNETES_EXEC_INFO" > told; '
        f"[ -z \"$(cat fails 2>/dev/null)\" ] || {{ cat fails >&2; exit 1; }}; echo '{printed}'"
    )
    env = [{"name": "MINE", "value": "x"}]
    return {"exec": {"apiVersion": V1, "command": "sh", "args": ["-c", script], "env": env, "provideClusterInfo": True}}


def test_a_plugin_s_token_is_kept_until_the_server_refuses_it(server: Pretend, write: Write, tmp_path: Path) -> None:
    write(
        {
            "server": server.url,
            "extensions": [{"name": "client.authentication.k8s.io/exec", "extension": {"audience": "a"}}],
        },
        plugin(tmp_path, token="t-COUNT"),
    )
    cluster = connect()
    ask(cluster)
    ask(cluster)
    assert server.headers("Authorization") == ["Bearer t-1", "Bearer t-1"]
    told = json.loads((tmp_path / "told").read_text())["spec"]
    assert told == {"interactive": False, "cluster": {"server": server.url, "config": {"audience": "a"}}}
    server.good = "Bearer t-2"
    assert ask(cluster) == "v1"
    server.good = "Bearer t-9"
    with pytest.raises(ApiError, match="Unauthorized"):
        ask(cluster)
    assert (tmp_path / "runs").read_text().count("x") == 3


def test_a_plugin_is_asked_again_when_its_token_ends(server: Pretend, write: Write, tmp_path: Path) -> None:
    soon = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + 5))
    write({"server": server.url}, plugin(tmp_path, token="t-COUNT", expirationTimestamp=soon))
    cluster = connect()
    ask(cluster)
    ask(cluster)
    assert server.headers("Authorization")[-1] not in ("Bearer t-1", None), "less than its last ten seconds are left"


def test_a_login_that_ends_is_waited_for(
    server: Pretend, write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write({"server": server.url}, plugin(tmp_path, token="t-COUNT"))
    cluster = connect()
    server.good = "Bearer t-3"
    (tmp_path / "fails").write_text("session expired, please log in")
    for _ in range(3):
        with pytest.raises(ApiError, match="session expired, please log in") as caught:
            ask(cluster)
        assert caught.value.passing, "a run goes on asking"
    assert (tmp_path / "runs").read_text().count("x") == 2, "not once a call"
    monkeypatch.setattr(login, "FAILED_LOGIN_SECONDS", 0)
    (tmp_path / "fails").unlink()
    assert ask(cluster) == "v1"


def test_a_plugin_s_certificate(secure: Pretend, authority: trustme.CA, write: Write, tmp_path: Path) -> None:
    mine = authority.issue_cert("plugin@test")
    chain, key = mine.cert_chain_pems[0].bytes().decode(), mine.private_key_pem.bytes().decode()
    status = {"clientCertificateData": chain, "clientKeyData": key}
    (tmp_path / "answer").write_text(json.dumps({"apiVersion": V1, "kind": "ExecCredential", "status": status}))
    given = {"apiVersion": V1, "command": "cat", "args": [str(tmp_path / "answer")]}
    write({"server": secure.url, "insecure-skip-tls-verify": True}, {"exec": given})
    assert ask(connect()) == "v1"
    assert "plugin@test" in str(secure.certificates)


def jwt(seconds: float) -> str:
    claims = base64.urlsafe_b64encode(json.dumps({"exp": int(time.time() + seconds)}).encode()).decode().rstrip("=")
    return f"eyJhbGciOiJub25lIn0.{claims}.c2ln"


def test_an_expired_token_is_refreshed_and_kept(server: Pretend, write: Write, tmp_path: Path) -> None:
    new = jwt(3600)
    server.tokens = {"id_token": new, "refresh_token": "r2"}
    server.good = f"Bearer {new}"
    config = {
        "client-id": "kube",
        "client-secret": "s",
        "id-token": jwt(-1),
        "refresh-token": "r1",
        "idp-issuer-url": server.url,
    }
    file = write({"server": server.url}, {"auth-provider": {"name": "oidc", "config": config}})
    file.chmod(0o600)
    assert ask(connect()) == "v1"
    assert server.forms == [
        {
            k: [v]
            for k, v in {
                "grant_type": "refresh_token",
                "refresh_token": "r1",
                "client_id": "kube",
                "client_secret": "s",
            }.items()
        }
    ]
    (user,) = yaml.safe_load(file.read_text())["users"]
    kept = user["user"]["auth-provider"]["config"]
    assert (kept["id-token"], kept["refresh-token"], kept["client-id"]) == (new, "r2", "kube")
    assert file.stat().st_mode & 0o777 == 0o600
    assert [f.name for f in tmp_path.iterdir()] == ["config"]
    assert ask(connect()) == "v1"
    assert len(server.forms) == 1, "it is good for an hour"


def test_a_provider_that_refuses_is_told_in_its_words(server: Pretend, write: Write) -> None:
    config = {"client-id": "kube", "id-token": jwt(-1), "refresh-token": "r1", "idp-issuer-url": server.url}
    write({"server": server.url}, {"auth-provider": {"name": "oidc", "config": config}})
    assert "refuses (400): invalid_grant; log in again" in refused()
    write(
        {"server": server.url},
        {"auth-provider": {"name": "oidc", "config": config | {"idp-issuer-url": "http://127.0.0.1:1"}}},
    )
    assert "does not answer" in refused()


def test_a_provider_s_certificate_is_checked(
    secure: Pretend, authority: trustme.CA, write: Write, tmp_path: Path
) -> None:
    new = jwt(3600)
    secure.tokens = {"id_token": new}
    config = {"client-id": "kube", "id-token": jwt(-1), "refresh-token": "r1", "idp-issuer-url": secure.url}
    user = {"auth-provider": {"name": "oidc", "config": config}}
    write({"server": secure.url, "insecure-skip-tls-verify": True}, user)
    assert "CERTIFICATE_VERIFY_FAILED" in refused()
    authority.cert_pem.write_to_path(tmp_path / "idp.pem")
    config["idp-certificate-authority"] = "idp.pem"
    write({"server": secure.url, "insecure-skip-tls-verify": True}, user)
    ask(connect())
    assert secure.headers("Authorization")[-1] == f"Bearer {new}"


def test_in_a_pod(secure: Pretend, authority: trustme.CA, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config, "ACCOUNT", tmp_path)
    assert "no cluster" in refused()
    authority.cert_pem.write_to_path(tmp_path / "ca.crt")
    (tmp_path / "namespace").write_text("team\n")
    (tmp_path / "token").write_text("one\n")
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", secure.url.rpartition(":")[2])
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:1")
    cluster = connect()
    assert cluster.namespace == "team"
    ask(cluster)
    (tmp_path / "token").write_text("two\n")
    ask(cluster)
    assert secure.headers("Authorization") == ["Bearer one", "Bearer two"]
    with pytest.raises(ExperimentError, match="no kubeconfig, so no context 'x'"):
        connect("x")


def test_in_a_pod_nothing_of_the_official_client_is_loaded(tmp_path: Path, authority: trustme.CA) -> None:
    authority.cert_pem.write_to_path(tmp_path / "ca.crt")
    for name in ("token", "namespace"):
        (tmp_path / name).write_text("x")
    code = (
        "import sys, pathlib\nfrom expunge_controller.kube_client import config as kubeconfig\n"
        f"kubeconfig.ACCOUNT = pathlib.Path({str(tmp_path)!r})\nkubeconfig.connect()\n"
        "assert not [n for n in sys.modules if n.partition('.')[0] == 'kubernetes']\n"
    )
    environment = {"KUBERNETES_SERVICE_HOST": "127.0.0.1", "HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_who_logs_in_again_in_another_window_is_heard(server: Pretend, write: Write) -> None:
    write({"server": server.url}, {"token": "old"})
    cluster = connect()
    server.good = "Bearer new"
    with pytest.raises(ApiError, match="Unauthorized"):
        ask(cluster)
    write({"server": server.url}, {"token": "new"})
    assert ask(cluster) == "v1"
    server.good = "Bearer newest"
    write({"server": server.url}, "no mapping")  # while somebody writes it
    with pytest.raises(ApiError, match="Unauthorized"):
        ask(cluster)


def test_a_refresh_token_that_kubectl_has_used_is_read_anew(
    server: Pretend, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(login, "FAILED_LOGIN_SECONDS", 0)
    config = {"client-id": "kube", "id-token": jwt(12), "refresh-token": "r1", "idp-issuer-url": server.url}
    write({"server": server.url}, {"auth-provider": {"name": "oidc", "config": config}})
    cluster = connect()
    monkeypatch.setattr(login, "EXPIRY_MARGIN_SECONDS", 15.0)  # the token's last seconds have come
    with pytest.raises(ApiError, match="invalid_grant"):
        ask(cluster)
    new = jwt(3600)
    server.good = f"Bearer {new}"
    write({"server": server.url}, {"auth-provider": {"name": "oidc", "config": config | {"id-token": new}}})
    assert ask(cluster) == "v1"


def test_a_linked_kubeconfig_stays_a_link(server: Pretend, write: Write, tmp_path: Path) -> None:
    new = jwt(3600)
    server.tokens = {"id_token": new}
    config = {"client-id": "kube", "id-token": jwt(-1), "refresh-token": "r1", "idp-issuer-url": server.url}
    file = write({"server": server.url}, {"auth-provider": {"name": "oidc", "config": config}})
    (tmp_path / "real").mkdir()
    file.rename(tmp_path / "real" / "config")
    file.symlink_to("real/config")
    ask(connect())
    assert file.is_symlink()
    assert new in (tmp_path / "real" / "config").read_text()


@pytest.mark.parametrize("token", ["two\nlines", "ünïcode", "tab\there"])
def test_a_token_that_no_header_holds_is_told_to_nobody(
    server: Pretend, write: Write, tmp_path: Path, token: str
) -> None:
    (tmp_path / "token").write_text(token)
    write({"server": server.url}, {"tokenFile": "token"})
    said = refused()
    assert "holds characters that no header may hold" in said
    assert token not in said
    (tmp_path / "token").write_text("")
    assert "the token is empty" in refused()


def test_a_token_file_that_is_empty_for_a_moment(server: Pretend, write: Write, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("abc")
    write({"server": server.url}, {"tokenFile": "token"})
    cluster = connect()
    (tmp_path / "token").write_text("")
    ask(cluster)
    assert server.headers("Authorization") == ["Bearer abc"]


def test_a_page_in_place_of_an_answer(server: Pretend, write: Write) -> None:
    server.page = b"<html>please sign in</html>"
    write({"server": server.url}, {"token": "abc"})
    with pytest.raises(ApiError, match="its answer is no JSON") as caught:
        ask(connect())
    assert caught.value.passing


def test_an_answer_that_is_too_deep_is_an_error_and_of_a_list_one_object(server: Pretend, write: Write) -> None:
    write({"server": server.url}, {"token": "abc"})
    cluster = connect()
    server.page = b"[" * 100_000 + b"]" * 100_000
    with pytest.raises(ApiError, match="/version is nested too deep to be read"):
        ask(cluster)
