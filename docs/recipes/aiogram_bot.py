"""python aiogram_bot.py: relays between the buyers and a group of operators in Telegram.

A buyer's message comes to the group as "#17 Где заказ?". What an operator answers by Telegram's
"reply" goes to chat 17.
"""

import asyncio
import os
import re
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from aiogram import BaseMiddleware, Bot, Dispatcher, F
from aiogram.client.session.aiohttp import AiohttpSession
from aiogram.client.telegram import TelegramAPIServer
from aiogram.exceptions import TelegramAPIError
from aiogram.types import Message, TelegramObject, Update
from poll_bot import Inbox

from yamarket_chat import ChatError, ChatSession, DeliveryUnknownError
from yamarket_chat import Message as BuyerMessage

SEEN = Path(os.environ.get("SEEN", "seen.txt"))


class Once(BaseMiddleware):
    """Passes each update on at most once, also after a kill.

    Telegram repeats an update until the next request confirms it. So its id is written down before
    anything is sent: a kill may lose the message, and never doubles it.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen = set(path.read_text().split()[-1000:]) if path.exists() else set[str]()
        path.write_text("".join(f"{number}\n" for number in self._seen))
        self.running: set[asyncio.Future[Any]] = set()

    async def __call__(
        self,
        handler: Callable[[TelegramObject, dict[str, Any]], Awaitable[Any]],
        event: TelegramObject,
        data: dict[str, Any],
    ) -> Any:
        number = str(event.update_id) if isinstance(event, Update) else ""
        if number in self._seen:
            return None
        self._seen.add(number)
        with self._path.open("a") as file:
            file.write(f"{number}\n")
        handling = asyncio.ensure_future(handler(event, data))
        self.running.add(handling)
        handling.add_done_callback(self.running.discard)
        return await handling


async def main() -> None:
    token, group = os.environ["TELEGRAM_TOKEN"], int(os.environ["TELEGRAM_GROUP"])
    server = TelegramAPIServer.from_base(os.environ.get("TELEGRAM", "https://api.telegram.org"))
    dispatcher = Dispatcher()
    once = Once(SEEN)
    dispatcher.update.outer_middleware(once)
    stop = asyncio.Event()

    async with Bot(token, session=AiohttpSession(api=server)) as bot:
        # It ends before the bot, which still has to say what became of the last messages.
        async with ChatSession() as session:

            async def to_group(chat_id: int, message: BuyerMessage) -> bool:
                files = ", ".join(file.name for file in message.payload or ())
                try:
                    await bot.send_message(group, f"#{chat_id} {message.message or files}"[:4096])
                except TelegramAPIError:
                    return False
                return True

            inbox = Inbox(session, to_group)

            @dispatcher.message(
                F.chat.id == group, F.text, F.reply_to_message.from_user.id == bot.id
            )
            async def to_buyer(message: Message) -> None:
                original = message.reply_to_message
                found = re.match(r"#(\d+) ", (original and original.text) or "")
                if not found or message.text is None:
                    return
                chat_id = int(found[1])
                try:
                    await session.send_message(chat_id, message.text)
                except DeliveryUnknownError:
                    await message.reply(
                        "Неизвестно, дошло ли: посмотрите в чат, прежде чем повторять"
                    )
                except ChatError as error:
                    await message.reply(f"Не отправлено: {error}")
                else:
                    await message.reply("Отправлено")
                inbox.look_again(chat_id)

            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(inbox.run(stop))
                # It ends with SIGTERM or Ctrl-C, and does not wait for its handlers.
                await dispatcher.start_polling(bot, close_bot_session=False)
                stop.set()
        if once.running:
            await asyncio.wait(once.running)


if __name__ == "__main__":
    asyncio.run(main())
