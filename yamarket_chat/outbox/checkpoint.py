"""One message on its way: what is committed and looked at before each of its requests leaves."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import msgspec

from .._delivery.departing import KERNEL
from .._limits.clock import Clock
from ..pending import Pending
from . import fuse
from .deaths import Moment
from .earlier import encode_pending
from .errors import OutboxDatabaseError
from .grant import Grant
from .hand import TEXT, Row
from .lease import BEATS, TRUST, Worker
from .marks import Mark
from .points import reach
from .writer import Writer

TOO_OLD = "too much time has passed since it was marked"
LOST = "this worker may have lost its lease"
EXPIRED = "its not_after is over"


class Passage:
    """The way of one message through its requests. The core asks it as a `Checkpoint`."""

    def __init__(
        self,
        row: Row,
        grant: Grant,
        worker: Worker,
        writer: Writer,
        clock: Any,
        timeout: float,
        settle_after: float,
    ) -> None:
        self._row = row
        self._grant = grant
        self._worker = worker
        self._writer = writer
        self._clock = clock
        self._timeout = timeout
        self._settle_after = settle_after
        # Seconds after the mark in which its last byte may leave. A file takes its time.
        leaves_within = worker.lease / BEATS
        if row.operation != TEXT:
            leaves_within = max(leaves_within, timeout)
        self._leaves_within = leaves_within
        # If the process goes on, the attempt ends by its timeout, and nothing is sent after it. If
        # not, the kernel may hold the last byte for a while.
        self._arrives_within = max(timeout, leaves_within + KERNEL)
        self._loop = asyncio.get_running_loop()
        self._marking: Moment | None = None  # when its mark began to be committed
        self.refused: str | None = None

    async def mark(self, pending: Pending) -> str | None:
        """Commit that a request is about to be sent."""
        reach("before the mark")
        row, grant = self._row, self._grant
        clock: Clock | None = self._clock()
        if clock is None:
            return self._no("the Market's clock is not known")
        time = self._loop.time()
        if row.not_after is not None and (time + clock.most) * 1e6 > row.not_after:
            return self._no(EXPIRED)
        if not self._holds():
            return self._no(LOST)
        self._marking = Moment.now()
        age, beat = self._worker.beat_age(), self._worker.beat
        try:
            refusal = await self._writer.mark(
                Mark(
                    row.number,
                    grant.business_id,
                    row.request,
                    grant.token,
                    grant.epoch,
                    encode_pending(self._until(pending)),
                    self._timeout,
                    self._settle_after,
                    beat,
                    age + self._arrives_within,
                    row.operation,
                    int((time + clock.most) // 60),
                )
            )
        except OutboxDatabaseError as error:
            return self._no(str(error))
        if refusal is not None:
            return self._no(refusal)
        row.request += 1
        row.leaving = True
        reach("marked")
        return None

    def _until(self, pending: Pending) -> Pending:
        """Count the time in which the request may still leave: it begins after the last look."""
        later = self._arrives_within - max(self._timeout, KERNEL)
        if pending.until is None or later <= 0:
            return pending
        return msgspec.structs.replace(pending, until=pending.until + timedelta(seconds=later))

    def look(self, *, again: bool) -> str | None:
        """Look whether the bytes may leave now."""
        fuse.light()
        reach("half written" if again else "before the look")
        most = self._leaves_within if again else self._worker.lease / BEATS
        if self._marking is None or self._marking.until(Moment.now()) >= most:
            return self._no(TOO_OLD)
        return None if self._holds() else self._no(LOST)

    def written(self) -> None:
        """Note that the last byte was written."""
        fuse.put_out()
        reach("written")

    def _holds(self) -> bool:
        return not self._grant.over and self._worker.beat_age() < self._worker.lease * TRUST

    def _no(self, why: str) -> str:
        self.refused = why
        return why
