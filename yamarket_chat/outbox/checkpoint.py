"""One message on its way: what is committed and looked at before each of its requests leaves."""

from __future__ import annotations

import asyncio
from typing import Any

from .._limits.clock import Clock
from ..pending import Pending
from . import fuse
from .deaths import Moment
from .earlier import encode_pending
from .errors import OutboxDatabaseError
from .hand import Row
from .lease import BEATS, TRUST, Grant, Worker
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
        try:
            refusal = await self._writer.mark(
                Mark(
                    row.number,
                    grant.business_id,
                    row.request,
                    grant.token,
                    grant.epoch,
                    encode_pending(pending),
                    self._timeout,
                    self._settle_after,
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

    def look(self, *, again: bool) -> str | None:
        """Look whether the bytes may leave now."""
        fuse.light()
        if again:
            reach("half written")
            return None if self._holds() else self._no(LOST)
        reach("before the look")
        if self._marking is None or self._marking.until(Moment.now()) >= self._worker.lease / BEATS:
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
