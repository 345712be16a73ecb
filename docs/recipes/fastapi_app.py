"""uvicorn fastapi_app:app --workers 2 --timeout-graceful-shutdown 7

YAMARKET_OUTBOX is the shop's own database: postgresql+psycopg://user:password@host/database
"""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI, HTTPException
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from yamarket_chat.outbox import Outbox, OutboxMessage

DATABASE = os.environ["YAMARKET_OUTBOX"]
BUSINESS = int(os.environ["YAMARKET_BUSINESS_ID"])

engine = create_async_engine(DATABASE)
sessions = async_sessionmaker(engine)
outbox = Outbox(DATABASE)


class Base(DeclarativeBase):
    pass


class Order(Base):
    __tablename__ = "orders"
    id: Mapped[int] = mapped_column(primary_key=True)
    state: Mapped[str]


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[None]:
    await outbox.create()
    # All workers may deliver: one of them at a time sends for the business.
    async with outbox.delivering({BUSINESS: os.environ["YAMARKET_API_KEY"]}):
        yield
    await outbox.close()
    await engine.dispose()


app = FastAPI(lifespan=lifespan)


@app.post("/orders/{order_id}/packed")
async def packed(order_id: int) -> dict[str, int]:
    """After 200, the order is packed and the buyer will be told, whatever happens to us."""
    async with sessions.begin() as session:
        order = await session.get(Order, order_id, with_for_update=True)
        if order is None:
            raise HTTPException(404)
        order.state = "packed"
        message = OutboxMessage.to_order(
            BUSINESS, order_id, f"Заказ {order_id} собран", key=f"packed-{order_id}"
        )
        number = await outbox.put(message, connection=session)
    return {"message": number}
