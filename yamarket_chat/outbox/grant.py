"""A lease of a business in the hands of its worker."""

from __future__ import annotations

from collections.abc import Callable

from .._delivery.departing import KERNEL


class Grant:
    """A lease that this worker holds, from the moment that it learnt so until it is over.

    Attributes:
        business_id: The business.
        token: The worker's token, which the lease bears.
        epoch: How often the holder of the lease changed.
        taken_at: The loop's time when the worker learnt that it holds the lease.
        proven: Whether the system's lock has proven that the holder before is dead.
        reads_until: Until when the Market may be at what the holder before was reading as it died.
        seen_at: Returns when a beat of a worker, by its token and number, was first seen.
        over: Whether the lease is lost or given away. Nothing may be sent under it then.
        reads_held: Whether parallel slots are held for what the holder before was reading.
    """

    __slots__ = (
        "business_id",
        "epoch",
        "over",
        "proven",
        "reads_held",
        "reads_until",
        "seen_at",
        "taken_at",
        "token",
    )

    def __init__(
        self,
        business_id: int,
        token: str,
        epoch: int,
        taken_at: float,
        proven: bool,
        reads_for: float,
        seen_at: Callable[[str, int], float | None],
    ) -> None:
        self.business_id: int = business_id
        self.token: str = token
        self.epoch: int = epoch
        self.taken_at: float = taken_at
        self.proven: bool = proven
        self.reads_until: float = taken_at + reads_for
        self.seen_at: Callable[[str, int], float | None] = seen_at
        self.over: bool = False
        self.reads_held: bool = False

    def __repr__(self) -> str:
        return f"Grant({self.business_id}, epoch={self.epoch}{', over' if self.over else ''})"

    def settle_wait(self, timeout: float, settle_after: float) -> float:
        """Return how many seconds after `taken_at` a message of the holder before may be settled.

        Until then, that holder's kernel may still deliver the request, and the Market carry it out.

        Args:
            timeout: Seconds that the request was allowed to take.
            settle_after: Seconds that the Market may take to carry a request out.
        """
        return settle_after + (0.0 if self.proven else max(timeout, KERNEL))
