"""Downloads a file of a chat, in pieces and up to a size."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncIterable
from contextlib import aclosing
from functools import partial
from io import BufferedWriter
from pathlib import Path

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
            pause = budget.next_pause(failed.after or 0.0) if failed.passes else None
            if pause is None:
                error = _error(file, failed)
                break
            logger.info("%s; retry in %.1f s", _error(file, failed), pause)
        await asyncio.sleep(pause)
    raise error


async def _fetch(exchange: Exchange, file: File, to: Path | None, max_bytes: int) -> bytes | Path:
    async with aclosing(exchange.fetch(file.url, max_bytes)) as pieces:
        if to is None:
            return b"".join([piece async for piece in pieces])
        await _write(pieces, to)
        return to


async def _write(pieces: AsyncIterable[bytes], to: Path) -> None:
    # Under another name first: a download that breaks off leaves nothing under the final name. No
    # other download and no file of the caller has it, and it is never too long.
    part = to.with_name(f".yamarket-{os.urandom(8).hex()}")
    opening = asyncio.get_running_loop().run_in_executor(None, open, part, "xb")
    try:
        with await asyncio.shield(opening) as out:
            async for piece in pieces:
                await asyncio.to_thread(out.write, piece)
        await asyncio.to_thread(os.replace, part, to)
    except BaseException:
        if opening.done():
            await asyncio.to_thread(_remove, part, opening)
        else:  # the thread makes the file even if the call was cancelled; it may hang
            opening.add_done_callback(partial(_remove, part))
        raise


def _remove(part: Path, opening: asyncio.Future[BufferedWriter]) -> None:
    if not opening.cancelled() and opening.exception() is None:
        opening.result().close()
        part.unlink(missing_ok=True)


def _error(file: File, failed: FetchFailed) -> ChatError:
    what = f"download of {file.name!r}"
    retry_after = (failed.after or LONGEST_PAUSE) if failed.passes else None
    if failed.status is None:
        return ConnectionFailedError(f"{what}: {failed.reason}", retry_after=retry_after)
    if failed.status >= 400:
        advice = "the link may have expired: read the message again for a new one"
        error = api_error(
            failed.status,
            (),
            operation=what,
            advice=advice if failed.status in (403, 404) else None,
        )
        error.retry_after = retry_after or error.retry_after  # that of a 423 is known
        return error
    return UnexpectedAnswerError(
        f"{what}: {failed.reason}", status=failed.status, operation=what, sent=False
    )
