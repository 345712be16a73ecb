"""The product with one guard left out. Each mutant must be found, or the simulation is too tame."""

from __future__ import annotations

import math
import socket
import sys
from collections.abc import Callable
from typing import Any

import msgspec

from yamarket_chat import connections
from yamarket_chat._delivery import (
    calls,
    deliveries,
    failures,
    histories,
    sending,
    settler,
    settling,
    skew,
    verdict,
)
from yamarket_chat._http import bodies, deadlines, exchange
from yamarket_chat._http.answers import Answer
from yamarket_chat._limits import clock, pace, scheduler, slots, window
from yamarket_chat._limits.clock import MarketClock
from yamarket_chat._limits.scheduler import Scheduler
from yamarket_chat._limits.window import Window

from .mutating import Mutant, Patch, added_to

MUTANTS: dict[str, Mutant] = {}

_mutant = added_to(MUTANTS)


# The order


@_mutant("the calls of a chat go one after another", "all at once")
def no_lines(patch: Patch) -> None:
    patch(Scheduler, "join", lambda self, ticket: None)
    patch(Scheduler, "leave", lambda self, ticket, rest=0.0: None)


@_mutant("a chat rests after a message of unknown outcome", "the next one is sent at once")
def no_rest(patch: Patch) -> None:
    patch(settler.Suspect, "rest", lambda self, now: 0.0)


@_mutant(
    "the rest is 3 s longer than the message may take",
    "not longer",
    story="next-message-waits-until-settle-has-read",
)
def not_apart(patch: Patch) -> None:
    patch(settler, "APART", 0.0)


# Settling


@_mutant("an unknown outcome is settled before it is repeated", "repeated without")
def no_settling(patch: Patch) -> None:
    async def arrived(self: Any, turn: Any, suspect: Any) -> bool:
        turn.suspect = None
        return False

    patch(sending.Sending, "_arrived", arrived)


@_mutant("the history is read 15 s after the attempt", "at once")
def settled_at_once(patch: Patch) -> None:
    _settle_after(patch, lambda seconds: 0.0)


@_mutant("these 15 s", "10 s")
def settled_after_10_s(patch: Patch) -> None:
    _settle_after(patch, lambda seconds: seconds - 5.0)


def _settle_after(patch: Patch, shorter: Callable[[float], float]) -> None:
    original = settler.Settler.suspect

    def suspect(self: Any, chat_id: int, content: Any, doubt: Any, why: str) -> Any:
        made = original(self, chat_id, content, doubt, why)
        until = doubt.attempt.ended + shorter(self._settle_after)
        return msgspec.structs.replace(made, until=until)

    patch(settler.Settler, "suspect", suspect)


@_mutant("`settle` waits until the message cannot arrive any more", "reads at once")
def settle_does_not_wait(patch: Patch) -> None:
    original = settler.Settler.settle

    async def no_wait(seconds: float) -> None:
        pass

    def settle(self: Any, pending: Any, read: Any, wait: Any, under_way: Any) -> Any:
        return original(self, pending, read, no_wait, under_way)

    patch(settler.Settler, "settle", settle)


def _find(patch: Patch, find: Callable[..., settling.Found]) -> None:
    patch(histories, "find", find)


@_mutant("only a row near the attempt can be the message", "any equal row is it")
def any_equal_row(patch: Patch) -> None:
    def find(rows: Any, wanted: Any, before: Any, *_: Any) -> settling.Found:
        equal = any(row.content == wanted.content for row in settling.rows_of_shop(rows))
        return settling.Found.YES if equal else settling.Found.NO

    def last(rows: Any, wanted: Any, offset: Any) -> int:
        equal = [row for row in settling.rows_of_shop(rows) if row.content == wanted.content]
        return equal[-1].id

    _find(patch, find)
    patch(settler, "last_equal", last)


@_mutant("what was sent shortly before explains equal rows", "nothing does")
def nothing_before(patch: Patch) -> None:
    original = settling.find

    def find(rows: Any, wanted: Any, before: Any, *others: Any) -> settling.Found:
        return original(rows, wanted, (), *others)

    _find(patch, find)


@_mutant(
    "a message of unknown outcome explains rows later on",
    "it is forgotten",
    story="not-sent-after-an-equal-text-in-doubt",
)
def suspects_are_forgotten(patch: Patch) -> None:
    original = deliveries.Deliveries.remember

    def remember(self: Any, delivery: Any) -> None:
        if delivery.surely:
            original(self, delivery)

    patch(deliveries.Deliveries, "remember", remember)


@_mutant(
    "a message equal to one of unknown outcome waits",
    "it does not wait",
    story="settled-minutes-later-beside-an-equal-text",
)
def equal_ones_do_not_wait(patch: Patch) -> None:
    patch(sending.Sending, "_keep_apart", lambda self, turn: None)


