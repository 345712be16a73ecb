"""Checks of the arguments of public methods, made before anything is sent or used up.

Each function returns the checked value, or raises InvalidArgumentError with a text that says what
is expected.
"""

from __future__ import annotations

import inspect
import ipaddress
import math
import os
from collections.abc import Iterable
from contextlib import suppress
from datetime import datetime
from json import dumps
from pathlib import Path
from typing import Any, Literal, TypeVar

import msgspec
from msgspec import UNSET, UnsetType
from yarl import URL

from .errors import InvalidArgumentError
from .models import File
from .pending import Pending
from .version import __version__

_T = TypeVar("_T")

BASE_URL = "https://api.partner.market.yandex.ru"
LONGEST_TEXT = 4096
"""The most characters of a message, as documented."""
LONGEST_INTEGRATION = 100
"""The most characters of X-Market-Integration, as documented."""
LARGEST_DOWNLOAD = 64 * 2**20
"""The most bytes of a download, unless the caller passes another maximum."""
LARGEST_BODY = 512 * 1024
"""The most bytes of a request without a file, as documented."""
LONGEST_ID = 19
"""The most digits of an int64."""

INTEGRATION = f"yamarket-chat/{__version__}"

OnUnknown = Literal["settle", "raise"]
Wait = float | UnsetType | None
"""A `max_wait`: seconds, None for as long as needed, or "default" if the caller passed none."""


def check_on_unknown(on_unknown: object) -> OnUnknown | None:
    """Check what to do about an unknown outcome; None if the caller passed nothing."""
    if on_unknown is None or on_unknown == "settle" or on_unknown == "raise":
        return on_unknown
    raise InvalidArgumentError('on_unknown is "settle" or "raise"')


def check_id(name: str, value: object) -> int:
    """Check an id: an int64 of at least 1, or a decimal string, as notifications carry ids."""
    if type(value) is int:
        number = value
    elif isinstance(value, str) and value.isascii() and value.isdecimal():
        number = int(value) if len(value) <= LONGEST_ID else 0
    else:
        # The texts do not show the value, because it is the key if the arguments were swapped.
        raise InvalidArgumentError(
            f"{name} is an int or a decimal string, not "
            + ("another string" if isinstance(value, str) else type(value).__name__)
        )
    if not is_id(number):
        raise InvalidArgumentError(f"{name} is a whole number from 1 to 2**63 - 1")
    return number


def is_id(value: object) -> bool:
    """Whether a value is an int64 of at least 1."""
    return type(value) is int and 1 <= value < 2**63


def check_text(text: object) -> str:
    """Check the text of a message."""
    if not isinstance(text, str):
        raise InvalidArgumentError(f"the text is a str, not {type(text).__name__}")
    if len(text) > LONGEST_TEXT:
        raise InvalidArgumentError(
            f"the text has {len(text)} characters, and the Market accepts {LONGEST_TEXT}: split"
            " it into several messages"
        )
    if not text or text.isspace():
        raise InvalidArgumentError("the text is empty: the Market needs at least one character")
    if not text.isascii():
        check_encodable("the text", text)
    return text if type(text) is str else exact(text)


