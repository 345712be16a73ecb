"""The outbox with one guard left out. Each mutant must be found, or the simulation is too tame."""

from __future__ import annotations

import os
from typing import Any

from sqlalchemy import bindparam, update

from yamarket_chat._delivery.departing import DepartingEngine
from yamarket_chat.outbox import claims, courier, earlier, marks, points, settling
from yamarket_chat.outbox.checkpoint import Passage
from yamarket_chat.outbox.deaths import Moment, Watcher
from yamarket_chat.outbox.hand import Hand
from yamarket_chat.outbox.lease import Worker
from yamarket_chat.outbox.schema import messages

from ..mutants import settle_does_not_wait
from ..mutating import Mutant, Patch, added_to
from .seams import Locks

MUTANTS: dict[str, Mutant] = {}

_mutant = added_to(MUTANTS)


# Around a send


@_mutant("a request is marked before it leaves", "only the end is written")
def no_mark(patch: Patch) -> None:
    async def mark(self: Any, pending: Any) -> None:
        self._marking = Moment.now()

    original = courier.Courier.end

    def end(self: Any, row: Any, *args: Any) -> None:
        row.leaving = False
        original(self, row, *args)

    patch(Passage, "mark", mark)
    patch(courier.Courier, "end", end)


@_mutant("a last look at the mark and the beat", "the bytes leave in any case")
def no_look(patch: Patch) -> None:
    original = Passage.look

    def look(self: Any, *, again: bool) -> str | None:
        if again:
            return original(self, again=again)
        points.reach("before the look")
        return None

    patch(Passage, "look", look)


@_mutant(
    "a second look before the last bytes of a large file",
    "they leave in any case",
    story="paused-before-the-last-byte-of-a-file",
)
def no_second_look(patch: Patch) -> None:
    original = Passage.look

    def look(self: Any, *, again: bool) -> str | None:
        if not again:
            return original(self, again=again)
        points.reach("half written")
        return None

    patch(Passage, "look", look)


def _trust_for_ever(patch: Patch) -> None:
    patch(Passage, "_holds", lambda self: not self._grant.over)


def _mark_without_lease(patch: Patch) -> None:
    original = marks._refusal

    def refusal(one: Any, row: Any) -> str | None:
        said = original(one, row)
        return None if said == marks.NOT_OURS else said

    patch(marks, "_refusal", refusal)


@_mutant(
    "a mark needs the request number that is known", "any", story="mark-that-is-committed-late"
)
def mark_without_number(patch: Patch) -> None:
    original = marks._refusal

    class Same:
        def __init__(self, row: Any, number: int) -> None:
            self.__dict__.update(row._mapping, request=number)

    def refusal(one: Any, row: Any) -> str | None:
        return original(one, None if row is None else Same(row, one.request))

    patch(marks, "_refusal", refusal)


@_mutant("a mark waits for earlier messages of its chat", "it does not")
def mark_before_earlier(patch: Patch) -> None:
    original = marks._refusal

    def refusal(one: Any, row: Any) -> str | None:
        said = original(one, row)
        return None if said == marks.EARLIER else said

    patch(marks, "_refusal", refusal)


@_mutant(
    "an end needs the state and request that its mark has left",
    "the number alone",
    story="end-that-is-committed-late",
)
def any_end(patch: Patch) -> None:
    row = messages.c
    patch(
        marks,
        "_END",
        update(messages)
        .where(row.number == bindparam("b_number"))
        .values(
            state=bindparam("b_state"),
            ended_at=bindparam("b_ended_at"),
            outcome=bindparam("b_outcome"),
            pending=bindparam("b_pending"),
            untold=bindparam("b_untold"),
        ),
    )


# Take-overs


def _no_epoch(patch: Patch) -> None:
    def move(connection: Any, condition: Any, to: Any) -> None:
        claims._change(connection, condition, worker=to, wanted=None)

    patch(claims, "_move", move)


@_mutant("who takes over settles what is marked", "sends it again")
def no_settling(patch: Patch) -> None:
    original = courier.Courier._take

    def take(self: Any, found: Any, *, first: bool = False) -> None:
        original(self, [_Own(read, self.grant.epoch) for read in found], first=False)

    class _Own:
        def __init__(self, read: Any, epoch: int) -> None:
            self.__dict__.update(read._mapping, epoch=epoch)

    refusal = marks._refusal

    def refuse(one: Any, row: Any) -> str | None:
        if row is not None and row.state == "leaving":
            row = _Own(row, one.epoch)
        return refusal(one, row)

    patch(courier.Courier, "_take", take)
    patch(marks, "_refusal", refuse)


