"""celery -A celery_app worker --pool threads --concurrency 16

All tasks of the worker share one session, on one event loop in a thread of its own.
"""

import asyncio
import threading
from collections.abc import Coroutine
from typing import Any, TypeVar

import msgspec
from celery import Celery, Task, signals

from yamarket_chat import (
    ChatError,
    ChatSession,
    DeliveryUnknownError,
    Pending,
    SessionClosedError,
)

T = TypeVar("T")

app = Celery("chats")
app.config_from_object("celeryconfig")  # yours: the broker
# A broker delivers a task once more if it is not acknowledged, and then its message arrives twice.
# So a task is acknowledged before it runs, and none waits for long in the worker: Redis delivers
# it to another worker after `visibility_timeout`, an hour.
app.conf.task_acks_late = False
app.conf.worker_prefetch_multiplier = 1
LONGEST_COUNTDOWN = 600.0


class Worker:
    """An event loop in a thread, and the session that lives on it."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self.session = ChatSession(max_wait=10)

    def run(self, call: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(call, self._loop).result()

    def begin_to_close(self) -> None:
        asyncio.run_coroutine_threadsafe(self.session.close(grace=20), self._loop)

    def close(self) -> None:
        self.run(self.session.close(grace=20))
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


_workers: list[Worker] = []


@signals.worker_init.connect
def start(**_: object) -> None:
    _workers.append(Worker())


@signals.worker_shutting_down.connect
def closing(**_: object) -> None:
    for worker in _workers:
        worker.begin_to_close()  # the tasks that run end soon, and Celery waits for them


@signals.worker_shutdown.connect
def stop(**_: object) -> None:
    _workers.pop().close()


def again(task: "Task[Any, Any]", error: ChatError) -> Exception:
    """The error with which a task is retried later, or fails."""
    if isinstance(error, SessionClosedError):
        return task.retry(countdown=1, exc=error)  # this worker ends: another one does it
    if error.retry_after is None:
        return error
    return task.retry(countdown=min(error.retry_after, LONGEST_COUNTDOWN), exc=error)


@app.task(bind=True, max_retries=None)
def send(self: "Task[Any, Any]", chat_id: int, text: str) -> None:
    worker = _workers[0]
    try:
        worker.run(worker.session.send_message(chat_id, text))
    except DeliveryUnknownError as error:  # it may have arrived: do not send it again
        settle.delay(msgspec.json.encode(error.pending).decode())
    except ChatError as error:  # surely not sent
        raise again(self, error) from None


@app.task(bind=True, max_retries=None)
def settle(self: "Task[Any, Any]", stored: str) -> None:
    worker = _workers[0]
    pending = msgspec.json.decode(stored, type=Pending)
    try:
        arrived = worker.run(worker.session.settle(pending))
    except ChatError as error:  # a DeliveryUnknownError fails: a person has to look
        raise again(self, error) from None
    if arrived is None and pending.text is not None:
        send.delay(pending.chat_id, pending.text)
