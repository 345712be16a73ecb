"""The token bucket: how fast requests may follow one another."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..limits import Rate

if TYPE_CHECKING:
    from aiolimiter import AsyncLimiter

TOKENS_AT_A_TIME = 16

# Seconds. Rounding may leave the sum of floats short of a whole token by less than this.
SHORTEST_WAIT = 1e-6


class Pace:
    """aiolimiter's token bucket, asked without waiting.

    A token is drawn when a request is sent, and not when it is granted: aiolimiter cannot take a
    token back, so a call that is cancelled while it waits costs none. If all requests of the
    period may be sent at once, some tokens are drawn ahead (the window bounds the burst anyway,
    and a send gets 3 % cheaper), and the token of a request that was never sent is kept.
    """

    def __init__(self, rate: Rate) -> None:
        # Imported late, because it is a quarter of the time of `import yamarket_chat`.
        from aiolimiter import AsyncLimiter

        burst = rate.burst or rate.requests
        self._limiter = AsyncLimiter(burst, burst * rate.per / rate.requests)
        self._all_at_once = burst == rate.requests
        self._at_a_time = min(TOKENS_AT_A_TIME, rate.requests) if self._all_at_once else 1
        self._interval = rate.per / rate.requests  # seconds in which it gains a token
        self._drawn = 0  # tokens drawn ahead

    def has(self, tokens: int) -> bool:
        """Whether so many requests may be sent now."""
        return self._drawn >= tokens or self._limiter.has_capacity(tokens - self._drawn)

    def draw(self) -> None:
        """Draw the token of a request that is sent now."""
        if not self._drawn:
            self._drawn = _draw(self._limiter, self._at_a_time)
        self._drawn -= 1

    def give_back(self) -> None:
        """Keep the token of a request that was never sent."""
        if self._all_at_once:  # with a smaller burst, a kept token would make the burst larger
            self._drawn += 1

    def wait(self, tokens: int) -> float:
        """Return the seconds until so many requests may be sent; 0 if they may now."""
        missing = tokens - self._drawn
        if missing <= 0 or self._limiter.has_capacity(missing):
            return 0.0
        return max((missing - self._tokens()) * self._interval, SHORTEST_WAIT)

    def _tokens(self) -> float:
        # aiolimiter only says whether it has a number of tokens, so the number is bisected.
        low, high = 0.0, float(self._limiter.max_rate)
        if self._limiter.has_capacity(high):
            return high
        while high - low > 1e-6:
            middle = (low + high) / 2
            if self._limiter.has_capacity(middle):
                low = middle
            else:
                high = middle
        return low


def _draw(limiter: AsyncLimiter, at_a_time: int) -> int:
    """Draw some tokens without waiting, or else one, which the limiter was seen to have."""
    tokens = at_a_time if limiter.has_capacity(at_a_time) else 1
    drawing = limiter.acquire(tokens)
    try:
        drawing.send(None)
    except StopIteration:
        return tokens
    # Because of rounding, the token is not quite there yet. It will be in a moment.
    drawing.close()
    return 1
