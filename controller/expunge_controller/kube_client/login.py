"""As whom a cluster is asked: what a kubeconfig's user or a pod's service account stands for, renewed while a run lasts.

The official client loads a user once, goes on as nobody where a login plugin fails, and asks an identity provider without
checking its certificate. So users are read here, as kubectl reads them. Whatever fails is an ``ApiError`` that may pass: the
user may log in again in another window, and the run goes on.
"""

from __future__ import annotations

import base64
import json
import os
import re
import ssl
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import urlencode

from expunge_jobs.core.proxies import connections

from expunge_controller.kube_client.client import ApiError

if TYPE_CHECKING:
    from urllib3 import PoolManager

POOL = 32
"""Connections that are kept for the next call: the operator's workers and watches have one each."""
EXPIRY_MARGIN_SECONDS = 10.0
"""Seconds before its end at which a token counts as expired: the call has yet to arrive."""
FAILED_LOGIN_SECONDS = 10.0
"""Seconds for which a failed login is not tried again: every call would start the plugin anew."""
PLUGIN_SECONDS = 120.0
"""For a plugin that asks the user nothing."""


@dataclass(frozen=True)
class Server:
    """Where an API server is, and how to know that it is the right one. ``ca``: certificates as PEM; None: the system's."""

    address: str
    ca: str | None = None
    insecure: bool = False
    name: str | None = None
    """The name in its certificate, where it is not the address's."""
    proxy: str | None = None
    """None: the environment's. Empty: none at all."""


@dataclass(frozen=True)
class Credential:
    """What a call carries: the header Authorization, and a client's certificate with its key, as PEM."""

    header: str = ""
    certificate: tuple[str, str] | None = None
    until: float = float("inf")
    """The end of its life, in seconds since 1970."""


class Source(Protocol):
    """Where credentials come from. Calls come from several threads, one at a time."""

    def read(self, before: Credential | None) -> Credential:
        """Return fresh ones. ``before``: those that were had last. Raises ApiError, OSError or ValueError, in words."""
        ...

    @property
    def keeps(self) -> bool:
        """Whether what was read may be kept until its end: reading costs more than a look into a file."""
        ...


class Login:
    """A server with credentials for it: connections and headers for the next call."""

    def __init__(
        self,
        server: Server,
        source: Source,
        extra: Iterable[tuple[str, str]] = (),
        again: Callable[[], Source | None] = lambda: None,
    ) -> None:
        self.server, self.source, self.extra = server, source, tuple(extra)
        self._again = again
        """Reads the kubeconfig once more: somebody may have logged in meanwhile. None: as it was."""
        self._lock = threading.Lock()
        self._now: Credential | None = None
        self._good = False
        """What was read last need not be read again before its end."""
        self._pool: tuple[tuple[str, str] | None, PoolManager] | None = None
        self._failed: tuple[float, ApiError] | None = None

    def authorization(self) -> str:
        """Return the header of that name for the next call; empty where a certificate, or nothing, says who asks.

        Raises:
            ApiError: there are no credentials just now, in words.
        """
        return self._credential().header

    def connections(self) -> PoolManager:
        """Return the pool of connections that belongs to the present credentials."""
        certificate = self._credential().certificate
        with self._lock:
            if self._pool is None or self._pool[0] != certificate:
                self._pool = certificate, _pool(self.server, certificate)
            return self._pool[1]

    def renew(self, refused: str) -> bool:
        """Read the credentials anew after the server refused a header; return whether there is another one now."""
        with self._lock:
            if self._now is not None and self._now.header == refused:
                self._good, self.source = False, self._again() or self.source
        return self._credential().header != refused

    def _credential(self) -> Credential:
        with self._lock:
            now = self._now
            if now is not None and self._good and time.time() < now.until - EXPIRY_MARGIN_SECONDS:
                return now
            if self._failed and time.monotonic() < self._failed[0] + FAILED_LOGIN_SECONDS:
                raise self._failed[1]
            try:
                if self._failed:
                    self.source = self._again() or self.source
                now = self._now = self.source.read(now)
            except (ApiError, OSError, ValueError) as error:
                said = error if isinstance(error, ApiError) else ApiError(0, f"the login: {error}")
                self._failed = time.monotonic(), said
                raise said from None
            self._good, self._failed = self.source.keeps, None
            return now