@_mutant(
    "an equal row that is older than what is remembered forbids a YES",
    "it does not",
    story="clock-set-back-by-minutes-among-equal-texts",
)
def forgotten_rows(patch: Patch) -> None:
    original = settling.find

    def find(
        rows: Any, wanted: Any, before: Any, offset: Any, since: float, after: Any, _: float
    ) -> settling.Found:
        return original(rows, wanted, before, offset, since, after)

    _find(patch, find)


@_mutant(
    "equal messages are looked for under one offset of the clocks",
    "each one under an offset of its own",
    story="equal-text-of-an-earlier-process-beside-a-storage-ahead",
)
def offset_of_its_own(patch: Patch) -> None:
    def fit(equal: Any, items: Any, offset: settling.Offset) -> bool:
        every = offset.all()
        return settling._paired(equal, items, every[0], every[-1]) == len(items)

    patch(settling, "_fit_together", fit)


@_mutant(
    "a message found in a history is known by the id of its row",
    "by its time",
    story="storage-set-back-after-equal-texts-were-found",
)
def no_row_ids(patch: Patch) -> None:
    original = settler.Suspect.delivery

    def delivery(self: Any, *, surely: bool, row_id: int | None = None) -> Any:
        return original(self, surely=surely)

    patch(settler.Suspect, "delivery", delivery)


@_mutant("deliveries are remembered for two minutes", "for 5 s")
def short_memory(patch: Patch) -> None:
    patch(deliveries, "REMEMBERED", 5.0)


@_mutant("rows and Dates have whole seconds", "they are taken to be exact")
def exact_seconds(patch: Patch) -> None:
    def explains(items: Any, stored: Any, since: float) -> bool:
        explained = {0}
        for item in items:
            if item.latest < since:
                continue
            following = set()
            for count in explained:
                if not item.surely or item.earliest < since:
                    following.add(count)
                if count < len(stored):
                    at, content = stored[count]
                    if content == item.content and item.earliest <= at <= item.latest:
                        following.add(count + 1)
            explained = following
        return len(stored) in explained

    patch(settling, "_explains", explains)
    patch(settling, "BEHIND", 0.0)
    patch(settling, "AHEAD", 0.0)


# The clocks


@_mutant("the storage's clock may differ by 30 s", "it does not")
def no_skew(patch: Patch) -> None:
    patch(settling.Offset, "all", lambda self: range(1))
    patch(settling.Offset, "likely", lambda self: range(1))


@_mutant(
    "a learnt offset has a margin of 2 s",
    "none",
    story="storage-set-back-by-seconds-after-its-offset-was-learnt",
)
def no_margin(patch: Patch) -> None:
    patch(skew, "MARGIN", 0.0)


@_mutant(
    "a learnt offset that does not agree is widened",
    "the latest one counts",
    story="storage-set-between-what-two-chats-showed",
)
def latest_offset(patch: Patch) -> None:
    original = skew.Skew.learn

    def learn(self: Any, rows: Any, delivered: Any, now: float) -> None:
        before, self._until = (self._learnt, self._until), -math.inf
        original(self, rows, delivered, now)
        if self._until == -math.inf:  # there was nothing to learn
            self._learnt, self._until = before

    patch(skew.Skew, "learn", learn)


@_mutant(
    "what was learnt of the offset is forgotten after an unclear outcome",
    "it is kept",
    story="storage-set-back-as-one-is-ended",
)
def offset_is_kept(patch: Patch) -> None:
    patch(skew.Skew, "forget", lambda self, since: None)


@_mutant("the clock around a moment counts", "the latest one counts")
def latest_clock(patch: Patch) -> None:
    patch(MarketClock, "at", lambda self, moment: self.now())


@_mutant("two Dates that do not agree make a moment unsure", "the first one counts")
def clocks_agree(patch: Patch) -> None:
    patch(clock, "span", lambda clocks: clocks[0])


@_mutant("the system's clock tells of a sleep before the first Date", "nothing does")
def no_sleep(patch: Patch) -> None:
    patch(clock, "stood_still", lambda loop: 0.0)


# The history


@_mutant("a history descends if 12 rows do", "if one does")
def one_row_descends(patch: Patch) -> None:
    patch(histories, "PROVEN", 1)


@_mutant(
    "a history in no order is read until it is the same twice",
    "once",
    aim=("order", "pages", "replicas", "buyers", "gives no answer", "old rows"),
)
def read_once(patch: Patch) -> None:
    async def read_history(read: Any, oldest_needed: Any, wait: Any) -> Any:
        return await histories._read(read, oldest_needed)

    patch(settler, "read_history", read_history)