def check_encodable(what: str, text: str) -> None:
    """Check that a text can be encoded: it has no surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        # So Python marks a byte of an argument or a variable that it cannot decode.
        if "\udc80" <= text[error.start] <= "\udcff":
            problem = (
                f"{what} has bytes that could not be decoded, or half of a surrogate pair: if it is"
                " from the command line or the environment, set LC_ALL=C.UTF-8"
            )
        else:
            problem = f"{what} has half of a surrogate pair, which cannot be encoded"
        raise InvalidArgumentError(problem) from None


def exact(text: str) -> str:
    """Return a text as a plain `str`. Subclasses, as of template engines, cannot become JSON."""
    return str.__str__(text)


def check_key(key: object) -> str:
    """Check that a key can be sent in a header. No text shows the key.

    The default is that of the environment, but only for None: an empty one is a mistake, and the
    key of the environment may be another shop's.
    """
    if key is None:
        key = os.environ.get("YAMARKET_API_KEY", "")
        if not key.strip():
            raise InvalidArgumentError("api_key is missing: pass it or set YAMARKET_API_KEY")
    if not isinstance(key, str):
        raise InvalidArgumentError("api_key is a str: pass api_key first and business_id second")
    if not key or key.isspace():
        raise InvalidArgumentError(
            "api_key is empty: pass the key, or none at all to take that of YAMARKET_API_KEY"
        )
    if not (key.isascii() and key.isprintable()) or " " in key:
        raise InvalidArgumentError(
            "api_key cannot be sent in a header: it has spaces, line breaks or letters that are not"
            " ASCII. A key looks like ACMA:…:…, without Bearer before it"
        )
    _check_quotes("api_key", key)
    return key


def _check_quotes(name: str, text: object) -> None:
    if isinstance(text, str) and ("'" in text or '"' in text):
        raise InvalidArgumentError(
            f"{name} has a quote in it: remove the quotes, which docker --env-file keeps"
        )


def check_business(business_id: object) -> int | None:
    """Check a business id. The default is that of the environment, if there is one."""
    name = "business_id"
    if business_id is None:
        name = "YAMARKET_BUSINESS_ID"
        business_id = os.environ.get(name, "").strip() or None
    _check_quotes(name, business_id)
    return None if business_id is None else check_id(name, business_id)


def check_base_url(base_url: object, *, insecure_http: bool) -> str:
    """Check the base URL of the Market. The default is that of the environment."""
    name = "base_url"
    if base_url is None:
        name = "YAMARKET_BASE_URL"
        base_url = os.environ.get(name) or BASE_URL
    url = check_address(name, base_url, insecure_http=insecure_http)
    if url.query_string or url.fragment:
        raise InvalidArgumentError(f"{name} has a query or a fragment: pass the address without it")
    return str(url).rstrip("/")


def check_address(name: str, address: object, *, insecure_http: bool) -> URL:
    """Check that a secret may be sent to an address."""
    try:
        url = URL(address) if isinstance(address, str) else None
        host = None if url is None else url.host
    except (ValueError, IndexError):  # a name that IDNA cannot decode; "https://[]@"
        url = host = None
    if url is None or not host or url.scheme not in ("http", "https") or " " in host:
        raise InvalidArgumentError(f"{name} is an https address such as {BASE_URL}")
    if url.user or url.password:
        raise InvalidArgumentError(f"{name} contains a user or a password: remove it")
    if url.scheme == "http" and not insecure_http and not is_loopback(host):
        raise InvalidArgumentError(
            f"{name} must be https, or the key would be sent unencrypted. For a sandbox on another"
            " host pass insecure_http=True"
        )
    return url


def check_proxy(name: str, proxy: object) -> URL | None:
    """Check the address of a proxy; None if it is empty. No text shows it, or its password."""
    if proxy == "":
        return None
    text = proxy if isinstance(proxy, str) else ""
    try:
        url = URL(text if "://" in text else f"http://{text}")  # it is optional, as with curl
        host, port = url.host, url.port
    except (ValueError, IndexError):  # as above
        url, host, port = URL(), None, None
    if url.scheme.startswith("socks"):
        raise InvalidArgumentError(
            f"{name} is a SOCKS proxy, and only HTTP proxies are supported: pass proxy= with an"
            ' address such as http://user:password@proxy:3128, proxy="" for none, or http= with a'
            " connector for SOCKS"
        )
    if url.scheme not in ("http", "https") or not host or not port or " " in host:
        raise InvalidArgumentError(
            f"{name} is the address of an HTTP proxy, such as http://user:password@proxy:3128"
        )
    return url


def is_loopback(host: str) -> bool:
    """Whether a host is this machine."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def check_type(name: str, value: object, kind: type[_T]) -> _T:
    """Check a type."""
    if not isinstance(value, kind):
        raise InvalidArgumentError(f"{name} is of type {kind.__name__}, not {type(value).__name__}")
    return value


