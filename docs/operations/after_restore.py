"""Find out which of the messages that were held after a restore stand in their chats already.

python after_restore.py sqlite:///outbox.db 12345          # or a URL of PostgreSQL; the business

The key is in YAMARKET_API_KEY. A message that is in its chat becomes delivered, all others wait
again. The chat of an order or a return is opened if it is not open yet, as sending would do. A
message whose chat cannot be read stays unknown: look yourself.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections import defaultdict
from datetime import timedelta

from yamarket_chat import ApiError, ChatSession, Message
from yamarket_chat.outbox import Outbox, OutboxEntry

CLOCKS = timedelta(minutes=5)
"""How far the clock of the machine that put a message may be ahead of the Market's."""


def is_it(row: Message, entry: OutboxEntry) -> bool:
    if row.sender != "PARTNER" or row.created_at < entry.created_at - CLOCKS:
        return False
    if entry.filename is not None:
        return any(file.name == entry.filename for file in row.payload or ())
    return entry.text is not None and (row.message or "").strip() == entry.text.strip()


async def chat_of(session: ChatSession, entry: OutboxEntry) -> int:
    if entry.chat_id is not None:
        return entry.chat_id
    return await session.create_chat(order_id=entry.order_id, return_id=entry.return_id)


async def decide(outbox: Outbox, session: ChatSession, business_id: int) -> None:
    held: dict[tuple[int | None, ...], list[OutboxEntry]] = defaultdict(list)
    async for entry in outbox.entries(business_id=business_id, state="unknown"):
        if entry.error is None:  # one that was unknown before has an error
            held[entry.chat_id, entry.order_id, entry.return_id].append(entry)
    chats: dict[int, list[Message]] = {}
    for entries in held.values():
        try:
            chat_id = await chat_of(session, entries[0])
            if chat_id not in chats:
                chats[chat_id] = [row async for row in session.history(chat_id)]
        except ApiError as error:
            print("look yourself:", *(entry.number for entry in entries), error)
            continue
        rows = chats[chat_id]
        for entry in entries:
            found = next((row for row in rows if is_it(row, entry)), None)
            if found is None:
                await outbox.retry(entry.number)
            else:
                rows.remove(found)  # an equal text may follow
                await outbox.settle(entry.number, delivered=True)
            print(entry.number, "waits again" if found is None else "was delivered")


async def main(url: str, business_id: int) -> None:
    api_key, address = os.environ["YAMARKET_API_KEY"], os.environ.get("YAMARKET_BASE_URL")
    session = ChatSession(api_key, business_id, base_url=address)
    async with Outbox(url) as outbox, session:
        await decide(outbox, session, business_id)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    asyncio.run(main(sys.argv[1], int(sys.argv[2])))