@_mutant(
    "a history was in order if its times rise or fall twelve times",
    "if they rise or fall only",
    story="history-seems-to-be-in-order",
)
def in_order_by_chance(patch: Patch) -> None:
    async def read_history(read: Any, oldest_needed: Any, wait: Any) -> Any:
        for _ in range(histories.READINGS):
            history = await histories._read(read, oldest_needed)
            times = [row.created_at for row in history.rows]
            if history.in_order or times in (sorted(times), sorted(times, reverse=True)):
                return history
            await wait(histories.SHOWS_WITHIN)
        return msgspec.structs.replace(history, changed=True)

    patch(settler, "read_history", read_history)


# The limits


@_mutant(
    "a 420 without a text is for parallel requests if the headers leave some",
    "it closes the window",
    story="refused-in-parallel-and-cut-off",
)
def refused_without_text(patch: Patch) -> None:
    patch(calls, "requests_remain", lambda headers: False)


@_mutant("a parallel slot of a request given up is held", "it is free at once")
def free_places(patch: Patch) -> None:
    def unanswered(self: Any, attempt: Any) -> None:
        self._held -= 1

    patch(slots.Slots, "unanswered", unanswered)


@_mutant("a parallel slot is held after an answer that is not the Market's", "it is free at once")
def proxy_frees_slot(patch: Patch) -> None:
    original = Scheduler.unanswered

    def unanswered(self: Any, ticket: Any, attempt: Any, *, sent: bool) -> None:
        if isinstance(sys._getframe(1).f_locals.get("seen"), Answer):
            self.answered(ticket, attempt, {})
        else:
            original(self, ticket, attempt, sent=sent)

    patch(Scheduler, "unanswered", unanswered)


@_mutant("a request given up counts in the window", "it does not")
def free_window(patch: Patch) -> None:
    def unanswered(self: Any, attempt: Any) -> None:
        self._under_way -= 1

    patch(Window, "unanswered", unanswered)


@_mutant(
    "it counts from when the Market has ended it",
    "from when it was given up",
    aim=("tight", "cancels", "uneven"),
)
def window_without_cut_off(patch: Patch) -> None:
    patch(window, "CUT_OFF", 0.0)


@_mutant("a request counts from its answer on", "from its departure on")
def window_from_departure(patch: Patch) -> None:
    original = Window._ended

    def ended(self: Any, attempt: Any, market_limit: Any) -> None:
        at = attempt.ended
        attempt.ended = attempt.began
        original(self, attempt, market_limit)
        attempt.ended = at

    patch(Window, "_ended", ended)


@_mutant("a token bucket paces the requests", "nothing does")
def no_pace(patch: Patch) -> None:
    patch(pace.Pace, "has", lambda self, tokens: True)
    patch(pace.Pace, "wait", lambda self, tokens: 0.0)
    patch(pace.Pace, "draw", lambda self: None)


@_mutant("the window bounds what a token bucket lets through", "the bucket alone does")
def bucket_alone(patch: Patch) -> None:
    patch(Window, "_taken", lambda self, now: 0)


@_mutant(
    "a token is drawn as a request leaves",
    "as a call begins to wait",
    aim=("cancels", "burst", "tight"),
)
def early_tokens(patch: Patch) -> None:
    original = Scheduler.drop

    def drop(self: Any, ticket: Any, *, sent: bool) -> None:
        if ticket.wait is not None:
            bucket = self._queues[ticket.operation].window._pace._limiter
            bucket.has_capacity(1)  # it leaks as it is asked
            bucket._level += 1
        original(self, ticket, sent=sent)

    patch(Scheduler, "drop", drop)


@_mutant("what a cancelled call holds is given back", "it is kept")
def nothing_given_back(patch: Patch) -> None:
    patch(scheduler.Scheduler, "_ungrant", _ungrant_if_sent)


def _ungrant_if_sent(self: Any, ticket: Any) -> None:
    ticket.granted = False
    if ticket.wait is None and ticket.future is None and _is_dropped():
        return
    self._queues[ticket.operation].window.give_back()
    self._slots.give_back()


def _is_dropped() -> bool:
    return sys._getframe(2).f_code.co_name == "drop"


@_mutant("granted requests count until they are sent", "only sent ones count")
def grants_do_not_count(patch: Patch) -> None:
    patch(Window, "grant", lambda self: None)
    patch(Window, "give_back", lambda self: None)


@_mutant("a chat is skipped while its message is settled", "its place is held meanwhile")
def place_held_while_settling(patch: Patch) -> None:
    original = sending.Sending._arrived

    async def arrived(self: Any, turn: Any, suspect: Any) -> bool:
        self.scheduler._slots.take()
        try:
            return await original(self, turn, suspect)
        finally:
            self.scheduler._slots.give_back()

    patch(sending.Sending, "_arrived", arrived)


