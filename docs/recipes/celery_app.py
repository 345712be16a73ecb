"""celery -A celery_app worker

A task puts a message, and is done. `yamarket-chat outbox deliver` sends it.
"""

import asyncio
import os

from celery import Celery

from yamarket_chat.outbox import Outbox, OutboxDatabaseError, OutboxMessage

BUSINESS = int(os.environ["YAMARKET_BUSINESS_ID"])
outbox = Outbox(os.environ["YAMARKET_OUTBOX"])

app = Celery("shop")
app.config_from_object("celeryconfig")  # yours: the broker
# A task that a kill broke off runs again. The key makes that harmless.
app.conf.task_acks_late = True
app.conf.task_reject_on_worker_lost = True


@app.task(autoretry_for=(OutboxDatabaseError,), max_retries=None, retry_backoff=True)
def packed(order_id: int) -> None:
    message = OutboxMessage.to_order(
        BUSINESS, order_id, f"Заказ {order_id} собран", key=f"packed-{order_id}"
    )
    asyncio.run(outbox.put(message))