def check_async(name: str, function: object) -> None:
    """Check that a function may be async. Not all that are async can be known by looking at it."""
    if (
        not callable(function)
        or inspect.isasyncgenfunction(function)
        or inspect.isgeneratorfunction(function)
    ):
        raise InvalidArgumentError(f"{name} is an async function: write `async def` and no `yield`")


def check_seconds(
    name: str, value: object, *, at_least_0: bool = False, at_most: float = math.inf
) -> float:
    """Check a finite number of seconds."""
    seconds = math.nan
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        with suppress(OverflowError):
            seconds = float(value)
    if not (0 < seconds < math.inf or (at_least_0 and seconds == 0)):
        least = "0 or more" if at_least_0 else "above 0"
        raise InvalidArgumentError(f"{name} is a number of seconds, {least}")
    if seconds > at_most:
        raise InvalidArgumentError(f"{name} is a number of seconds, {at_most:g} at most")
    return seconds


def chat_filters(
    statuses: Iterable[Any] | None,
    types: Iterable[Any] | None,
    context_types: Iterable[Any] | None,
    order_ids: Iterable[Any] | None,
    return_ids: Iterable[Any] | None,
) -> dict[str, list[Any]]:
    """Check the filters of a list of chats; return the body that asks for them."""
    filters: dict[str, list[Any]] = {}
    for kind, name, ids in (
        ("ORDER", "order_ids", order_ids),
        ("RETURN", "return_ids", return_ids),
    ):
        if ids is not None:
            numbers = dict.fromkeys(check_id(name, number) for number in _listed(name, ids))
            contexts = filters.setdefault("contexts", [])
            contexts += [{"type": kind, "id": number} for number in numbers]
    for field, name, values in (
        ("contextTypes", "context_types", context_types),
        ("types", "types", types),
        ("statuses", "statuses", statuses),
    ):
        if values is not None:
            texts = [check_type(f"each of {name}", text, str) for text in _listed(name, values)]
            # Without duplicates, as the Market's description demands.
            filters[field] = list(dict.fromkeys(map(exact, texts)))
    arguments = {"contexts": "order_ids or return_ids", "contextTypes": "context_types"}
    for field, filtered in filters.items():
        if not filtered:
            raise InvalidArgumentError(
                f"an empty filter ({arguments.get(field, field)}) matches no chat: leave it out"
            )
    return filters


def _listed(name: str, values: object) -> Iterable[Any]:
    if isinstance(values, (str, int)):
        raise InvalidArgumentError(f"{name} is a list, such as [{values!r}]")
    if not isinstance(values, Iterable):
        raise InvalidArgumentError(f"{name} is a list")
    return values


def chat_context(order_id: object, return_id: object) -> dict[str, Any]:
    """Check what a new chat is about; return it in the form of the API."""
    if (order_id is None) is (return_id is None):
        raise InvalidArgumentError("create_chat takes order_id or return_id: pass one of them")
    if order_id is not None:
        return {"type": "ORDER", "id": check_id("order_id", order_id)}
    return {"type": "RETURN", "id": check_id("return_id", return_id)}


def check_download(
    file: object, to: object, max_bytes: object, *, insecure_http: bool
) -> Path | None:
    """Check a file that is to be downloaded; return the path to write to, if there is one."""
    file = check_type("file", file, File)
    if type(max_bytes) is not int or max_bytes < 1:
        raise InvalidArgumentError("max_bytes is a whole number of at least 1")
    if file.size > max_bytes:
        raise InvalidArgumentError(
            f"{file.name!r} has {file.size} bytes: pass max_bytes to allow so many"
        )
    _check_file_address(file.url, insecure_http=insecure_http)
    return None if to is None else _check_target(to)


