"""Who may notify: the Market's networks, and the addresses that trusted proxies report."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from ipaddress import (
    IPv4Address,
    IPv4Network,
    IPv6Address,
    IPv6Network,
    ip_address,
    ip_network,
)

from ..errors import InvalidArgumentError

MARKET_NETWORKS: tuple[str, ...] = ("5.45.207.0/25", "141.8.142.0/25", "5.255.253.0/25")
"""The networks from which the Market sends, as documented for notifications in 2026."""

UNIX = "unix:"
"""In `trusted_proxies`, connections that have no address, such as those of a Unix socket."""

Address = IPv4Address | IPv6Address
Header = Callable[[str], Sequence[str]]
"""Returns the lines of a header, by its name in lower case."""


class Networks:
    """A set of networks."""

    def __init__(self, name: str, networks: Iterable[object]) -> None:
        self._networks = [_network(name, network) for network in networks]

    def __contains__(self, address: Address) -> bool:
        return any(address in network for network in self._networks)


def _listed(name: str, networks: object) -> list[object]:
    if isinstance(networks, (str, bytes)):
        raise InvalidArgumentError(f"{name} is a text; pass a list of networks")
    if not isinstance(networks, Iterable):
        raise InvalidArgumentError(f"{name} is a list of networks")
    return list(networks)


def _network(name: str, network: object) -> IPv4Network | IPv6Network:
    try:
        found = ip_network(str(network))
    except ValueError as error:
        raise InvalidArgumentError(
            f"{name}: {error}; pass networks such as 10.0.0.0/8 or addresses such as ::1"
        ) from None
    mapped = found.network_address.ipv4_mapped if isinstance(found, IPv6Network) else None
    if mapped is not None and found.prefixlen >= 96:
        return ip_network((mapped, found.prefixlen - 96))
    return found


class Gate:
    """Decides by its address whether a request is from the Market."""

    def __init__(self, networks: Iterable[object], trusted_proxies: Iterable[object]) -> None:
        proxies = _listed("trusted_proxies", trusted_proxies)
        self._networks = Networks("networks", _listed("networks", networks))
        self._trusts_unix = UNIX in proxies
        self._proxies = Networks("trusted_proxies", (p for p in proxies if p != UNIX))

    def stranger(self, remote: str | None, header: Header) -> str | None:
        """Return from whom a request is that is not let in, for the log; None if it is let in.

        `remote` is None if the connection has no address. A header counts only if the connection is
        a trusted proxy's. If both headers are there, both must name the Market: a proxy sets one of
        them, and passes the other one on as the client has sent it.
        """
        peer = address_of(remote) if remote else None
        if peer is None:
            if remote:
                return f"{remote!r:.60}, which is no address"
            if not self._trusts_unix:
                return (
                    "a connection without an address; if that is your own proxy's, pass"
                    f" {UNIX!r} in trusted_proxies"
                )
        elif peer not in self._proxies:
            if peer in self._networks:
                return None
            return (
                f"{peer}: not from the Market's networks; if that is your own proxy, pass it in"
                " trusted_proxies"
            )
        proxy = f"the trusted proxy {peer}" if peer else "a trusted proxy without an address"
        is_named = False
        for name, entries in _HEADERS.items():
            if not (lines := header(name)):  # the usual request has one of them
                continue
            is_named = True
            client, entry = self._client(entries(lines))
            if client is None:
                return f"{proxy}, whose {name.title()} has {entry!r:.60} instead of an address"
            if client not in self._networks:
                return (
                    f"{client}, as {proxy} says in {name.title()}: not from the Market's networks"
                )
        if is_named or (peer is not None and peer in self._networks):
            return None
        return f"{proxy}, which has sent neither {' nor '.join(map(str.title, _HEADERS))}"

    def _client(self, chain: Iterable[str]) -> tuple[Address | None, str]:
        """Return the first address from the right that is not a trusted proxy's, and its text."""
        client, entry = None, ""
        for entry in chain:
            client = address_of(entry)
            if client is None or client not in self._proxies:
                break
        return client, entry.strip()


def address_of(text: str) -> Address | None:
    """Return the address in a text such as 5.45.207.1, 5.45.207.1:443 or [::1]:443."""
    text = text.strip()
    if text.startswith("["):
        text, bracket, port = text[1:].partition("]")
        if not bracket or not _PORT.fullmatch(port):
            return None
    elif text.count(":") == 1:
        text, _, port = text.partition(":")
        if not _PORT.fullmatch(f":{port}"):
            return None
    try:
        address = ip_address(text)
    except ValueError:
        return None
    if isinstance(address, IPv6Address):
        if address.ipv4_mapped is not None:
            return address.ipv4_mapped
        if address.scope_id is not None:
            return IPv6Address(int(address))
    return address


_PORT = re.compile(r"(:[\w.-]{1,64})?", re.A)  # Forwarded allows names of ports


def _forwarded_for(lines: Sequence[str]) -> Iterator[str]:
    """Yield the entries of X-Forwarded-For from the right. Each proxy adds one there."""
    for line in reversed(lines):
        yield from reversed(line.split(","))


_NODE = re.compile(
    r"""\s*+(?P<name>[\w!#$%&'*+.^`|~-]++)=
    (?:"(?P<quoted>(?:[^"\\]|\\.)*+)"|(?P<token>[^\s",;=]*+))\s*+(?P<end>[;,]|$)""",
    re.X | re.A,
)


def _forwarded(lines: Sequence[str]) -> Iterator[str]:
    """Yield what the elements of Forwarded say of `for`, from the right (RFC 7239).

    If the header is not well-formed, the first entry is no address. A quote that a client has
    opened may hide what proxies have added.
    """
    elements = [""]
    text, position = ",".join(lines), 0
    while position < len(text):
        pair = _NODE.match(text, position)
        if pair is None:
            yield ""
            return
        if pair["name"].lower() == "for":
            if elements[-1]:
                yield ""
                return
            quoted = pair["quoted"]
            elements[-1] = pair["token"] if quoted is None else re.sub(r"\\(.)", r"\1", quoted)
        if pair["end"] == ",":
            elements.append("")
        position = pair.end()
    yield from reversed(elements)


_HEADERS: dict[str, Callable[[Sequence[str]], Iterator[str]]] = {
    "x-forwarded-for": _forwarded_for,
    "forwarded": _forwarded,
}
