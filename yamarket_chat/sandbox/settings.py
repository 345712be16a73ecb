"""The settings of a sandbox, and their checks."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from yamarket_chat.errors import InvalidArgumentError
from yamarket_chat.limits import Rate

from .api import check_operation
from .faults import Fault, FaultPlan
from .limits import WindowKind
from .state import HistoryOrder
from .wire import MAX_INT64, Scope

Seconds = float
Latency = Seconds | Callable[[], Seconds]


@dataclass(kw_only=True, eq=False, repr=False)
class Settings:
    """The keyword arguments of `Sandbox`, which documents them. They are checked on creation."""

    api_key: str = "ACMA:sandbox:key"
    business_id: int = 12345
    host: str = "127.0.0.1"
    port: int = 0
    limits: Mapping[str, Rate] = field(default_factory=dict)
    parallel: int = 4
    window: WindowKind = "rolling"
    window_phase: Seconds = 0.0
    rate_limit_headers: bool = True
    latency: Latency = 0.0
    clock_offset: Seconds = 0.0
    storage_offset: Seconds = 0.0
    storage_milliseconds: bool = False
    keep_alive: bool | Seconds = True
    faults: FaultPlan | Mapping[int, Fault] | None = None
    scopes: Sequence[str] = ("COMMUNICATION",)
    chats: Literal["any"] | Iterable[int] = "any"
    campaigns: int = 1
    strip_spaces: bool = True
    history_order: HistoryOrder = "ascending"
    history_includes_from: bool = True
    history_delay: Seconds = 0.0
    keep_books: bool = True
    revoked: bool = field(default=False, init=False)
    inactive: bool = field(default=False, init=False)
    locked: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        if not (isinstance(self.api_key, str) and self.api_key.strip()):
            raise InvalidArgumentError("api_key must be a string that is not empty")
        check_int("business_id", self.business_id, 1, MAX_INT64)
        check_int("port", self.port, 0, 65535)
        check_int("parallel", self.parallel, 1)
        check_int("campaigns", self.campaigns, 0)
        check_rates(self.limits)
        if self.window not in get_args(WindowKind):
            raise InvalidArgumentError('window must be "rolling" or "fixed"')
        if not callable(self.latency):
            _check_seconds("latency", self.latency)
        for name in ("window_phase", "history_delay"):
            _check_seconds(name, getattr(self, name))
        for name in ("clock_offset", "storage_offset"):
            offset = getattr(self, name)
            if not _is_number(offset) or not math.isfinite(offset):
                raise InvalidArgumentError(f"{name} must be a finite number of seconds")
        if not isinstance(self.keep_alive, bool):
            _check_seconds("keep_alive", self.keep_alive)
        if not (self.faults is None or callable(self.faults) or isinstance(self.faults, Mapping)):
            raise InvalidArgumentError(
                "faults must be a function, a mapping from request numbers to Fault, or None"
            )
        if isinstance(self.scopes, str) or not set(self.scopes) <= set(get_args(Scope)):
            raise InvalidArgumentError(f"scopes must be a list of: {', '.join(get_args(Scope))}")
        if self.chats != "any":
            if isinstance(self.chats, str):
                raise InvalidArgumentError('chats must be "any" or a list of chat ids')
            self.chats = tuple(self.chats)
            for chat_id in self.chats:
                check_int("an id in chats", chat_id, 1, MAX_INT64)
        if self.history_order not in get_args(HistoryOrder):
            orders = ", ".join(f'"{order}"' for order in get_args(HistoryOrder))
            raise InvalidArgumentError(f"history_order must be one of {orders}")


def check_rates(limits: Mapping[str, Rate]) -> None:
    for operation, rate in limits.items():
        check_operation(operation)
        if not isinstance(rate, Rate):
            raise InvalidArgumentError(
                f"the limit of {operation} must be a Rate; pass Rate(requests, per)"
            )


def check_int(name: str, value: Any, least: int, most: int | None = None) -> None:
    if type(value) is not int or value < least or (most is not None and value > most):
        limit = f"of at least {least}" if most is None else f"from {least} to {most}"
        raise InvalidArgumentError(f"{name} must be an int {limit}")


def _check_seconds(name: str, value: Any) -> None:
    if not _is_number(value) or not 0 <= value < math.inf:
        raise InvalidArgumentError(f"{name} must be a finite number of seconds, at least 0")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
