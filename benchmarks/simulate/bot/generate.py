"""Makes up the story of a seed. Each seed switches a random set of rare things on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, get_args

from msgspec.structs import replace

from yamarket_chat.limits import Rate
from yamarket_chat.sandbox import Fault

from .. import story as parts
from ..outbox import generate as outbox
from ..outbox.story import AtBusiness, AtPoint, BotPoint, Left, What
from ..swarm import READ_FAULTS
from . import story as bots
from .story import AnyEvent, Story, Told, Writes
from .swarm import SWARM, THEMES

Random = outbox.Random

BOT_POINTS: tuple[BotPoint, ...] = get_args(BotPoint)

ACTIONS: tuple[Literal["kill", "pause"], ...] = ("kill", "pause")

MOST_OLD_ROWS = 20
"""How many rows stand in a chat before, at most, if a page has few rows."""

LONGEST_LATE = 20.0
"""Seconds until the history shows a row of which the Market does not tell, at most."""


def generate(seed: int, only: Sequence[str] = ()) -> Story:
    """Return the story of a seed. `only` switches on these rare things, and no others."""
    return _Generator(seed, only).told()


def switched_on(seed: int, only: Sequence[str] = ()) -> set[str]:
    """Return the rare things that a seed switches on."""
    return _Generator(seed, only).on


class _Generator(outbox._Generator):
    """Makes what an outbox meets, and what buyers write."""

    swarm = SWARM
    themes = THEMES
    points = (*outbox.POINTS, *BOT_POINTS)
    often = (
        *(point for point in BOT_POINTS if point != "giving back"),
        *("before the replies", "before the replies", "handled", "tried"),
        *("told", "told", "begun", "ended", "ended", "handing over"),  # few are reached
        *outbox.OFTEN,
    )
    speakers = ("market", "support")

    def __init__(self, seed: int, only: Sequence[str]) -> None:
        super().__init__(seed, only)
        shape = self._random("shape of a bot")
        self.workers = shape.choice((1, 1, 2, 2, 3))
        self.businesses = shape.choice((1, 1, 1, 2))
        self.chats = shape.choice((1, 1, 2, 4))
        self.messages = shape.choice((2, 4, 6, 10))
        self.spread = shape.choice((0.3, 2.0, 6.0, 20.0))
        self.every = shape.choice((3.0, 10.0, 10.0, 30.0))
        self.timeout = shape.choice((3.0, 8.0))
        if "many leaves" in self.on:
            self.timeout = 60.0  # longer than a worker that stops waits for handlers
        if self.on & {"leaves", "many leaves"}:
            self.often = (*self.often, "giving back", "giving back", "giving back", "handing over")

    def told(self) -> Story:
        """Return the story."""
        limits, markets = self._limits()
        writes = self._writes()
        steps = self._puts() if "puts" in self.on else ()
        about: Any = (*steps, *writes)
        events = [*self._happens(about), *self._changes(writes)]
        events.sort(key=lambda event: event.at)
        return Story(
            seed=self.seed,
            workers=self.workers,
            businesses=self.businesses,
            market=self._market(markets),
            program=self._program(limits),
            network=self._network(),
            clocks=self._clocks(),
            database=self._database(),
            delivery=self._delivery(limits),
            steps=steps,
            failures=self._failures_of_all(),
            hitches=self._hitches(),
            events=tuple(events),
            bot=self._bot(),
            writes=writes,
        )

    # How it is set up

    def _bot(self) -> bots.Bot:
        rng = self._random("bot")
        return bots.Bot(
            every=self.every,
            waiting="waiting" in self.on,
            concurrency=rng.choice((1, 2)) if "one at a time" in self.on else 16,
            handler_timeout=self.timeout,
            max_age=rng.choice((5.0, 40.0)) if "max age" in self.on else None,
            down=rng.choice((0.1, 1.0, 5.0)),
            others=rng.choice((25, 90)) if "other chats" in self.on else 0,
            tells_own="tells own" in self.on,
        )

    def _limits(self) -> tuple[dict[str, Rate], dict[str, Rate]]:
        own, markets = super()._limits()
        if "tight reads" in self.on:
            rng = self._random("reads")
            own["history"] = markets["history"] = Rate(rng.choice((5, 10)), per=10.0)
            own["get_chat"] = markets["get_chat"] = Rate(5, per=10.0)
            if rng.random() < 0.5:
                own["history"] = Rate(20, per=10.0)  # the Market has less
        rng = self._random("sweep")
        chats = Rate(rng.choice((600, 1500, 3000)), per=3600.0)  # a slow sweep costs less
        own["chats"] = markets["chats"] = chats
        return own, markets

    def _market(self, limits: Any) -> parts.Market:
        market = super()._market(limits)
        if "slow" in self.on:
            market = replace(market, latency=min(market.latency, 1.0))
        if "pages" in self.on:  # a look reads all of them, and perhaps four times
            market = replace(market, old_rows=min(market.old_rows, MOST_OLD_ROWS))
        return market

    # What buyers write

    def _writes(self) -> tuple[Writes, ...]:
        rng = self._random("writes")
        writes: list[Writes] = []
        at = rng.choice((0.0, 1.0, 5.0))
        for _ in range(self.messages * self.businesses):
            writes.append(self._one(rng, round(at, 3)))
            if self._happens_to("at once", rng, 0.4):
                last = writes[-1]
                again = replace(
                    self._one(rng, round(at + rng.choice((0.0, 0.1, 0.6)), 3)),
                    business=last.business,
                    chat=last.chat,
                )
                writes.append(again)
            at += rng.uniform(0.0, 2 * self.spread / self.businesses)
        return tuple(writes)

    def _one(self, rng: Random, at: float) -> Writes:
        on = self.on
        kind = "text"
        if self._happens_to("stickers", rng, 0.3):
            kind = "sticker"
        elif self._happens_to("buyers' files", rng, 0.3):
            kind = "file"
        late, told = 0.0, self._tells(rng) if kind != "sticker" else ()
        if self._happens_to("late rows", rng, 0.4):
            late = rng.choice((0.3, 2.0, LONGEST_LATE)) * rng.random()
            if told and rng.random() < 0.3:
                late = 300.0 * rng.random()
        troubles = [
            trouble
            for feature, trouble in (
                ("raises", "raises"),
                ("hangs", "hangs"),
                ("clings", "clings"),
                ("statements", "statement"),
                ("killers", "kills"),
            )
            if feature in on
        ]
        trouble, times = "", 0
        if troubles and rng.random() < 0.35:
            trouble = rng.choice(troubles)
            times = 99 if self._happens_to("gives up", rng, 0.4) else rng.choice((1, 1, 2, 3))
        replies = rng.choice((1, 2, 3)) if "many replies" in on else 1
        if self._happens_to("says nothing", rng, 0.3):
            replies = 0
        error = rng.choice(("replies", "says nothing"))
        if self._happens_to("errors fail", rng, 0.6):
            error = rng.choice(("raises", "kills", "hangs", "statement"))
        takes = 0.0
        if self._happens_to("slow handlers", rng, 0.6):
            takes = round(rng.choice((0.2, 1.0, 0.9 * self.timeout)) * rng.uniform(0.5, 1.0), 3)
        choice: Any = {"kind": kind, "trouble": trouble, "error": error}
        text = self._text(0)
        return Writes(
            at=at,
            business=rng.randrange(self.businesses),
            chat=self._chat(rng),
            text=f"{text}.jpg" if kind == "file" else text,
            late=round(late, 2),
            deleted=round(late + rng.choice((0.5, 5.0, 30.0)) * rng.random(), 2)
            if self._happens_to("deletions", rng, 0.3)
            else None,
            told=told,
            replies=replies,
            now=self._happens_to("now", rng, 0.4),
            file=self._happens_to("files", rng, 0.3),
            takes=takes,
            times=times,
            **choice,
        )

    def _tells(self, rng: Random) -> tuple[Told, ...]:
        if not self._happens_to("told", rng, 0.7):
            return ()
        times = 3 if self._happens_to("told thrice", rng, 0.4) else 1
        return tuple(
            Told(
                after=round(rng.choice((1.0, 10.0, 60.0)) * rng.random(), 3)
                if self._happens_to("told late", rng, 0.4)
                else 0.01,
                machine=rng.randrange(self.workers),
            )
            for _ in range(times)
        )

    # What goes wrong

    def _writes_of_a_worker(self) -> dict[What, int]:
        return {
            "send": 3 * self.messages,
            "beat": 20,
            "lease": 8,
            "other": 6,
            "put": 4,
            "commit": 2 * self.messages,
            "try": 3 * self.messages,
            "hint": 2 * self.messages,
        }

    def _failures(self) -> tuple[parts.Failure, ...]:
        found = list(super()._failures())
        if "reads fail" in self.on:
            rng = self._random("reads of a bot fail")
            share = rng.choice((0.03, 0.1, 0.3))
            for operation, most in (("chats", 40), ("get_message", 5)):
                for number in range(1, most):
                    if rng.random() < share:
                        fault: Fault = rng.choice(READ_FAULTS)(rng)
                        found.append(parts.Failure(operation=operation, number=number, fault=fault))
        return tuple(found)

    def _changes(self, writes: Sequence[Writes]) -> list[AnyEvent]:
        rng = self._random("changes")
        moments = [one.at for one in writes]
        events: list[AnyEvent] = []

        def moment() -> float:
            later = rng.choice((0.1, 1.0, 5.0, 30.0))
            return round(rng.choice(moments) + later * rng.random(), 3)

        if "persons" in self.on:
            for number in range(rng.randint(1, 4)):
                says = parts.Says(chat=self._chat(rng), who="shop", text=f"by hand {number}")
                business = rng.randrange(self.businesses)
                events.append(AtBusiness(at=moment(), business=business, event=says))
        for feature, status, kind in (
            ("finished", "FINISHED", None),
            ("disputes", "WAITING_FOR_ARBITER", "ARBITRAGE"),
        ):
            if feature in self.on:
                events.append(
                    bots.Changes(
                        at=moment(),
                        business=rng.randrange(self.businesses),
                        chat=self._chat(rng),
                        status=status,
                        type=kind,
                    )
                )
        if "many leaves" in self.on:
            at = rng.choice(moments)
            for _ in range(rng.randint(5, 9)):
                at += rng.choice((0.5, 36.0, 36.0)) * rng.uniform(0.9, 1.1)
                machine = rng.randrange(self.workers)
                events.append(Left(at=round(at, 3), machine=machine, down=0.1))
                # Nothing else cancels a handler as often.
                events += (
                    self._at_giving_back(at, machine, action, rng)
                    for action in ACTIONS
                    if f"{action}s at points" in self.on and rng.random() < 0.3
                )
        return events

    def _at_giving_back(
        self, at: float, machine: int, action: Literal["kill", "pause"], rng: Random
    ) -> AtPoint:
        """It happens as the next handler of this worker is cancelled."""
        seconds = rng.choice((0.1, 2.0, 20.0)) * rng.uniform(0.2, 1.0)
        return AtPoint(
            at=round(at, 3),
            machine=machine,
            point="giving back",
            action=action,
            seconds=round(seconds, 2),
        )
