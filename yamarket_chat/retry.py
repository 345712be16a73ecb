"""How often and how long a call is retried."""

from __future__ import annotations

import msgspec

from .arguments import OnUnknown, check_on_unknown
from .errors import InvalidArgumentError
from .limits import CUT_OFF, HOUR
from .system import randomness

# Pauses between attempts, in seconds. They double; each is then shortened at random to no less
# than half, so that many clients do not retry at the same moment.
FIRST_PAUSE = 1.0
LONGEST_PAUSE = 60.0


class Retry(msgspec.Struct, frozen=True, kw_only=True):
    """How often and how long a call is retried.

    Waits for a rate limit count neither as attempts nor as time, and neither do the Market's
    420 responses, except to a download.

    Attributes:
        attempts: How many attempts a call has, at least 1.
        give_up_after: How many seconds a call may spend in attempts and in the pauses between
            them before another attempt begins. It does not end an attempt under way, which takes
            the session's `timeout` at most. If the outcome of that is unknown, settling it takes
            `settle_after` and one reading of the chat's history more.
        settle_after: Seconds to wait after an attempt of unknown outcome before the chat's
            history is read, from 10 to 3600: the Market may carry the request out for 10 s.
        on_unknown: What to do if nothing tells whether a message arrived. "settle" looks for
            it in the chat's history, and sends it again if it is not there. "raise" raises
            DeliveryUnknownError at once.

    Raises:
        InvalidArgumentError: A number makes no sense.

    Example:
        Retry(attempts=5, give_up_after=60)
    """

    attempts: int = 12
    give_up_after: float = 900.0
    settle_after: float = 15.0
    on_unknown: OnUnknown = "settle"

    def __post_init__(self) -> None:
        if type(self.attempts) is not int or self.attempts < 1:
            raise InvalidArgumentError("Retry.attempts is a whole number of at least 1")
        if not _is_number(self.give_up_after) or not self.give_up_after >= 0:
            raise InvalidArgumentError("Retry.give_up_after is a number of seconds, 0 or more")
        if not _is_number(self.settle_after) or not CUT_OFF <= self.settle_after <= HOUR:
            raise InvalidArgumentError(
                f"Retry.settle_after is a number of seconds from {CUT_OFF:g} to {HOUR:g}: for"
                f" {CUT_OFF:g} s the Market may still carry the request out"
            )
        if check_on_unknown(self.on_unknown) is None:
            raise InvalidArgumentError('Retry.on_unknown is "settle" or "raise"')


class Budget(msgspec.Struct, eq=False):
    """How much of its `Retry` a call has used up."""

    retry: Retry
    requests: int = 0  # that were sent
    attempts: int = 0  # the requests without those that got a 420
    spent: float = 0.0  # seconds in attempts and in the pauses after them

    def next_pause(self, at_least: float = 0.0) -> float | None:
        """Return the seconds to wait before the next attempt; None if there is none."""
        # 2 to the power of thousands of attempts is too large for a float.
        longest = min(FIRST_PAUSE * 2.0 ** min(self.attempts - 1, 30), LONGEST_PAUSE)
        pause = max(longest * randomness("retry pauses").uniform(0.5, 1.0), at_least)
        if self.attempts >= self.retry.attempts or self.spent + pause > self.retry.give_up_after:
            return None
        self.spent += pause
        return pause


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
