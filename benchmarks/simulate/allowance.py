"""By when the calls of a story have to be over, at the latest.

The least possible time is that of a perfect client: it sends each message as soon as the limits,
the parallel slots and the order of the chat allow it, and each answer takes as long as the
Market and the network need. To it comes an allowance for everything that went wrong. Without
faults it is a few seconds.
"""

from __future__ import annotations

import heapq
import math
from collections import Counter, deque
from collections.abc import Iterable

from yamarket_chat.limits import CUT_OFF, Limits, Rate

from .program import STARTS_AFTER
from .record import Record, Told
from .story import (
    Access,
    Close,
    Cut,
    Down,
    Kill,
    MarketClock,
    OthersHold,
    OthersUse,
    Outage,
    Read,
    Says,
    Send,
    SendMany,
    Stall,
    Story,
    WallClock,
)

BASE = 2.0
"""Seconds that every story may take longer."""

ROUNDED = 1.5
"""Seconds by which the headers, in whole seconds, may say that a window ends later than it does."""

LONGEST_PAUSE = 60.0
LONGEST_PARALLEL_PAUSE = 30.0
APART = 3.0
AGAIN = 15.0  # between readings of a history in no order
SKEW = 30.0


def latest_end(story: Story, record: Record) -> float:
    """Return the moment by which all calls have to be over."""
    messages = [message for message in record.messages if not message.ended_by_program]
    least = max(_least(story, messages), story.ends())
    return least + _allowance(story, record)


def rate_of(story: Story, operation: str) -> Rate:
    """Return the limit in force of an operation."""
    documented = Limits().rates()[operation]
    own = story.program.limits.get(operation, documented)
    markets = story.market.limits.get(operation, documented)
    return Rate(
        min(own.requests, markets.requests), max(own.per, markets.per), burst=_burst(own, markets)
    )


def _burst(own: Rate, markets: Rate) -> int | None:
    return None if own.burst is None else min(own.burst, markets.requests)


def _least(story: Story, messages: Iterable[Told]) -> float:
    """Return when a perfect client would have sent these messages."""
    takes = _takes(story)
    lines: dict[int, deque[Told]] = {}
    for message in sorted(messages, key=lambda message: message.order):
        lines.setdefault(message.chat, deque()).append(message)
    heads = [(line[0].began, line[0].order, chat) for chat, line in lines.items()]
    heapq.heapify(heads)
    parallel = min(story.program.parallel, story.market.parallel)
    places = [0.0] * parallel
    windows: dict[str, deque[float]] = {}
    paced: dict[str, float] = {}
    end = 0.0
    while heads:
        ready, _, chat = heapq.heappop(heads)
        line = lines[chat]
        operation = line.popleft().operation
        rate = rate_of(story, operation)
        window = windows.setdefault(operation, deque([-math.inf] * rate.requests, rate.requests))
        left = max(ready, heapq.heappop(places), window[0], paced.get(operation, 0.0))
        done = left + takes
        heapq.heappush(places, done)
        window.append(done + rate.per + (ROUNDED if story.market.headers else 0.0))
        if rate.burst is not None and rate.burst < rate.requests:
            paced[operation] = left + rate.per / rate.requests
        end = max(end, done)
        if line:
            heapq.heappush(heads, (max(line[0].began, done), line[0].order, chat))
    return end


