"""Downloads a file of a chat, in pieces and up to a size."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path
from typing import BinaryIO

from ..errors import ChatError, ConnectionFailedError, UnexpectedAnswerError, api_error
from ..models import File
from ..retry import LONGEST_PAUSE, Budget, Retry
from .exchange import Exchange, FetchFailed

logger = logging.getLogger("yamarket_chat")


async def download(
    exchange: Exchange, file: File, to: Path | None, max_bytes: int, retry: Retry
) -> bytes | Path:
    """Fetch a file; see `ChatSession.download`."""
    budget = Budget(retry)
    loop = asyncio.get_running_loop()
    while True:
        began = loop.time()
        try:
            return await _fetch(exchange, file, to, max_bytes)
        except FetchFailed as failed:
            budget.attempts += 1
            budget.spent += loop.time() - began
            pause = budget.next_pause() if failed.passes else None
            if pause is None:
                error = _error(file, failed)
                break
            logger.info("%s; retry in %.1f s", _error(file, failed), pause)
        await asyncio.sleep(pause)
    raise error


async def _fetch(exchange: Exchange, file: File, to: Path | None, max_bytes: int) -> bytes | Path:
    async with aclosing(exchange.fetch(file.url, max_bytes)) as pieces:
        return await _take(pieces, to)


async def _take(pieces: AsyncIterator[bytes], to: Path | None) -> bytes | Path:
    if to is None:
        return b"".join([piece async for piece in pieces])
    # Under another name first: a download that breaks off leaves nothing under the final name.
    part = to.with_name(f"{to.name}.part")
    try:
        with await asyncio.to_thread(part.open, "wb") as out:
            await _write(pieces, out)
        await asyncio.to_thread(os.replace, part, to)
    except BaseException:
        await asyncio.to_thread(part.unlink, missing_ok=True)
        raise
    return to


async def _write(pieces: AsyncIterator[bytes], out: BinaryIO) -> None:
    async for piece in pieces:
        await asyncio.to_thread(out.write, piece)


def _error(file: File, failed: FetchFailed) -> ChatError:
    what = f"download of {file.name!r}"
    if failed.status is None:
        return ConnectionFailedError(
            f"{what}: {failed.reason}",
            retry_after=LONGEST_PAUSE if failed.passes else None,
        )
    if failed.status >= 400:
        error = api_error(failed.status, (), operation=what, trace_id=None)
        error.retry_after = LONGEST_PAUSE if failed.passes else None
        return error
    return UnexpectedAnswerError(
        f"{what}: {failed.reason}",
        status=failed.status,
        excerpt="",
        operation=what,
        trace_id=None,
        sent=False,
    )
