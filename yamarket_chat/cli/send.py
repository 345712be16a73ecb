"""Sending one message, and telling what became of it."""

from __future__ import annotations

import asyncio

from yamarket_chat.errors import ChatError, SessionClosedError
from yamarket_chat.session import ChatSession

from . import console

INTERRUPTED = 130


async def deliver(session: ChatSession, chat_id: int, text: str) -> int:
    """Send a text, print one line on success, and return the exit status.

    An interruption (the cancellation of this task) ends the wait for the quota and between
    attempts; a message under way is waited for, because it may arrive all the same.
    """
    interrupted = False
    async with session:
        sending = asyncio.create_task(session.send_message(chat_id, text))
        try:
            with console.err.status("Sending"):
                await asyncio.wait({sending})
        except asyncio.CancelledError:
            interrupted = True
            console.note(
                "Interrupted: finding out whether it arrived; Ctrl-C again leaves without knowing"
            )
            await session.close()
        try:
            receipt = await sending
        except SessionClosedError:
            console.failure("interrupted; nothing was sent")
        except ChatError as error:
            if not interrupted:
                raise
            console.failure(console.describe(error))
        else:
            attempts = "1 attempt" if receipt.attempts == 1 else f"{receipt.attempts} attempts"
            proof = (
                f"trace id {receipt.trace_id or 'not given'}"
                if receipt.confirmed_by == "answer"
                else "found in the chat's history"
            )
            console.result(f"Delivered to chat {receipt.chat_id}, {attempts}, {proof}")
    return INTERRUPTED if interrupted else 0
