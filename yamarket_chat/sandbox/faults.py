"""What can be made to fail, and when."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Literal, get_args

import msgspec

from yamarket_chat.errors import InvalidArgumentError

from .api import check_operation

FaultKind = Literal[
    "reset", "no_answer", "status", "half_body", "slow", "rate_limit", "parallel_limit"
]
FaultTime = Literal["before", "after", "later"]


class Fault(msgspec.Struct, frozen=True):
    """One failure of the Market, as a client sees it.

    `kind` is what happens instead of the answer:

    - "reset": the connection is reset;
    - "no_answer": nothing comes, for as long as the client waits;
    - "status": an answer of this `status`, 200 to 599, in the API's form (status ERROR) or, with
      `html`, a page of HTML such as a balancer sends. A 3xx redirects to a path that leads nowhere;
    - "half_body": the answer promises twice the bytes that come before the connection closes;
    - "slow": the right answer, `delay` seconds later than usual;
    - "rate_limit", "parallel_limit": a 420 that the client did not earn. The first one says that
      nothing goes through for another `delay` seconds.

    `when` says what became of the request: it fails "before" it is carried out, which then never
    happens; "after" it was carried out; or it is carried out "later", `delay` seconds after the
    failure. A 420 is always "before".

        Fault("reset", when="after")
        Fault("status", status=502, html=True)
        Fault("reset", when="later", delay=9.9)

    Raises InvalidArgumentError where the fields do not go together.
    """

    kind: FaultKind
    when: FaultTime = "before"
    delay: float = 0.0
    status: int = 500
    html: bool = False

    def __post_init__(self) -> None:
        if self.kind not in get_args(FaultKind):
            raise InvalidArgumentError(f"Fault.kind is one of {', '.join(get_args(FaultKind))}")
        if self.when not in get_args(FaultTime):
            raise InvalidArgumentError(f"Fault.when is one of {', '.join(get_args(FaultTime))}")
        if not 0 <= self.delay < math.inf:
            raise InvalidArgumentError("Fault.delay is a number of seconds of at least 0")
        if not 200 <= self.status <= 599:
            raise InvalidArgumentError("Fault.status is an HTTP status from 200 to 599")
        if self.kind in ("rate_limit", "parallel_limit") and self.when != "before":
            raise InvalidArgumentError("a request that is refused with 420 is never carried out")


class RequestInfo(msgspec.Struct, frozen=True):
    """A request for which a fault may be chosen.

    `number` counts the requests that were let in, from 1; `operation_number` those of the same
    `operation`. Requests that the key, the business id or the limits keep out are not counted and
    never made to fail. `time` is the event loop's, in seconds.
    """

    number: int
    operation_number: int
    operation: str
    chat_id: int | None
    time: float


FaultPlan = Callable[[RequestInfo], Fault | None]

# The failures between which a client has to tell, each before and after the request was carried
# out where that makes sense. Not among them: a 503 in the API's form after the request was carried
# out, because by that answer the Market says that it was not.
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


def numbered_faults(faults: Mapping[int, Fault], *, operation: str | None = None) -> FaultPlan:
    """Make the n-th request fail, counted from 1 over all operations or those of one.

    Sandbox(faults=numbered_faults({3: Fault("reset")}, operation="send_message"))

    Raises InvalidArgumentError for an operation or a number that there is not.
    """
    if operation is not None:
        check_operation(operation)
    if any(number < 1 for number in faults):
        raise InvalidArgumentError("requests are numbered from 1")
    chosen = dict(faults)

    def plan(request: RequestInfo) -> Fault | None:
        if operation is None:
            return chosen.get(request.number)
        return chosen.get(request.operation_number) if request.operation == operation else None

    return plan


def random_faults(
    probability: float,
    seed: int,
    *,
    kinds: Sequence[Fault] = EVERY_FAULT,
    operations: Collection[str] | None = None,
) -> FaultPlan:
    """Make each request fail with a probability from 0 to 1, in one of the ways of `kinds`.

    The same seed gives the same faults to the same sequence of requests. `operations` restricts
    the faults to these. Raises InvalidArgumentError for a probability out of range, no kinds, or an
    operation that there is not.

        Sandbox(faults=random_faults(0.2, seed=7, operations={"send_message"}))
    """
    if not 0 <= probability <= 1:
        raise InvalidArgumentError("probability is a number from 0 to 1")
    if not kinds:
        raise InvalidArgumentError("kinds holds at least one Fault")
    for operation in operations or ():
        check_operation(operation)
    rng = random.Random(seed)

    def plan(request: RequestInfo) -> Fault | None:
        if operations is not None and request.operation not in operations:
            return None
        return rng.choice(kinds) if rng.random() < probability else None

    return plan
