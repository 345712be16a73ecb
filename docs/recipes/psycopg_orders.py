"""python psycopg_orders.py 55: packs an order, and tells the buyer in the same transaction.

YAMARKET_OUTBOX is the shop's own database: postgresql://user:password@host/database
"""

import os
import sys

import psycopg

from yamarket_chat.outbox import Outbox, OutboxMessage

DATABASE = os.environ["YAMARKET_OUTBOX"]
BUSINESS = int(os.environ["YAMARKET_BUSINESS_ID"])
outbox = Outbox(DATABASE)


def pack(connection: psycopg.Connection, order_id: int) -> None:
    message = OutboxMessage.to_order(
        BUSINESS, order_id, f"Заказ {order_id} собран", key=f"packed-{order_id}"
    )
    with connection.transaction():
        connection.execute("UPDATE orders SET state = 'packed' WHERE id = %s", [order_id])
        connection.execute(*outbox.sql(message, "postgresql", paramstyle="format"))


if __name__ == "__main__":
    with psycopg.connect(DATABASE) as connection:
        pack(connection, int(sys.argv[1]))
