"""python asyncpg_orders.py 55: packs an order, and tells the buyer in the same transaction.

YAMARKET_OUTBOX is the shop's own database: postgresql://user:password@host/database
"""

import asyncio
import os
import sys

import asyncpg

from yamarket_chat.outbox import Outbox, OutboxMessage

DATABASE = os.environ["YAMARKET_OUTBOX"]
BUSINESS = int(os.environ["YAMARKET_BUSINESS_ID"])
outbox = Outbox(DATABASE)  # writes the SQL; the connection is asyncpg's


async def pack(connection: asyncpg.Connection, order_id: int) -> None:
    message = OutboxMessage.to_order(
        BUSINESS, order_id, f"Заказ {order_id} собран", key=f"packed-{order_id}"
    )
    statement, parameters = outbox.sql(message, "postgresql", paramstyle="numeric_dollar")
    async with connection.transaction():
        await connection.execute("UPDATE orders SET state = 'packed' WHERE id = $1", order_id)
        await connection.execute(statement, *parameters)


async def main(order_id: int) -> None:
    connection = await asyncpg.connect(DATABASE)
    try:
        await pack(connection, order_id)
    finally:
        await connection.close()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1])))
