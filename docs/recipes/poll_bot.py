"""python poll_bot.py: answers each message of a buyer once."""

import asyncio
import logging
import signal
from collections.abc import Awaitable, Callable

from yamarket_chat import ChatError, ChatSession, ChatStatus, Message, Sender

log = logging.getLogger(__name__)

WAITING = [ChatStatus.NEW, ChatStatus.WAITING_FOR_PARTNER]
EVERY = 30.0
LOOKS_AFTER_ANSWER = 3


class Inbox:
    """Calls `handle` once for each new message of a buyer, in the order of each chat.

    `handle` returns True if the message is dealt with. After False it is called again, at the next
    look: return False only if surely nothing was sent.
    """

    def __init__(
        self, session: ChatSession, handle: Callable[[int, Message], Awaitable[bool]]
    ) -> None:
        self._session = session
        self._handle = handle
        self._handled: dict[int, set[int]] = {}  # by chat; the ids of the buyer's messages
        self._looks: dict[int, int] = {}  # by chat; how often to look whatever its status is
        self._busy: set[int] = set()

    def look_again(self, chat_id: int) -> None:
        """Look at a chat in which the shop has just written, whatever its status is.

        The Market sets a chat to WAITING_FOR_CUSTOMER when the shop writes. If the buyer wrote at
        the same moment, that message is still to be handled, and no status says so.
        """
        self._looks[chat_id] = LOOKS_AFTER_ANSWER

    async def run(self, stop: asyncio.Event) -> None:
        # The Market may still carry out an answer of a killed run, up to 15 s later. Only then does
        # the history show which messages that run has answered.
        await _wait(stop, 20)
        async with asyncio.TaskGroup() as tasks:  # when stopped, it waits for the running looks
            while not stop.is_set():
                try:
                    chats = {chat.chat_id async for chat in self._session.chats(statuses=WAITING)}
                except ChatError as error:
                    log.warning("the next poll tries again: %s", error)
                    chats = set()
                for chat_id in (chats | self._looks.keys()) - self._busy:
                    self._busy.add(chat_id)
                    tasks.create_task(self._look(chat_id))
                await _wait(stop, EVERY)

    async def _look(self, chat_id: int) -> None:
        try:
            looks = self._looks.pop(chat_id, 0)
            if looks > 1:
                self._looks[chat_id] = looks - 1
            for message in await self._new(chat_id):
                if not await self._handle(chat_id, message):
                    self.look_again(chat_id)
                    break  # the later ones wait for it
                self._handled[chat_id].add(message.message_id)
                self.look_again(chat_id)
        except ChatError as error:
            log.warning("chat %s: the next poll tries again: %s", chat_id, error)
            self._looks.setdefault(chat_id, 1)
        finally:
            self._busy.discard(chat_id)

    async def _new(self, chat_id: int) -> list[Message]:
        """The buyer's messages that are not handled yet, oldest first."""
        rows = {row.message_id: row async for row in self._session.history(chat_id)}
        messages = sorted(rows.values(), key=lambda row: (row.created_at, row.message_id))
        if chat_id not in self._handled:
            # Seen for the first time: all messages before the shop's last one count as answered.
            shop = [i for i, row in enumerate(messages) if row.sender is Sender.PARTNER]
            answered = messages[: shop[-1]] if shop else []
            self._handled[chat_id] = {row.message_id for row in answered}
        return [
            row
            for row in messages
            if row.sender is Sender.CUSTOMER and row.message_id not in self._handled[chat_id]
        ]


async def _wait(stop: asyncio.Event, seconds: float) -> None:
    try:
        async with asyncio.timeout(seconds):
            await stop.wait()
    except TimeoutError:
        pass


def answer(message: Message) -> str | None:
    """What to answer; None leaves the message to a person."""
    return f"Спасибо за вопрос: {message.message:.1000}" if message.message else None


async def bot(session: ChatSession, stop: asyncio.Event) -> None:
    async def handle(chat_id: int, message: Message) -> bool:
        text = answer(message)
        if text is None:
            return True
        try:
            await session.send_message(chat_id, text)
        except ChatError as error:
            if error.sent is False and error.retry_after is not None:
                return False  # surely not sent, and the trouble passes by itself
            log.error("chat %s: a person has to look: %s", chat_id, error)
        return True

    await Inbox(session, handle).run(stop)


async def main() -> None:
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with ChatSession() as session:
        await bot(session, stop)


if __name__ == "__main__":
    asyncio.run(main())
