"""Running a command until it ends or a signal ends it: Ctrl-C, SIGTERM or SIGHUP.

The first signal cancels the command's main task, so that the command can end in order and report
what it did. The second signal cancels the task once more: then it must end at once.
"""

from __future__ import annotations

import asyncio
import math
import signal
import socket
import threading
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from types import FrameType
from typing import Any, ParamSpec, TypeVar

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")

TICK = 0.1
"""Seconds after which a signal is handled at the latest."""

CANCELLED_BY = 2
"""The number of signals that cancel the main task. The next one ends it even if it hangs."""

NAMES = ("SIGINT", "SIGTERM", "SIGHUP")  # Windows has no SIGHUP


class Stopped(SystemExit):
    """A signal ends the command.

    This is a SystemExit, because asyncio swallows other exceptions if one of its callbacks runs.
    """

    def __init__(self, number: int) -> None:
        self.status: int = 128 + number
        """The exit status, as a shell reports it: 130 for Ctrl-C, 143 for SIGTERM."""
        super().__init__(self.status)


class _Handler:
    def __init__(self) -> None:
        self.received: list[int] = []
        self.task: asyncio.Task[Any] | None = None
        self.stopping: asyncio.Event = asyncio.Event()

    @property
    def first(self) -> int | None:
        return self.received[0] if self.received else None

    def __call__(self, number: int, _: FrameType | None) -> None:
        self.received.append(number)
        if self.task is None or len(self.received) > CANCELLED_BY:
            raise Stopped(number)
        # An exception would run through the coroutines, and their sessions would end in order.
        self.task.cancel()
        self.task.get_loop().call_soon_threadsafe(self.stopping.set)


_handler = _Handler()


@contextmanager
def handled() -> Iterator[None]:
    """Handle the signals in the block. Signals that are ignored, such as by nohup, stay so."""
    _handler.received, _handler.task = [], None
    before = {}
    try:
        if threading.current_thread() is threading.main_thread():
            for name in NAMES:
                number = getattr(signal, name, None)
                if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
                    before[number] = signal.signal(number, _handler)
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)


def interrupted() -> str:
    """Describe the first signal for the user, at the beginning of a sentence."""
    if _by_ctrl_c():
        return "Interrupted"
    return f"Interrupted by {signal.Signals(_handler.first or signal.SIGINT).name}"


def again() -> str:
    """Say how the user quits at once."""
    return "Press Ctrl-C again" if _by_ctrl_c() else "Send a second signal"


def _by_ctrl_c() -> bool:
    return _handler.first in (None, signal.SIGINT)


def exit_status(otherwise: int = 128 + signal.SIGINT) -> int:
    """Return the exit status after the first signal: 130, 143 or 129."""
    return otherwise if _handler.first is None else 128 + _handler.first


def last_status() -> int:
    """Return the exit status after the last signal."""
    return 128 + (_handler.received[-1] if _handler.received else signal.SIGINT)


def run(work: Coroutine[Any, Any, Result], resolve_within: float = math.inf) -> Result:
    """Run a coroutine on a new event loop. A signal cancels it.

    Looking up a host name fails after `resolve_within` seconds, and at the first signal.

    Raises Stopped if the coroutine does not handle the cancellation.
    """

    async def main() -> Result:
        _handler.task = asyncio.current_task()
        try:
            return await work
        finally:
            _handler.task = None

    _handler.stopping = asyncio.Event()
    with asyncio.Runner() as runner:
        runner.get_loop().set_exception_handler(_report_error)
        _tick(runner.get_loop())
        _bound_resolver(runner.get_loop(), resolve_within)
        try:
            return runner.run(main())
        except asyncio.CancelledError:
            if not _handler.received:
                raise
            raise Stopped(_handler.received[-1]) from None


def _tick(loop: asyncio.AbstractEventLoop) -> None:
    # A signal that comes just before the loop starts to wait would be handled only after the wait.
    loop.call_later(TICK, _tick, loop)


def _report_error(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    if not isinstance(context.get("exception"), Stopped):
        loop.default_exception_handler(context)


def _bound_resolver(loop: asyncio.AbstractEventLoop, seconds: float) -> None:
    """Let looking up a host name fail in time. The system's resolver may hang for a minute."""
    resolve = loop.getaddrinfo

    async def getaddrinfo(*args: Any, **kwargs: Any) -> Any:
        lookup = asyncio.ensure_future(resolve(*args, **kwargs))
        stopping = asyncio.ensure_future(_handler.stopping.wait())
        try:
            await asyncio.wait(
                {lookup, stopping},
                timeout=None if seconds == math.inf else seconds,
                return_when=asyncio.FIRST_COMPLETED,
            )
            if lookup.done():
                return lookup.result()
            raise socket.gaierror(socket.EAI_AGAIN, "the resolver of host names does not answer")
        finally:
            lookup.cancel()
            stopping.cancel()

    loop.getaddrinfo = getaddrinfo  # type: ignore[method-assign]
    loop.set_default_executor(_DaemonThreads())


class _DaemonThreads(ThreadPoolExecutor):
    """Runs each call in a thread that does not keep the process alive.

    The event loop looks up host names in a thread, and nothing can interrupt a lookup. With the
    usual executor, the command would wait at its end for a resolver that hangs.
    """

    def submit(
        self,
        fn: Callable[Parameters, Result],
        /,
        *args: Parameters.args,
        **kwargs: Parameters.kwargs,
    ) -> Future[Result]:
        future: Future[Result] = Future()

        def call() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                result = fn(*args, **kwargs)
            except BaseException as error:  # noqa: BLE001 - the caller gets it
                future.set_exception(error)
            else:
                future.set_result(result)

        threading.Thread(target=call, daemon=True).start()
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Do not wait for the threads."""