@_mutant("settling waits until the request cannot be carried out any more", "at once")
def no_wait(patch: Patch) -> None:
    patch(settling.Settling, "moment", lambda self, read: self._loop.time())
    settle_does_not_wait(patch)


@_mutant(
    "settling counts from the beat that the mark names",
    "from the first one of its worker",
    story="sent-late-by-the-kernel-of-a-paused-process",
)
def any_beat(patch: Patch) -> None:
    patch(Worker, "beat", property(lambda self: 0))


@_mutant(
    "settling counts how long a kernel may hold a request",
    "not",
    story="sent-late-by-the-kernel-of-a-paused-process",
)
def no_kernel(patch: Patch) -> None:
    original = settling.Settling.moment

    class Held:
        def __init__(self, read: Any) -> None:
            self.__dict__.update(read._mapping, arrives_within=0.0)

    patch(settling.Settling, "moment", lambda self, read: original(self, Held(read)))


@_mutant(
    "a mark says until when its request may arrive if it leaves late",
    "if it leaves at once",
    story="leaves-long-after-its-mark",
)
def leaves_at_once(patch: Patch) -> None:
    patch(Passage, "_until", lambda self, pending: pending)


@_mutant("a chat waits until what is marked in it is settled", "it goes on")
def chat_goes_on(patch: Patch) -> None:
    def settle(self: Any, row: Any, chat_id: int) -> None:
        self.keep(row)

    patch(Hand, "settle", settle)
    patch(Hand, "settled", lambda self, chat_id: None)
    mark_before_earlier(patch)


@_mutant(
    "who takes over knows what was delivered lately",
    "nothing",
    story="equal-text-after-a-restart-with-a-clock-behind",
)
def nothing_known(patch: Patch) -> None:
    patch(DepartingEngine, "remember", lambda self, chat_id, stored: None)


@_mutant("who takes over counts what left in the last hour", "nothing")
def no_counts(patch: Patch) -> None:
    original = DepartingEngine.count

    def count(self: Any, operation: str, leave_at: Any, *, held: bool = False) -> None:
        if held:
            original(self, operation, leave_at, held=held)

    patch(DepartingEngine, "count", count)


@_mutant(
    "who takes over holds parallel slots for what may be under way",
    "none",
    story="restarted-while-a-request-is-under-way",
)
def no_slots(patch: Patch) -> None:
    original = DepartingEngine.count

    def count(self: Any, operation: str, leave_at: Any, *, held: bool = False) -> None:
        if not held:
            original(self, operation, leave_at)

    patch(DepartingEngine, "count", count)


@_mutant(
    "who takes over knows in which order the messages of a second were sent",
    "by when each was stored at the latest",
    story="three-in-a-second-from-two-processes",
)
def order_by_latest(patch: Patch) -> None:
    patch(earlier, "_in_order_of_sending", lambda sent: sent[1].latest)


@_mutant(
    "who takes over from a dead process sends one request at a time for 10 s",
    "as many as it may",
    story="killed-while-it-reads",
)
def no_room_for_reads(patch: Patch) -> None:
    patch(earlier, "hold_for_reads", lambda engine, grant, parallel, held: None)


# Leases


@_mutant("a worker is dead if its beat stands still for a lease", "for half of one")
def quick_death(patch: Patch) -> None:
    original = Watcher.read

    def read(self: Any, beats: Any, began: Any, ended: Any) -> Any:
        by_token = {beat.token: beat for beat in beats}
        dead = original(
            self, [beat._replace(lease=beat.lease / 2) for beat in by_token.values()], began, ended
        )
        return [by_token[one.token] for one in dead]

    patch(Watcher, "read", read)


@_mutant(
    "a lock proves a death only if nobody holds it",
    "in any case",
    story="paused-as-another-worker-joins",
)
def any_lock(patch: Patch) -> None:
    patch(Locks, "is_free", lambda self, path: os.path.basename(path) in self._held)


# Of two guards that do the same, one alone is not missed.


@_mutant(
    "a mark needs the lease, and the beat is young",
    "neither",
    aim=(
        "pauses", "pauses at points", "slow database", "hitches", "server", "many", "no beats",
        "away",
    ),
)  # fmt: skip
def mark_without_lease_and_beat(patch: Patch) -> None:
    _mark_without_lease(patch)
    _trust_for_ever(patch)


@_mutant("the first look settles all that is marked, later ones what has an older epoch", "neither")
def no_epoch_and_no_first(patch: Patch) -> None:
    _no_epoch(patch)
    original = courier.Courier._take

    def take(self: Any, found: Any, *, first: bool = False) -> None:
        original(self, found)

    patch(courier.Courier, "_take", take)
