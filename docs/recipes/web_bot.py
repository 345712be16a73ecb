"""uvicorn web_bot:app --workers 2 --timeout-graceful-shutdown 7"""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from starlette.routing import Route

from yamarket_chat.bot import Bot, BuyerMessage
from yamarket_chat.outbox import Outbox

outbox = Outbox(os.environ["YAMARKET_OUTBOX"])  # each worker uses this database
bot = Bot(outbox, {int(os.environ["YAMARKET_BUSINESS_ID"]): os.environ["YAMARKET_API_KEY"]})


@bot.message
async def answer(message: BuyerMessage) -> None:
    await message.reply(f"Вы написали: {message.text:.4000}")


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    await outbox.create()
    async with bot.running():
        yield
        await bot.receiver.close()


app = FastAPI(lifespan=lifespan)
app.router.routes.append(Route("/notification", bot.receiver.asgi, methods=["POST"]))