def _allowance(story: Story, record: Record) -> float:
    program = story.program
    allowed = BASE
    # A request that was given up, and what follows: the timeout, the wait for the history, the
    # rest of the chat, and a pause. Everything else may wait for that meanwhile.
    trouble = program.timeout + program.settle_after + APART + LONGEST_PAUSE + CUT_OFF
    failed = sum(count for what, count in record.met.items() if what.startswith("fault "))
    allowed += failed * trouble
    allowed += sum(failure.fault.delay for failure in story.failures)
    allowed += sum(STARTS_AFTER for step in story.steps if isinstance(step, Kill))
    for event in story.events:
        seconds = getattr(event, "seconds", 0.0)
        if isinstance(event, Says):
            continue
        if isinstance(event, OthersHold):
            allowed += seconds + LONGEST_PARALLEL_PAUSE + 5.0
        elif isinstance(event, OthersUse):
            allowed += 2 * rate_of(story, event.operation).per + 30.0
        elif isinstance(event, (Down, Access)):
            allowed += seconds + LONGEST_PAUSE + trouble
        elif isinstance(event, MarketClock):
            allowed += abs(event.by) + trouble
        elif isinstance(event, WallClock) and not story.clocks.tells_sleep:
            # It looks like a sleep of so long: nobody knows when what was in progress was sent.
            unknown = sum(m.in_doubt for m in record.messages)
            allowed += (abs(event.by) + trouble) * (1 + unknown)
        else:
            allowed += seconds + 3 * trouble
    allowed += sum(APART + program.settle_after + CUT_OFF for m in record.messages if m.in_doubt)
    if story.market.order == "shuffled" or story.market.page < 100 or story.market.old_rows >= 100:
        allowed += sum(AGAIN for m in record.messages if m.in_doubt)
    allowed += sum(SKEW + 2 for m in record.messages if m.why == "DeliveryUnknownError")
    allowed += sum(getattr(step, "settle", None) or 0.0 for step in story.steps)
    for step in story.steps:
        if isinstance(step, Send) and step.timeout is not None:
            allowed += step.timeout * len(step.then)  # each may be ended by it
        if isinstance(step, Read) and step.cancel is not None:
            allowed += CUT_OFF  # for so long its slot is held
        if isinstance(step, SendMany):
            allowed += (step.stop or 0.0) + step.pause * len(step.messages)
    allowed += sum(step.grace for step in story.steps if isinstance(step, Close))
    if not story.market.headers:  # then a pause after a refusal is a guess, each longer
        refusals = sum(failure.fault.kind == "rate_limit" for failure in story.failures)
        allowed += refusals * max(rate_of(story, name).per for name in Limits().rates())
    refused = record.refused_for_rate + record.refused_in_parallel
    if refused:
        longest = max(rate_of(story, name).per for name in Limits().rates())
        allowed += record.refused_in_parallel * LONGEST_PARALLEL_PAUSE
        allowed += record.refused_for_rate * longest
    return allowed + _ended(story, record) + _repeated(story, record) + _reads(story, record)


def _ended(story: Story, record: Record) -> float:
    """A message that the program ended may have taken its turn in a pace: nothing gives it back.

    By then each process has taken no more turns than its token bucket has let through.
    """
    turns: Counter[tuple[int, int, str]] = Counter()
    last: dict[tuple[int, int, str], float] = {}
    for message in record.messages:
        if message.ended_by_program:
            paced = message.machine, message.life, message.operation
            turns[paced] += 1
            ended = math.inf if message.ended is None else message.ended
            last[paced] = max(last.get(paced, 0.0), ended)
    allowed = 0.0
    for paced, ended in last.items():
        rate = rate_of(story, paced[2])
        if rate.burst is not None:
            apart = rate.per / rate.requests
            allowed += min(turns[paced] * apart, rate.burst * apart + ended)
    return allowed


def _repeated(story: Story, record: Record) -> float:
    """The requests that are not the first of a message take places in the windows as well."""
    allowed = 0.0
    for operation, requests in record.requests_of.items():
        if not operation.startswith("send_"):
            continue
        rate = rate_of(story, operation)
        own = sum(
            1
            for message in record.messages
            if not message.ended_by_program
            and message.fate != "not sent"
            and message.operation == operation
        )
        # A request that a connection lost on the way never came to the Market, and counts as well.
        requests += record.looked_up[operation]
        extra = max(requests - own, 0)
        unseen = 0  # of messages that the program ended while the network carried them
        if _may_lose(story):
            ended = sum(m.ended_by_program and m.operation == operation for m in record.messages)
            unseen = min(ended, max(own + ended - requests, 0))
        if requests + unseen > rate.requests:
            rounds = math.ceil((extra + unseen) / rate.requests)
            allowed += rounds * (rate.per + CUT_OFF + story.program.timeout)
        elif rate.burst is not None:
            allowed += extra * rate.per / rate.requests
        allowed += extra * LONGEST_PAUSE + unseen * (APART + story.program.settle_after + CUT_OFF)
    return allowed


def _may_lose(story: Story) -> bool:
    """Whether what is given up may end on its way to the Market."""
    network = story.network
    losing = (Stall, Cut, Outage, Down)
    return (
        network.most > 0.01
        or network.loss > 0.0
        or any(isinstance(e, losing) for e in story.events)
    )


def _reads(story: Story, record: Record) -> float:
    """Reads take places as well, and are repeated if they fail."""
    allowed = 0.0
    reads = sum(isinstance(step, Read) for step in story.steps)
    reads += sum(message.in_doubt for message in record.messages)
    for operation, requests in record.requests_of.items():
        if operation.startswith("send_"):
            continue
        rate = rate_of(story, operation)
        allowed += requests * _takes(story)
        allowed += requests // rate.requests * (rate.per + CUT_OFF + story.program.timeout)
        allowed += max(requests - reads, 0) * (LONGEST_PAUSE + story.program.timeout)
    return allowed


def _takes(story: Story) -> float:
    return story.market.latency + story.market.jitter + 4 * story.network.most
