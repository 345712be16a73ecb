"""A fuse: it ends a process that stands still between its last look and the bytes of a request.

A worker looks whether it surely still holds the business, and then writes the bytes at once. If the
process is paused exactly between the two, for longer than its lease, another worker has taken over
when it goes on, and the bytes are sent all the same. No look can prevent that. So a timer of the
system is set at each look, and taken away when the bytes are written. If it goes off, the system
ends the process before the process does anything else. Then whoever takes over settles the message.

There is one such timer for a process, so only a program that does nothing else may use it: the
command. It is a signal that nobody handles: a handler in Python would come after the bytes.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class _Fuse:
    """What is set at a look."""

    def __init__(self) -> None:
        self.seconds = 0.0  # 0: there is no fuse
        self._burning = False

    def light(self) -> None:
        """Set the timer. The bytes are written in the same step of the event loop."""
        if not self.seconds:
            return
        signal.setitimer(signal.ITIMER_REAL, self.seconds)
        if not self._burning:
            self._burning = True
            # The write may fail, or the rest of a long body wait until the first part has left.
            asyncio.get_running_loop().call_soon(self._after)

    def put_out(self) -> None:
        """Take the timer away: the bytes are written."""
        if self.seconds:
            signal.setitimer(signal.ITIMER_REAL, 0)

    def _after(self) -> None:
        self._burning = False
        self.put_out()


_fuse = _Fuse()
light: Callable[[], None] = _fuse.light
put_out: Callable[[], None] = _fuse.put_out


@contextmanager
def armed(seconds: float) -> Iterator[None]:
    """End the process if it stands still for so long between a look and the bytes.

    On Windows there is no such timer, and this does nothing.
    """
    if not hasattr(signal, "setitimer"):
        yield
        return
    before = signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGALRM})
    _fuse.seconds = seconds
    try:
        yield
    finally:
        _fuse.put_out()
        _fuse.seconds = 0.0
        signal.signal(signal.SIGALRM, before)
