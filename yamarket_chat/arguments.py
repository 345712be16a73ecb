"""What a caller passes, checked before anything is sent or used up.

Each function returns the value that it was given, or raises InvalidArgumentError with a text that
says what is wanted.
"""

from __future__ import annotations

import ipaddress
import math
import os
from collections.abc import Iterable
from typing import Any, Literal, TypeVar

from yarl import URL

from .errors import InvalidArgumentError

_T = TypeVar("_T")

BASE_URL = "https://api.partner.market.yandex.ru"
LONGEST_TEXT = 4096
"""Characters of a message at most, as documented."""
LONGEST_INTEGRATION = 100
"""Characters that the Market takes in X-Market-Integration, as documented."""

Unknown = Literal["settle", "raise"]


def check_unknown(unknown: object) -> Unknown:
    """What may be done about an unknown outcome."""
    if unknown == "settle" or unknown == "raise":
        return unknown
    raise InvalidArgumentError('unknown is "settle" or "raise"')


def check_id(name: str, value: object) -> int:
    """An id as the API documents them: int64, at least 1."""
    # The texts do not show the value: arguments get swapped, and it may be the key.
    if type(value) is not int:
        raise InvalidArgumentError(f"{name} is an int, not {type(value).__name__}")
    if not 1 <= value < 2**63:
        raise InvalidArgumentError(f"{name} is a whole number of at least 1")
    return value


def check_text(text: object) -> str:
    """A text that the Market takes."""
    if not isinstance(text, str):
        raise InvalidArgumentError(f"the text is a str, not {type(text).__name__}")
    if len(text) > LONGEST_TEXT:
        raise InvalidArgumentError(
            f"the text has {len(text)} characters; the Market takes up to {LONGEST_TEXT}:"
            " send it as several messages"
        )
    if not text or text.isspace():
        raise InvalidArgumentError("the text is empty: the Market takes at least one character")
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            raise InvalidArgumentError(
                "the text has half of a surrogate pair, which no encoding can send"
            ) from None
    return text


def check_key(key: object) -> str:
    """A key that can stand in a header. None of the texts shows it."""
    if not key:
        raise InvalidArgumentError("api_key is missing: pass it or set YAMARKET_API_KEY")
    if not isinstance(key, str):
        raise InvalidArgumentError("api_key is a str; it comes first, and business_id second")
    if not (key.isascii() and key.isprintable()) or " " in key:
        raise InvalidArgumentError(
            "api_key cannot stand in a header: it has spaces, line breaks or letters that are not"
            " ASCII. A token looks like ACMA:…:…, without Bearer before it"
        )
    return key


def check_business(business_id: object) -> int | None:
    """A business id, or that of the environment, if there is one."""
    if business_id is None:
        text = os.environ.get("YAMARKET_BUSINESS_ID")
        if not text:
            return None
        try:
            business_id = int(text)
        except ValueError:
            raise InvalidArgumentError("YAMARKET_BUSINESS_ID is a whole number") from None
    return check_id("business_id", business_id)


def check_base_url(base_url: object, *, insecure_http: bool) -> str:
    """The address of the Market, or that of the environment."""
    name = "base_url"
    if base_url is None:
        name = "YAMARKET_BASE_URL"
        base_url = os.environ.get(name) or BASE_URL
    url = check_address(name, base_url, insecure_http=insecure_http)
    if url.query_string or url.fragment:
        raise InvalidArgumentError(f"{name} has a scheme, a host, and perhaps a port and a path")
    return str(url).rstrip("/")


def check_address(name: str, address: object, *, insecure_http: bool) -> URL:
    """An address to which what is secret may travel."""
    try:
        url = URL(address) if isinstance(address, str) else None
    except ValueError:
        url = None
    if url is None or not url.host or url.scheme not in ("http", "https"):
        raise InvalidArgumentError(f"{name} is an https address such as {BASE_URL}")
    if url.user or url.password:
        raise InvalidArgumentError(f"{name} has no user and no password in it")
    if url.scheme == "http" and not insecure_http and not _is_loopback(url.host):
        raise InvalidArgumentError(
            f"{name} is https, or what is secret would travel in the clear; for a sandbox on"
            " another host pass insecure_http=True"
        )
    return url


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def check_type(name: str, value: object, kind: type[_T]) -> _T:
    """Something of a type."""
    if not isinstance(value, kind):
        raise InvalidArgumentError(f"{name} is of type {kind.__name__}, not {type(value).__name__}")
    return value


def check_seconds(name: str, value: object, *, at_least_0: bool = False) -> float:
    """A finite number of seconds."""
    if (
        isinstance(value, bool)
        or not isinstance(value, (int, float))
        or not (0 < value < math.inf or (at_least_0 and value == 0))
    ):
        least = "0 or more" if at_least_0 else "above 0"
        raise InvalidArgumentError(f"{name} is a number of seconds, {least}")
    return float(value)


def distinct(name: str, values: Iterable[Any] | None, kind: type[_T]) -> list[_T]:
    """The values of a filter, each once, as the description wants them."""
    if values is None:
        return []
    if isinstance(values, (str, int)):
        raise InvalidArgumentError(f"{name} is a list, such as [{values!r}]")
    if not isinstance(values, Iterable):
        raise InvalidArgumentError(f"{name} is a list")
    return list(dict.fromkeys(check_type(f"each of {name}", value, kind) for value in values))


def check_max_wait(max_wait: object) -> float | None:
    """How long a call may wait, or None."""
    return None if max_wait is None else check_seconds("max_wait", max_wait, at_least_0=True)


def check_integration(integration: object) -> str:
    """A name and a version that the Market takes."""
    if (
        not isinstance(integration, str)
        or not 0 < len(integration) <= LONGEST_INTEGRATION
        or not (integration.isascii() and integration.isprintable())
    ):
        raise InvalidArgumentError(
            f'integration is "name/version" in ASCII, of at most {LONGEST_INTEGRATION} characters'
        )
    return integration
