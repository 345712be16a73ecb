"""Faults that the sandbox injects, and functions that choose the requests that fail."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Literal, get_args

import msgspec

from yamarket_chat.errors import InvalidArgumentError

from .api import check_operation

FaultKind = Literal[
    "reset",
    "no_answer",
    "status",
    "half_body",
    "slow",
    "unsolicited",
    "rate_limit",
    "parallel_limit",
]
FaultTime = Literal["before", "after", "later"]


class Fault(msgspec.Struct, frozen=True):
    """One failure of the Market, as a client sees it.

    Attributes:
        kind: What happens instead of the response.

            - "reset": the server resets the connection.
            - "no_answer": the server sends nothing until the client closes the connection.
            - "status": the server responds with `status`. The body is an error in the API's format
              or, if `html` is set, an HTML page like that of a load balancer. A 3xx status
              redirects to a path that does not exist.
            - "half_body": the server announces the whole body, sends half of it and closes the
              connection.
            - "slow": the server sends the correct response `delay` seconds later than usual.
            - "unsolicited": the server sends the correct response, and `delay` seconds later the
              same response again, on a connection that has no request for it.
            - "rate_limit": the server refuses the request with 420, although the client kept to
              the rate limit. The headers say that the limit resets in `delay` seconds.
            - "parallel_limit": the server refuses the request with 420, although the client kept
              to the limit of parallel requests.
        when: When the request fails.

            - "before": before the server executes it. The server never executes it.
            - "after": after the server has executed it.
            - "later": the server executes it `delay` seconds after the failure. Until then the
              request keeps its parallel slot, unless the response is an error in the API's format.

            A 420 is always "before".
        delay: Seconds, at least 0. "slow", "unsolicited", "rate_limit" and "later" use
            them.
        status: The HTTP status for the kind "status", from 200 to 599.
        html: True makes the kind "status" respond with an HTML page.

    Raises:
        InvalidArgumentError: A value is out of range, or `kind` and `when` contradict each other.

    Example:
        Fault("reset", when="after")
        Fault("status", status=502, html=True)
        Fault("reset", when="later", delay=9.9)
    """

    kind: FaultKind
    when: FaultTime = "before"
    delay: float = 0.0
    status: int = 500
    html: bool = False

    def __post_init__(self) -> None:
        if self.kind not in get_args(FaultKind):
            raise InvalidArgumentError(
                f"Fault.kind must be one of {', '.join(get_args(FaultKind))}"
            )
        if self.when not in get_args(FaultTime):
            raise InvalidArgumentError(
                f"Fault.when must be one of {', '.join(get_args(FaultTime))}"
            )
        if not 0 <= self.delay < math.inf:
            raise InvalidArgumentError("Fault.delay must be at least 0 seconds and finite")
        if not 200 <= self.status <= 599:
            raise InvalidArgumentError("Fault.status must be an HTTP status from 200 to 599")
        if self.kind in ("rate_limit", "parallel_limit") and self.when != "before":
            raise InvalidArgumentError(
                f'the kind "{self.kind}" refuses a request before it is executed;'
                ' pass when="before"'
            )


class RequestInfo(msgspec.Struct, frozen=True):
    """A request, as a fault plan sees it.

    The sandbox does not number requests that it refuses because of the key, the business id or a
    limit, and never makes them fail.

    Attributes:
        number: The number of the request among the requests to all operations, from 1.
        operation_number: The number of the request among the requests to its operation, from 1.
        operation: The name of the operation, for example "send_message".
        chat_id: The chat that the URL names, or None.
        time: The event loop's time at which the request arrived, in seconds.

    Example:
        def every_tenth_request_fails(request: RequestInfo) -> Fault | None:
            return Fault("reset") if request.number % 10 == 0 else None

        Sandbox(faults=every_tenth_request_fails)
    """

    number: int
    operation_number: int
    operation: str
    chat_id: int | None
    time: float


FaultPlan = Callable[[RequestInfo], Fault | None]
"""A function that returns the fault for a request, or None if the request must not fail."""

EVERY_FAULT: tuple[Fault, ...] = (
    *(Fault(kind, when=when) for kind in ("reset", "no_answer") for when in ("before", "after")),
    *(
        Fault("status", when=when, status=status, html=html)
        for status in (200, 500, 502, 503, 504)
        for html in (False, True)
        for when in ("before", "after")
        if (status, html, when) != (503, False, "after")
    ),
    *(Fault("status", when=when, status=302) for when in ("before", "after")),
    *(Fault("half_body", when=when) for when in ("before", "after")),
    Fault("reset", when="later", delay=4.0),
    Fault("reset", when="later", delay=9.9),
    Fault("slow", delay=5.0),
    Fault("rate_limit", delay=30.0),
    Fault("parallel_limit"),
)
"""All failures that a client must handle differently, "before" and "after" if both are possible.

A 503 in the API's format is never "after", because with it the Market says that it has not executed
the request.
"""


def numbered_faults(faults: Mapping[int, Fault], *, operation: str | None = None) -> FaultPlan:
    """Make the requests with the given numbers fail.

    Args:
        faults: The fault for each number of a request. Numbers start at 1.
        operation: Count the requests to this operation only. None counts all requests.

    Returns:
        A plan for `Sandbox(faults=...)`.

    Raises:
        InvalidArgumentError: A number is less than 1, or there is no such operation.

    Example:
        Sandbox(faults=numbered_faults({3: Fault("reset")}, operation="send_message"))
    """
    if operation is not None:
        check_operation(operation)
    if any(number < 1 for number in faults):
        raise InvalidArgumentError("requests are numbered from 1; pass numbers of at least 1")
    fault_of = dict(faults)

    def plan(request: RequestInfo) -> Fault | None:
        if operation is None:
            return fault_of.get(request.number)
        return fault_of.get(request.operation_number) if request.operation == operation else None

    return plan


def random_faults(
    probability: float,
    seed: int,
    *,
    kinds: Sequence[Fault] = EVERY_FAULT,
    operations: Collection[str] | None = None,
) -> FaultPlan:
    """Make each request fail with the given probability.

    Args:
        probability: The probability of a fault, from 0 to 1.
        seed: The seed of the random generator. The same seed gives the same faults for the same
            sequence of requests.
        kinds: The faults to choose from, all with equal probability.
        operations: Make only requests to these operations fail. None means all operations.

    Returns:
        A plan for `Sandbox(faults=...)`.

    Raises:
        InvalidArgumentError: The probability is out of range, `kinds` is empty, or there is no such
            operation.

    Example:
        Sandbox(faults=random_faults(0.2, seed=7, operations={"send_message"}))
    """
    if not 0 <= probability <= 1:
        raise InvalidArgumentError("probability must be from 0 to 1")
    if not kinds:
        raise InvalidArgumentError("kinds is empty; pass at least one Fault")
    for operation in operations or ():
        check_operation(operation)
    rng = random.Random(seed)

    def plan(request: RequestInfo) -> Fault | None:
        if operations is not None and request.operation not in operations:
            return None
        return rng.choice(kinds) if rng.random() < probability else None

    return plan
