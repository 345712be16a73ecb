import asyncio
import os

from yamarket_chat.bot import Bot, BuyerMessage
from yamarket_chat.outbox import Outbox

outbox = Outbox("sqlite:///bot.db")
bot = Bot(outbox, {int(os.environ["YAMARKET_BUSINESS_ID"]): os.environ["YAMARKET_API_KEY"]})


@bot.message
async def answer(message: BuyerMessage) -> None:
    print(f"Chat {message.chat.chat_id}: {message.text}")
    await message.reply(f"Вы написали: {message.text:.4000}")


async def main() -> None:
    await outbox.create()
    await bot.run()


if __name__ == "__main__":
    asyncio.run(main())
