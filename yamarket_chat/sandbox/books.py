"""What the sandbox saw, kept for tests and for the demo."""

from __future__ import annotations

from collections import Counter

import msgspec


class Arrival(msgspec.Struct):
    """One request to an operation of the API, as the sandbox saw it.

    `time` is the event loop's when the request arrived, `in_progress` how many requests were being
    processed at that moment, this one included, `counted` whether it took a place in its
    operation's window. `status` is what was answered: None while nothing was, and where the
    connection broke instead. `trace_id` is the trace id of the answer's `traceparent`.
    """

    time: float
    operation: str
    chat_id: int | None
    in_progress: int
    counted: bool
    trace_id: str
    status: int | None = None


class Refusals(msgspec.Struct):
    """How many 420s were answered, by their cause: both limits, and faults of the "420" kinds."""

    rate: int = 0
    parallel: int = 0
    fault: int = 0

    @property
    def total(self) -> int:
        return self.rate + self.parallel + self.fault


class Books:
    """Counts everything; keeps the arrivals themselves only if told to."""

    def __init__(self, *, keep_arrivals: bool) -> None:
        self._keep = keep_arrivals
        self.arrivals: list[Arrival] = []
        self.requests: Counter[str] = Counter()
        self.refusals = Refusals()
        self.busiest = 0

    def arrived(self, arrival: Arrival) -> None:
        self.requests[arrival.operation] += 1
        if arrival.in_progress > self.busiest:
            self.busiest = arrival.in_progress
        if self._keep:
            self.arrivals.append(arrival)

    def busiest_window(self, operation: str, per: float) -> int:
        """The largest number of counted requests of an operation in any `per` seconds."""
        if not self._keep:
            raise RuntimeError("busiest_window() needs the arrivals; leave keep_books on")
        times = [a.time for a in self.arrivals if a.counted and a.operation == operation]
        most = first = 0
        for last, time in enumerate(times):
            while times[first] + per <= time:
                first += 1
            most = max(most, last - first + 1)
        return most