# The connections


@_mutant("a connection that has received anything is not used", "it is used")
def unread_bytes(patch: Patch) -> None:
    original = bodies.RequestBody.begin

    def begin(self: Any, writer: Any) -> None:
        self.sent = False
        original(self, writer)

    patch(bodies, "is_readable", lambda protocol, transport: False)
    patch(bodies.RequestBody, "begin", begin)
    patch(bodies.RequestBody, "sent", True)  # or an answer before the request is seen to be none


@_mutant(
    "a connection is not used again after an answer that is not the API's",
    "it is used",
    aim=("stray", "few places", "slow"),
)
def strange_answers(patch: Patch) -> None:
    original = bodies.RequestBody.give_up

    def give_up(self: Any) -> None:
        if sys._getframe(1).f_code is not calls.Calls.call.__code__:
            original(self)

    patch(bodies.RequestBody, "give_up", give_up)


@_mutant("an equal row that nothing explains forbids a NO", "it does not")
def unexplained_rows(patch: Patch) -> None:
    patch(settling, "_are_explained", lambda equal, items, wanted: True)


@_mutant(
    "what is sent after a message that is settled explains equal rows",
    "nothing does",
    story="not-sent-before-an-equal-text",
)
def nothing_after(patch: Patch) -> None:
    original = settling.find

    def find(
        rows: Any, wanted: Any, before: Any, offset: Any, since: float, _: Any, *others: Any
    ) -> settling.Found:
        return original(rows, wanted, before, offset, since, (), *others)

    _find(patch, find)


@_mutant("an answer has a trace of its own", "any answer is taken")
def any_trace(patch: Patch) -> None:
    patch(exchange._Traces, "is_again", lambda self, parent: False)


@_mutant("a connection that was given up is aborted, and its bytes discarded", "it is closed")
def no_discard(patch: Patch) -> None:
    def give_up(self: Any) -> None:
        self.over = True

    original = connections._make_socket

    def make(address: Any) -> Any:
        made = original(address)
        getattr(made, "options", {}).pop((socket.SOL_SOCKET, socket.SO_LINGER), None)
        return made

    patch(bodies.RequestBody, "give_up", give_up)
    patch(connections, "_make_socket", make)


@_mutant(
    "the kernel gives up what is not acknowledged, at once if the request was given up",
    "it goes on",
    aim=("outage", "blocks", "raises", "short timeout", "last moment", "fails"),
)
def no_user_timeout(patch: Patch) -> None:
    patch(connections, "_limit_repeats", lambda sock, milliseconds: None)


@_mutant("aiohttp may not repeat a request", "it repeats a GET whose connection breaks")
def repeated_gets(patch: Patch) -> None:
    original = bodies.RequestBody.begin

    def begin(self: Any, writer: Any) -> None:
        self.sent = False
        original(self, writer)
        self._consumed = False

    patch(bodies.RequestBody, "begin", begin)


@_mutant("a request has a timeout", "none")
def no_timeout(patch: Patch) -> None:
    patch(deadlines.Deadlines, "start", lambda self, attempt: None)


# The verdict


def _judge(patch: Patch, statuses: dict[int, verdict.Verdict]) -> None:
    original = verdict.judge

    def judge(seen: Any) -> verdict.Verdict:
        status = getattr(seen, "status", None)
        if status in statuses:
            return statuses[status]
        return original(seen)

    for owner in (verdict, calls, failures):
        patch(owner, "judge", judge)


@_mutant("500, 502 and 504 are unknown outcomes", "surely not carried out")
def server_errors_repeated(patch: Patch) -> None:
    not_carried_out = verdict.Verdict.NOT_CARRIED_OUT
    _judge(patch, {500: not_carried_out, 502: not_carried_out, 504: not_carried_out})


@_mutant("503 in another form than the API's is unknown", "surely not carried out")
def any_503(patch: Patch) -> None:
    _judge(patch, {503: verdict.Verdict.NOT_CARRIED_OUT})


@_mutant("408 and 499 are unknown outcomes", "refused for good")
def timeouts_refused(patch: Patch) -> None:
    _judge(patch, {408: verdict.Verdict.REFUSED, 499: verdict.Verdict.REFUSED})


@_mutant("an undocumented 4xx in another form is unknown", "refused for good")
def any_4xx(patch: Patch) -> None:
    _judge(patch, {418: verdict.Verdict.REFUSED})


@_mutant("a redirect is an unknown outcome", "refused for good")
def redirects_refused(patch: Patch) -> None:
    _judge(patch, {302: verdict.Verdict.REFUSED})


@_mutant("a 200 counts if it has the API's form", "each one does")
def any_200(patch: Patch) -> None:
    patch(calls, "is_done", lambda answer: answer.status == 200)
