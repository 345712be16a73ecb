"""Chooses the proxy for the requests to a URL."""

from __future__ import annotations

import ipaddress
import os
from contextlib import suppress

from yarl import URL

from ..arguments import check_proxy, is_loopback
from ..errors import InvalidArgumentError


class Proxies:
    """The proxies of one session: the one that was passed, or the ones of the environment."""

    def __init__(self, proxy: str | None, *, environment: bool) -> None:
        """Read the environment, once.

        `proxy` is the URL of a proxy for everything, "" for no proxy, or None for the proxy of the
        environment. `environment` says whether the environment counts.
        """
        self._named = {} if proxy is None else {"https": ("proxy", proxy), "http": ("proxy", proxy)}
        self._without: list[str] = []
        if proxy is None and environment:
            self._named = {
                scheme: found
                for scheme in ("https", "http")
                if (found := _variable(f"{scheme}_proxy") or _variable("all_proxy"))
            }
            _, without = _variable("no_proxy") or ("", "")
            self._without = without.replace(",", " ").lower().split()

    def of(self, url: URL) -> URL | None:
        """Return the proxy for a URL; None if there is none.

        Raises InvalidArgumentError if the proxy is not supported.
        """
        named = self._named.get(url.scheme)
        host = (url.host or "").rstrip(".").lower()
        if named is None or is_loopback(host):
            return None
        if any(_covers(entry, host, url.port) for entry in self._without):
            return None
        try:
            return check_proxy(*named)
        except InvalidArgumentError as error:
            problem = str(error)
        # Outside of `except`, and without the variable: no frame of a traceback shows the password.
        del named
        raise InvalidArgumentError(problem)


def _variable(name: str) -> tuple[str, str] | None:
    """Return the name and the value of a variable. As with curl, lower case goes first."""
    for spelled in (name, name.upper()):
        if spelled == "HTTP_PROXY" and "REQUEST_METHOD" in os.environ:
            continue  # under CGI, this is a header of the incoming request
        if value := os.environ.get(spelled, "").strip():
            return spelled, value
    return None


def _covers(entry: str, host: str, port: int | None) -> bool:
    """Whether an entry of NO_PROXY covers a host."""
    if entry == "*":
        return True
    with suppress(ValueError):
        return ipaddress.ip_address(host) in ipaddress.ip_network(entry.strip("[]"), strict=False)
    name, colon, number = entry.rpartition(":")
    if colon and number.isdecimal():
        entry = name.strip("[]") if int(number) == port else ""
    entry = entry.removeprefix("*").lstrip(".")
    return bool(entry) and (host == entry or host.endswith(f".{entry}"))
