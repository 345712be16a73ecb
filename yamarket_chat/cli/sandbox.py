"""Running the sandbox for other programs."""

from __future__ import annotations

import asyncio
import shlex

from yamarket_chat.sandbox import Sandbox

from . import console


async def serve(market: Sandbox) -> None:
    """Run the sandbox until this task is cancelled. Raises OSError where it cannot listen."""
    async with market:
        console.note("The sandbox runs until Ctrl-C. In another terminal:")
        for name, value in (
            ("YAMARKET_BASE_URL", market.url),
            ("YAMARKET_API_KEY", market.api_key),
            ("YAMARKET_BUSINESS_ID", str(market.business_id)),
        ):
            console.result(f"export {name}={shlex.quote(value)}")
        console.note('yamarket-chat send 7 "Your order is on its way"')
        try:
            await asyncio.Event().wait()
        finally:
            console.note(
                f"Stopped: messages {market.messages_stored}, chats {len(market.chat_ids)},"
                f" refused requests {market.refused}"
            )