class Files:
    """Credentials as they stand in a kubeconfig, or in files that it names.

    Files are read for each call: a pod's own token is replaced every hour, and the next call is to have the new one.
    """

    keeps = False

    def __init__(
        self,
        token: Callable[[], str] | None = None,
        certificate: Callable[[], tuple[str, str]] | None = None,
        basic: tuple[str, str] | None = None,
    ) -> None:
        self.token, self.certificate, self.basic = token, certificate, basic

    def read(self, before: Credential | None) -> Credential:
        """Return what is there now; where a file is gone, what was there last."""
        try:
            header = _bearer(self.token()) if self.token else ""
            certificate = self.certificate() if self.certificate else None
        except (OSError, ValueError):
            if before is not None:
                return before  # it is being replaced, or the server will say that it is no longer good
            raise
        if self.basic:
            header = "Basic " + base64.b64encode(":".join(self.basic).encode()).decode()
        return Credential(header, certificate)


@dataclass(frozen=True)
class Plugin:
    """A program that prints credentials (client.authentication.k8s.io, as ``users[].user.exec`` names it)."""

    user: str
    command: str
    api: str
    args: Sequence[str] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    hint: str = ""
    mode: str = "IfAvailable"
    folder: Path = Path()
    cluster: Mapping[str, Any] | None = None
    keeps: bool = True

    def read(self, before: Credential | None) -> Credential:
        """Run it.

        Raises:
            ApiError: it is not there, it failed, or it printed something else; in its own words.
        """
        named = f"the login plugin '{self.command}' of user '{self.user}'"
        interactive = self.mode != "Never" and sys.stdin is not None and sys.stdin.isatty()
        if self.mode == "Always" and not interactive:
            raise ApiError(0, f"{named} asks the user, and there is no terminal here")
        spec: dict[str, Any] = {"interactive": interactive} | ({"cluster": self.cluster} if self.cluster else {})
        info = {"apiVersion": self.api, "kind": "ExecCredential", "spec": spec}
        program = self.command
        if "/" in program:
            program = str(self.folder / program)
        try:
            done = subprocess.run(
                [program, *self.args],
                env=os.environ | dict(self.env) | {"KUBERNETES_EXEC_INFO": json.dumps(info)},
                stdin=None if interactive else subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=None if interactive else subprocess.PIPE,
                timeout=None if interactive else PLUGIN_SECONDS,
                check=False,
            )
        except FileNotFoundError:
            raise ApiError(0, f"{named} is not there" + (f"; {self.hint}" if self.hint else "")) from None
        except subprocess.TimeoutExpired:
            raise ApiError(0, f"{named} did not end within {PLUGIN_SECONDS:.0f} s") from None
        except OSError as error:
            raise ApiError(0, f"{named} cannot be run: {error.strerror}") from None
        if done.returncode:
            said = " ".join((done.stderr or b"").decode(errors="replace").split())
            raise ApiError(0, f"{named} failed (exit code {done.returncode}){': ' if said else ''}{said[-500:]}")
        return self._parsed(done.stdout, named)

    def _parsed(self, printed: bytes, named: str) -> Credential:
        try:
            answer = json.loads(printed)
            status = answer["status"]
            token, end = status.get("token"), status.get("expirationTimestamp")
            chain, key = status.get("clientCertificateData"), status.get("clientKeyData")
            until = datetime.fromisoformat(end).timestamp() if end else float("inf")
        except (ValueError, KeyError, TypeError, AttributeError):
            raise ApiError(0, f"{named} printed no credentials") from None
        if answer.get("apiVersion") != self.api:
            raise ApiError(0, f"{named} answers for {answer.get('apiVersion')}; the kubeconfig says {self.api}")
        if not token and not (chain and key):
            raise ApiError(0, f"{named} printed neither a token nor a certificate with its key")
        return Credential(_bearer(str(token)) if token else "", (chain, key) if chain and key else None, until)


