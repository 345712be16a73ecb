"""Finds out what became of the messages that earlier couriers have marked."""

from __future__ import annotations

import asyncio
from typing import Any

from .._delivery.departing import KERNEL
from .._delivery.failures import closed_error
from ..errors import ChatError, DeliveryUnknownError
from ..pending import Pending
from . import earlier
from .hand import Row
from .parts import Whole
from .pausing import AGAIN, pauses


class Settling:
    """The marked rows of a business whose marks are not its courier's own.

    Nothing else is sent to the chat of one until its end is written.
    """

    def __init__(self, courier: Whole) -> None:
        self._courier = courier
        self._loop = asyncio.get_running_loop()

    def moment(self, read: Any) -> float:
        """Return when a marked row may be settled: its request cannot be carried out after that.

        The time since its mark counts, if this worker has seen the beat before it. Otherwise
        nothing is known but that nothing was sent after the lease was taken over.
        """
        courier, grant = self._courier, self._courier.grant
        timeout, settle_after = read.timeout or 0.0, read.settle_after or courier.settle_after
        if read.epoch == grant.epoch:
            at = self._loop.time() + max(timeout, KERNEL) + settle_after
        else:
            at = grant.taken_at + grant.settle_wait(timeout, settle_after)
        if read.beat is not None:
            seen_at = grant.seen_at(read.worker, read.beat)
            if seen_at is not None:
                at = min(at, seen_at + read.arrives_within + settle_after)
        return at

    def begin(self, row: Row, read: Any) -> None:
        """Begin to settle a row."""
        courier, chat_id = self._courier, read.chat_id
        courier.hand.settle(row, chat_id)
        pending = earlier.pending_of(read)
        courier.in_background(self._settle(row, chat_id, pending, self.moment(read)))

    async def _settle(self, row: Row, chat_id: int, pending: Pending, at: float) -> None:
        courier, over = self._courier, at
        while True:
            await asyncio.sleep(at - self._loop.time())
            engine = courier.engine
            try:
                if engine is None:
                    raise closed_error()  # a new session is being made
                clock = engine.market_clock()
                if clock is not None:
                    # Its mark could not know that its process would be proven dead.
                    pending = earlier.stored_by(pending, over + clock.most)
                receipt = await engine.sending.find(pending)
            except DeliveryUnknownError as error:
                if courier.stopping or engine is None:
                    return
                earlier.remember(engine, pending, surely=False)
                courier.end(row, "unknown", error, pending)
            except ChatError as error:
                if courier.stopping:
                    return
                if pauses(error):
                    courier.pause(str(error))
                at = self._loop.time() + (error.retry_after or AGAIN)
                continue
            else:
                if receipt is None:
                    courier.end(row, "waiting")
                else:
                    stored = earlier.remember(engine, pending, surely=True)
                    courier.end(row, "delivered", receipt, stored)
            break
        courier.hand.settled(chat_id)
