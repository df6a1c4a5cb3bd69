"""The credentials for a cluster, renewed while a run lasts.

The credentials are those of a kubeconfig's user, or of a pod's service account.

The official client loads a user once, and goes on without credentials if a login plugin fails. The client also asks
an identity provider without checking the provider's certificate. Therefore this module reads users itself, as kubectl
does.

Every failure is an ``ApiError`` that may pass: the user may log in again in another window, and the run goes on.
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

POOL_CONNECTIONS = 32
"""Connections that are kept for the next call. Each worker and each watch of the operator has one."""
EXPIRY_MARGIN_SECONDS = 10.0
"""Seconds before its end at which a token counts as expired, because the call has yet to arrive."""
FAILED_LOGIN_SECONDS = 10.0
"""Delay before the retry of a failed login. Without the delay, every call would start the plugin again."""
PLUGIN_SECONDS = 120.0
"""Timeout of a plugin that asks the user nothing."""


@dataclass(frozen=True)
class Server:
    """The address of an API server, and the proof of the server's identity.

    ``ca`` holds certificates as PEM. If ``ca`` is None, the system's certificates count.
    """

    address: str
    ca: str | None = None
    insecure: bool = False
    name: str | None = None
    """The name in the server's certificate, if different from the address."""
    proxy: str | None = None
    """None stands for the environment's proxy, and an empty text for no proxy at all."""


@dataclass(frozen=True)
class Credential:
    """The credentials of a call.

    ``header`` is the Authorization header. ``certificate`` is a client's certificate with its key, as PEM.
    """

    header: str = ""
    certificate: tuple[str, str] | None = None
    until: float = float("inf")
    """Time of expiry, in seconds since 1970."""


class Source(Protocol):
    """A source of credentials.

    Several threads call it, one at a time.
    """

    def read(self, before: Credential | None) -> Credential:
        """Return fresh credentials.

        ``before`` holds the last credentials.

        Raises:
            ApiError, OSError, ValueError: in words.
        """
        ...

    @property
    def keeps(self) -> bool:
        """Whether credentials may be kept until their end.

        Credentials are kept if reading them costs more than a look into a file.
        """
        ...


class Login:
    """A server with the credentials for it.

    The login has the connections and headers for the next call.
    """

    def __init__(
        self,
        server: Server,
        source: Source,
        extra: Iterable[tuple[str, str]] = (),
        again: Callable[[], Source | None] = lambda: None,
    ) -> None:
        self.server, self.source, self.extra = server, source, tuple(extra)
        self._again = again
        """Reads the kubeconfig again, because the user may have logged in meanwhile. None keeps the last source."""
        self._lock = threading.Lock()
        self._now: Credential | None = None
        self._good = False
        """Whether the last credentials count until their end, without being read again."""
        self._pool: tuple[tuple[str, str] | None, PoolManager] | None = None
        self._failed: tuple[float, ApiError] | None = None

    def authorization(self) -> str:
        """Return the Authorization header for the next call.

        The header is empty if a certificate, or nothing, identifies the caller.

        Raises:
            ApiError: there are no credentials just now, in words.
        """
        return self._credential().header

    def connections(self) -> PoolManager:
        """Return the connection pool of the present credentials."""
        certificate = self._credential().certificate
        with self._lock:
            if self._pool is None or self._pool[0] != certificate:
                self._pool = certificate, _pool(self.server, certificate)
            return self._pool[1]

    def renew(self, refused: str) -> bool:
        """Read the credentials again after the server refused a header.

        Returns whether the header has changed.
        """
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
    """The credentials in a kubeconfig, or in files that the kubeconfig names.

    A pod's own token is replaced every hour, and the next call must have the new token. Therefore the files are read
    for each call.
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
        """Return the present credentials, or the last ones if a file is gone."""
        try:
            header = _bearer(self.token()) if self.token else ""
            certificate = self.certificate() if self.certificate else None
        except (OSError, ValueError):
            if before is not None:
                # The file is being replaced, or the server will refuse the last credentials; therefore return them.
                return before
            raise
        if self.basic:
            header = "Basic " + base64.b64encode(":".join(self.basic).encode()).decode()
        return Credential(header, certificate)


@dataclass(frozen=True)
class Plugin:
    """A program that prints credentials.

    The protocol is client.authentication.k8s.io. The kubeconfig names the program in ``users[].user.exec``.
    """

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
        """Run the plugin, and return the credentials that it prints.

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
    """An identity provider's token, refreshed when it has expired.

    The kubeconfig's field is ``auth-provider: {name: oidc}``, and ``settings`` are the kubeconfig's own. A provider
    may accept a refresh token only once. Therefore ``keep`` writes the new tokens into the kubeconfig.
    """

    user: str
    settings: dict[str, str]
    keep: Callable[[dict[str, str]], None]
    keeps: bool = True

    def read(self, before: Credential | None) -> Credential:
        """Return the kubeconfig's token, or a new token if necessary.

        A new token is necessary if the kubeconfig's token has expired or was refused.

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
    """Return the header for a token.

    The errors do not contain the token.
    """
    token = token.strip()
    if not token:
        raise ValueError("the token is empty")
    if not re.fullmatch(r"[\x21-\x7e]+", token):
        raise ValueError("the token holds characters that no header may hold")
    return f"Bearer {token}"


def _expiry(token: str) -> float:
    """Return the time at which a token expires (RFC 7519, ``exp``).

    For a text that is no such token, the time is 0.
    """
    try:
        claims = token.split(".")[1]
        return float(json.loads(base64.urlsafe_b64decode(claims + "=" * (-len(claims) % 4)))["exp"])
    except (ValueError, KeyError, IndexError, TypeError):
        return 0.0


def _pool(server: Server, certificate: tuple[str, str] | None) -> PoolManager:
    options: dict[str, Any] = {"maxsize": POOL_CONNECTIONS, "retries": False}
    if server.address.startswith("https:"):
        import urllib3
        from urllib3.util.ssl_ import create_urllib3_context

        context = create_urllib3_context()
        # The CAs of clusters lack fields that Python 3.13 requires and Go does not; therefore clear the strict flag.
        context.verify_flags &= ~ssl.VERIFY_X509_STRICT
        if server.insecure:
            # The kubeconfig asks for this; therefore a warning at each call would tell nothing new.
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
    """Load a client's certificate into the context.

    Python reads a certificate from a file alone. Therefore the certificate is written to a temporary file.
    """
    with tempfile.NamedTemporaryFile("w", suffix=".pem") as file:  # readable by its owner alone
        file.write("\n".join(certificate))
        file.flush()
        try:
            context.load_cert_chain(file.name)
        except ssl.SSLError as error:
            raise ApiError(
                0, f"the login: the client's certificate or its key is not usable ({error.reason})"
            ) from None