@dataclass
class Oidc:
    """An identity provider's token, refreshed when it has expired (``auth-provider: {name: oidc}``).

    ``settings`` are the kubeconfig's own; ``keep`` writes the new tokens into them, since a provider may take a refresh token
    only once.
    """

    user: str
    settings: dict[str, str]
    keep: Callable[[dict[str, str]], None]
    keeps: bool = True

    def read(self, before: Credential | None) -> Credential:
        """Return the token of the kubeconfig, or a new one where it has expired or was refused.

        Raises:
            ApiError: it cannot be refreshed, in words.
        """
        token = self.settings.get("id-token", "")
        known = before is not None and before.header == f"Bearer {token}"
        if known or time.time() > _expiry(token) - EXPIRY_MARGIN_SECONDS:
            token = self._refreshed()
        return Credential(_bearer(token), until=_expiry(token))

    def _refreshed(self) -> str:
        issuer, refresh = self.settings.get("idp-issuer-url", "").rstrip("/"), self.settings.get("refresh-token", "")
        named = f"the token of user '{self.user}' has expired, and the provider {issuer}"
        if not issuer or not refresh:
            raise ApiError(
                0, f"the token of user '{self.user}' has expired, and no refresh-token can renew it: log in again"
            )
        endpoint = self._ask(f"{issuer}/.well-known/openid-configuration", named).get("token_endpoint")
        if not isinstance(endpoint, str):
            raise ApiError(0, f"{named} names no token_endpoint")
        form = {
            "grant_type": "refresh_token",
            "refresh_token": refresh,
            "client_id": self.settings.get("client-id", ""),
        }
        if secret := self.settings.get("client-secret"):
            form["client_secret"] = secret
        answer = self._ask(endpoint, named, form)
        token = answer.get("id_token")
        if not isinstance(token, str):
            raise ApiError(0, f"{named} gives no id_token")
        self.settings["id-token"] = token
        if isinstance(new := answer.get("refresh_token"), str):
            self.settings["refresh-token"] = new
        self.keep(self.settings)
        return token

    def _ask(self, url: str, named: str, form: dict[str, str] | None = None) -> dict[str, Any]:
        from urllib3.exceptions import HTTPError

        data, file = self.settings.get("idp-certificate-authority-data"), self.settings.get("idp-certificate-authority")
        ca = base64.b64decode(data).decode() if data else Path(file).read_text() if file else None
        pool = _pool(Server(url, ca), None)
        try:
            method, body = ("GET", None) if form is None else ("POST", urlencode(form))
            kind = {"Accept": "application/json"} | (
                {"Content-Type": "application/x-www-form-urlencoded"} if body else {}
            )
            answer = pool.request(method, url, body=body, headers=kind, timeout=20.0, redirect=False, retries=2)
        except (HTTPError, OSError) as error:
            raise ApiError(0, f"{named} does not answer: {getattr(error, 'reason', None) or error}") from None
        if answer.status != 200:
            try:
                said = answer.json()
                words = ": ".join(str(said[k]) for k in ("error", "error_description") if k in said)
            except (ValueError, TypeError):
                words = ""
            raise ApiError(0, f"{named} refuses ({answer.status}){': ' if words else ''}{words}; log in again")
        try:
            found = answer.json()
        except ValueError:
            found = None
        return found if isinstance(found, dict) else {}


def _bearer(token: str) -> str:
    """Return the header for a token; its words are told to nobody."""
    token = token.strip()
    if not token:
        raise ValueError("the token is empty")
    if not re.fullmatch(r"[\x21-\x7e]+", token):
        raise ValueError("the token holds characters that no header may hold")
    return f"Bearer {token}"


def _expiry(token: str) -> float:
    """Return the end of a token's life (RFC 7519, ``exp``), or 0 for what is no such token."""
    try:
        claims = token.split(".")[1]
        return float(json.loads(base64.urlsafe_b64decode(claims + "=" * (-len(claims) % 4)))["exp"])
    except (ValueError, KeyError, IndexError, TypeError):
        return 0.0


def _pool(server: Server, certificate: tuple[str, str] | None) -> PoolManager:
    options: dict[str, Any] = {"maxsize": POOL, "retries": False}
    if server.address.startswith("https:"):
        import urllib3
        from urllib3.util.ssl_ import create_urllib3_context

        context = create_urllib3_context()
        context.verify_flags &= (
            ~ssl.VERIFY_X509_STRICT
        )  # clusters' own authorities lack what Python 3.13 asks for, as Go does not
        if server.insecure:  # which the kubeconfig says: a warning at each call would tell nothing new
            urllib3.disable_warnings(urllib3.exceptions.InsecureRequestWarning)
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
            options["cert_reqs"] = "CERT_NONE"
        elif server.ca is not None:
            context.load_verify_locations(cadata=server.ca)
        else:
            context.load_default_certs()
        if certificate:
            _load(context, certificate)
        if server.name:
            options["server_hostname"] = server.name
        options["ssl_context"] = context
    return connections(server.address, server.proxy, **options)


def _load(context: ssl.SSLContext, certificate: tuple[str, str]) -> None:
    """Give the context a client's certificate; Python reads one from a file alone."""
    with tempfile.NamedTemporaryFile("w", suffix=".pem") as file:  # readable by its owner
        file.write("\n".join(certificate))
        file.flush()
        try:
            context.load_cert_chain(file.name)
        except ssl.SSLError as error:
            raise ApiError(
                0, f"the login: the client's certificate or its key is not usable ({error.reason})"
            ) from None