def _check_target(to: object) -> Path:
    try:
        path = os.fspath(to)  # type: ignore[call-overload]  # it raises TypeError
        usable = isinstance(path, str) and b"\0" not in os.fsencode(path)
    except (TypeError, UnicodeEncodeError):
        usable = False
    if not usable:
        raise InvalidArgumentError("to is a path, as a str or a pathlib.Path, without NUL")
    target = Path(path)
    if target.name in ("", ".."):
        raise InvalidArgumentError(f"to is the path of a file, and {path!r} is one of a folder")
    return target


def _check_file_address(address: str, *, insecure_http: bool) -> None:
    name = "the file's address"
    try:
        url = check_address(name, address, insecure_http=insecure_http)
        (url.raw_host or "").encode("idna")  # as the resolver does
    except UnicodeError:
        raise InvalidArgumentError(
            f"{name} has a host name that cannot exist: read the message again for another one"
        ) from None


def check_request(
    method: object, path: object, params: Any, json: object
) -> tuple[str, URL, bytes]:
    """Check a request to another method; return its HTTP method, its target and its body."""
    method = check_type("method", method, str).upper()
    if not method.isascii() or not method.isalpha():
        raise InvalidArgumentError("method is one of HTTP, such as GET")
    path = check_type("path", path, str)
    if not path.startswith("/") or path.startswith("//") or "#" in path:
        raise InvalidArgumentError(
            "path starts with one slash, such as /v2/campaigns, and stays on the Market's host"
        )
    try:
        target = URL(path).update_query(params or {})
        body = b"" if json is UNSET else msgspec.json.encode(json)
        if b"null" in body:  # so msgspec writes NaN and infinity
            dumps(msgspec.to_builtins(json, str_keys=True, enc_hook=_of_raw), allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidArgumentError(f"params or json cannot be sent: {error}") from None
    if len(body) > LARGEST_BODY:
        raise InvalidArgumentError(
            f"the body has {len(body)} bytes, and the Market accepts {LARGEST_BODY}"
        )
    return method, target, body


def _of_raw(_: object) -> None:
    """Stand for a `msgspec.Raw`, the only thing that msgspec encodes but does not convert."""


def check_pending(pending: object) -> Pending:
    """Check a message of unknown outcome, which may have been stored field by field."""
    pending = check_type("pending", pending, Pending)
    for name in ("since", "until", "before_since"):
        moment = getattr(pending, name)
        if isinstance(moment, datetime) and moment.utcoffset() is None:
            # Taken as local time, it would be hours off, and the message would not be found.
            raise InvalidArgumentError(
                f"pending.{name} has no time zone: store aware times, or all of it by"
                " msgspec.json.encode"
            )
    try:
        # A datetime of another library is a subclass, which msgspec does not know.
        stored = msgspec.json.encode(pending, enc_hook=datetime.isoformat)
        pending = msgspec.json.decode(stored, type=Pending)
    except (TypeError, ValueError, RecursionError, msgspec.MsgspecError) as error:
        raise InvalidArgumentError(
            f"pending is not as DeliveryUnknownError.pending was: {error}"
        ) from None
    check_id("pending.chat_id", pending.chat_id)
    return pending


def check_max_wait(max_wait: object) -> float | None:
    """Check how many seconds a call may wait; None means any number."""
    return None if max_wait is None else check_seconds("max_wait", max_wait, at_least_0=True)


def check_integration(integration: object) -> str:
    """Check the name and version that X-Market-Integration carries."""
    if (
        not isinstance(integration, str)
        or not 0 < len(integration) <= LONGEST_INTEGRATION
        or not (integration.isascii() and integration.isprintable())
    ):
        raise InvalidArgumentError(
            f'integration is "name/version" in ASCII, of at most {LONGEST_INTEGRATION} characters'
        )
    return integration
