"""Connections to HTTP servers through the proxies of the environment."""

from __future__ import annotations

import contextlib
import importlib.util
import ipaddress
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit
from urllib.request import getproxies_environment

from expunge_jobs.core.errors import BadTask

if TYPE_CHECKING:
    from urllib3 import PoolManager


def proxy_for(url: str) -> str | None:
    """Return the proxy for a URL, or None for a direct connection.

    HTTPS_PROXY applies to https and HTTP_PROXY to http, as in curl, Go and kubectl. NO_PROXY lists hosts, domains and
    networks (10.0.0.0/8). The SDKs of Kubernetes and S3 each support only a part of that.
    """
    parts, proxies = urlsplit(url), getproxies_environment()
    exempt = (e.strip().lower() for e in proxies.get("no", "").split(","))
    if not parts.hostname or any(_covers(e, parts.hostname, parts.port) for e in exempt if e):
        return None
    return proxies.get(parts.scheme) or None


def connections(url: str, proxy: str | None = None, **options: Any) -> PoolManager:
    """Return a pool of connections to the server of ``url``.

    ``proxy`` overrides the environment. An empty ``proxy`` means a direct connection. ``options`` are urllib3's.

    Raises:
        BadTask: a proxy of an unsupported kind.
    """
    import urllib3

    if proxy is None:
        proxy = proxy_for(url)
    if not proxy:
        return urllib3.PoolManager(**options)
    if "://" not in proxy:
        proxy = f"http://{proxy}"
    if proxy.startswith("socks"):
        if importlib.util.find_spec("socks") is None:
            raise BadTask(f"the proxy {_shown(proxy)}: SOCKS needs the package PySocks")
        from urllib3.contrib.socks import SOCKSProxyManager

        if proxy.startswith("socks5://"):  # the proxy resolves host names, as with kubectl
            proxy = proxy.replace("socks5://", "socks5h://", 1)
        return SOCKSProxyManager(proxy, **options)
    if not proxy.startswith(("http://", "https://")):
        raise BadTask(f"the proxy {_shown(proxy)}: allowed: http://, https://, socks5://, socks5h://")
    try:
        parts = urlsplit(proxy)
        login = None
        if parts.username:
            login = urllib3.make_headers(proxy_basic_auth=unquote(f"{parts.username}:{parts.password or ''}"))
        return urllib3.ProxyManager(proxy, proxy_headers=login, **options)
    except (urllib3.exceptions.HTTPError, ValueError):  # the message contains the password; therefore drop it
        said = "in a password, what an address cannot hold is written as %23"
        raise BadTask(f"the proxy {_shown(proxy)} is no address; {said}") from None


def _covers(entry: str, host: str, port: int | None) -> bool:
    """Return whether an entry of NO_PROXY covers a host.

    An entry is ``*``, a network, or a name. A name covers its subdomains and may have a port.
    """
    if entry == "*":
        return True
    with contextlib.suppress(ValueError):  # the host or the entry is a name
        return ipaddress.ip_address(host) in ipaddress.ip_network(entry, strict=False)
    entry = entry.replace("[", "").replace("]", "") if entry.count(":") > 1 else entry
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host) == ipaddress.ip_address(entry)
    name, colon, wanted = entry.rpartition(":") if entry.count(":") == 1 else (entry, "", "")
    if colon and wanted != str(port):
        return False
    name = name.removeprefix("*").removeprefix(".")
    return host == name or host.endswith(f".{name}")


def _shown(proxy: str) -> str:
    """Return the proxy's address without a user and password."""
    scheme, _, rest = proxy.partition("://")
    return f"{scheme}://{rest.rpartition('@')[2]}"
