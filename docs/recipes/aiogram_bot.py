"""python aiogram_bot.py: relays between the buyers and a group of operators in Telegram.

A buyer's message comes to the group as "#17 Где заказ?". What an operator answers by Telegram's
"reply" goes to chat 17.
"""

import asyncio
import os
import re

import aiogram
from aiogram import Dispatcher, F
from aiogram.client.session.aiohttp import AiohttpSession
from aiogram.client.telegram import TelegramAPIServer
from aiogram.exceptions import TelegramNetworkError, TelegramRetryAfter, TelegramServerError
from aiogram.types import Message

from yamarket_chat import ChatError
from yamarket_chat.bot import Bot, BuyerMessage
from yamarket_chat.outbox import Outbox, OutboxEntry, OutboxMessage


async def main() -> None:
    token, group = os.environ["TELEGRAM_TOKEN"], int(os.environ["TELEGRAM_GROUP"])
    server = TelegramAPIServer.from_base(os.environ.get("TELEGRAM", "https://api.telegram.org"))
    business_id = int(os.environ["YAMARKET_BUSINESS_ID"])
    telegram = aiogram.Bot(token, session=AiohttpSession(api=server))
    dispatcher = Dispatcher()
    outbox = Outbox(os.environ["YAMARKET_OUTBOX"])

    async def not_sent(entry: OutboxEntry) -> None:
        await telegram.send_message(group, f"#{entry.chat_id} Не отправлено: {entry.error}"[:4096])

    bot = Bot(
        outbox,
        {business_id: os.environ["YAMARKET_API_KEY"]},
        handler_timeout=900,  # five times, until `error` is told: longer than Telegram is away
        on_failure=not_sent,
    )

    @bot.message
    async def to_group(message: BuyerMessage) -> None:
        text = message.text or ", ".join(file.name for file in message.files) or "?"
        while True:
            try:
                await telegram.send_message(group, f"#{message.chat.chat_id} {text}"[:4096])
                return
            except TelegramRetryAfter as error:
                await asyncio.sleep(error.retry_after)
            except (TelegramNetworkError, TelegramServerError):
                await asyncio.sleep(10)

    @dispatcher.message(F.chat.id == group, F.text, F.reply_to_message.from_user.id == telegram.id)
    async def to_buyer(message: Message) -> None:
        original = message.reply_to_message
        found = re.match(r"#(\d+) ", (original and original.text) or "")
        if not found or message.text is None:
            return
        key = f"telegram-{message.message_id}"  # Telegram may repeat the update
        try:
            await outbox.put(OutboxMessage(business_id, int(found[1]), message.text, key=key))
        except ChatError as error:
            await message.reply(f"Не принято: {error}")
        else:
            await message.reply("Принято")

    await outbox.create()
    async with telegram, bot.running():
        # It ends with SIGTERM or Ctrl-C. An update is confirmed when its handler has returned.
        await dispatcher.start_polling(telegram, handle_as_tasks=False, close_bot_session=False)


if __name__ == "__main__":
    asyncio.run(main())
