"""Records of the requests that reached the sandbox."""

from __future__ import annotations

from collections import Counter

import msgspec


class Arrival(msgspec.Struct):
    """One request to an operation, as the sandbox saw it.

    Attributes:
        time: The event loop's time at which the request arrived, in seconds.
        operation: The name of the operation, for example "send_message".
        chat_id: The chat that the URL names, or None.
        in_progress: The number of requests in progress at this moment, this request included.
        counted: True if the request was counted against the limit of its operation.
        trace_id: The trace id in the `traceparent` header of the response.
        status: The HTTP status of the response. None until the sandbox has answered, and if the
            connection broke instead.

    Example:
        await session.send_message(chat_id, "Ваш заказ в пути")
        arrival = market.arrivals[-1]
        assert (arrival.operation, arrival.status) == ("send_message", 200)
    """

    time: float
    operation: str
    chat_id: int | None
    in_progress: int
    counted: bool
    trace_id: str
    status: int | None = None


class Refusals(msgspec.Struct):
    """The numbers of requests that the sandbox answered with 420, by cause.

    Attributes:
        rate: Requests above the limit of their operation.
        parallel: Requests above the limit of parallel requests.
        fault: Requests that a fault of kind "rate_limit" or "parallel_limit" refused.

    Example:
        assert market.refusals.total == market.refused
    """

    rate: int = 0
    parallel: int = 0
    fault: int = 0

    @property
    def total(self) -> int:
        """The number of requests that were answered with 420, for any cause."""
        return self.rate + self.parallel + self.fault


class Recorder:
    """Counts all requests, and keeps one `Arrival` for each if `keep_arrivals` is set."""

    def __init__(self, *, keep_arrivals: bool) -> None:
        self._keep_arrivals = keep_arrivals
        self.arrivals: list[Arrival] = []
        self.requests: Counter[str] = Counter()
        self.refusals: Refusals = Refusals()
        self.busiest: int = 0

    def record(self, arrival: Arrival) -> None:
        self.requests[arrival.operation] += 1
        if arrival.in_progress > self.busiest:
            self.busiest = arrival.in_progress
        if self._keep_arrivals:
            self.arrivals.append(arrival)

    def busiest_window(self, operation: str, per: float) -> int:
        """Return the largest number of counted requests of an operation in any `per` seconds."""
        if not self._keep_arrivals:
            raise RuntimeError("busiest_window() needs the arrivals; do not pass keep_books=False")
        times = [a.time for a in self.arrivals if a.counted and a.operation == operation]
        most = first = 0
        for last, time in enumerate(times):
            while times[first] + per <= time:
                first += 1
            most = max(most, last - first + 1)
        return most
