"""python batch.py messages.csv

The messages are in a file beside the CSV, so a run that was killed goes on where it was, and a
run after the last one sends nothing.
"""

import asyncio
import csv
import logging
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

from yamarket_chat import ChatError
from yamarket_chat.outbox import Outbox, OutboxMessage

log = logging.getLogger(__name__)

BUSINESS = int(os.environ["YAMARKET_BUSINESS_ID"])
YEAR = 365 * 24 * 3600


def messages(path: Path) -> Iterator[OutboxMessage]:
    with path.open(encoding="utf-8", newline="") as file:
        for row, record in enumerate(csv.DictReader(file), 1):
            yield OutboxMessage(
                BUSINESS, record["chat_id"], record["text"], key=f"row-{row}", bulk=True
            )


async def main(path: Path) -> int:
    failed = 0
    # Once the outbox has forgotten the messages, another run would send them again.
    async with Outbox(f"sqlite:///{path}.outbox", keep=YEAR) as outbox:
        await outbox.create()
        numbers = await outbox.put_many(messages(path))  # those of an earlier run have their keys
        async with outbox.delivering({BUSINESS: os.environ["YAMARKET_API_KEY"]}, reserve=100):
            for row, number in enumerate(numbers, 1):
                try:
                    await outbox.result(number)
                except ChatError as error:
                    log.error("row %d: %s", row, error)
                    failed += 1
    return 1 if failed else 0


if __name__ == "__main__":
    # As Ctrl-C does: what is under way ends in order.
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    try:
        sys.exit(asyncio.run(main(Path(sys.argv[1]))))
    except KeyboardInterrupt:
        sys.exit(130)
