"""python model_bot.py: a model answers. If it cannot, a person takes the chat over."""

import asyncio
import os
import signal

from sqlalchemy import create_engine, text

from yamarket_chat import Message, Sender
from yamarket_chat.bot import Bot, BuyerMessage
from yamarket_chat.outbox import Outbox

DATABASE = os.environ["YAMARKET_OUTBOX"]
MODEL_TIMEOUT = 40.0

outbox = Outbox(DATABASE)
engine = create_engine(DATABASE)
bot = Bot(
    outbox,
    {int(os.environ["YAMARKET_BUSINESS_ID"]): os.environ["YAMARKET_API_KEY"]},
    handler_timeout=60,  # longer than that of the model
    max_age=6 * 3600,  # nobody wants the answer of a model a day later: see `failed`
)

CREATE = text("CREATE TABLE IF NOT EXISTS handed_over (chat_id BIGINT PRIMARY KEY)")
HAND_OVER = text("INSERT INTO handed_over VALUES (:chat_id) ON CONFLICT DO NOTHING")
IS_HANDED_OVER = text("SELECT 1 FROM handed_over WHERE chat_id = :chat_id")


async def ask_model(conversation: list[Message]) -> str | None:
    """Yours. It returns None if the model is not sure."""
    await asyncio.sleep(1)
    question = conversation[-1].message
    return f"Отвечаю на вопрос: {question}" if question else None


def is_handed_over(chat_id: int) -> bool:
    with engine.connect() as connection:
        return connection.execute(IS_HANDED_OVER, {"chat_id": chat_id}).first() is not None


async def hand_over(message: BuyerMessage) -> None:
    """Both are committed together, when the handler has returned."""
    message.also(HAND_OVER, {"chat_id": message.chat.chat_id})
    await message.reply("Вам ответит сотрудник магазина")


@bot.message
async def answer(message: BuyerMessage) -> None:
    if any(row.sender == Sender.CUSTOMER for row in message.later):
        return  # the buyer has written more: the answer to the last message answers all
    if await asyncio.to_thread(is_handed_over, message.chat.chat_id):
        return
    rows = [row async for row in message.history() if row.created_at <= message.created_at]
    rows.sort(key=lambda row: (row.created_at, row.message_id))
    try:
        async with asyncio.timeout(MODEL_TIMEOUT):
            reply = await ask_model(rows)
    except TimeoutError:
        reply = None
    if reply:
        await message.reply(reply[:4096])
    else:
        await hand_over(message)


@bot.error
async def failed(message: BuyerMessage, error: Exception) -> None:
    await hand_over(message)


async def main() -> None:
    await outbox.create()
    with engine.begin() as connection:
        connection.execute(CREATE)
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with bot.running():
        await stop.wait()


if __name__ == "__main__":
    asyncio.run(main())
