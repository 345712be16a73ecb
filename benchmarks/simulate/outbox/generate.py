"""Makes up the story of a seed. Each seed switches a random set of rare things on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal, get_args

from msgspec.structs import replace

from .. import generate as sessions
from .. import story as parts
from . import story as outbox
from .story import AnyEvent, AnyStep, BotPoint, Hitch, Point, Put, PutMany, Story, What
from .swarm import SWARM, THEMES

Random = sessions.Random

POINTS: tuple[Point, ...] = get_args(Point)
AnyPoint = Point | BotPoint
OFTEN: tuple[Point, ...] = (
    "marked", "before the look", "written", "answered", "before the end", "before the mark",
)  # fmt: skip


def generate(seed: int, only: Sequence[str] = ()) -> Story:
    """Return the story of a seed. `only` switches on these rare things, and no others."""
    return _Generator(seed, only).made()


def switched_on(seed: int, only: Sequence[str] = ()) -> set[str]:
    """Return the rare things that a seed switches on."""
    return _Generator(seed, only).on


class _Generator(sessions._Generator):
    """Makes the Market, the network and the failures as the stories of sessions have them."""

    swarm: Mapping[str, float] = SWARM
    themes: Sequence[Sequence[str]] = THEMES
    points: Sequence[AnyPoint] = POINTS
    often: Sequence[AnyPoint] = OFTEN
    speakers: Sequence[Literal["buyer", "market", "support"]] = ("buyer", "market")

    def __init__(self, seed: int, only: Sequence[str]) -> None:
        self.seed = seed
        self._about = ""  # which business
        swarm = self._random("swarm")
        strength = swarm.choice((0.3, 1.0, 1.0, 1.0, 1.5))
        self.on = {
            name for name, chance in self.swarm.items() if swarm.random() < strength * chance
        }
        if swarm.random() < 0.5:
            if swarm.random() < 0.5:
                self.on.clear()  # nothing hides what only the theme shows
            self.on.update(swarm.choice(self.themes))
        if only:
            self.on = set(only)
        if "server" not in self.on and "no locks" not in self.on:
            self.on.discard("sleeps")  # then all workers are on one machine
        shape = self._random("shape")
        self.workers = shape.choice((1, 2, 2, 2, 3, 4))
        self.businesses = shape.choice((1, 1, 2, 2, 3, 4))
        self.chats = shape.choice((1, 1, 2, 3))
        self.messages = shape.choice((3, 6, 10, 16))
        self.spread = shape.choice((0.0, 0.1, 1.0, 3.0))
        self.texts = self._random("texts")
        self.equal = self.texts.choice((("да",), ("да", "да", "нет")))
        self.settle_after = shape.choice((10.0, 15.0, 15.0))
        self.apart = self._skew(self._random("skew")) if "skew" in self.on else 0.0
        self._number = 0

    def _random(self, purpose: str) -> Random:
        # Each business has failures of its own; all else is the same for all of them.
        about = self._about if purpose in ("failures", "reads fail") else ""
        return Random(f"{self.seed} {about}{purpose}")

    def made(self) -> Story:
        """Return the story."""
        limits, markets = self._limits()
        steps = self._puts()
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
            events=self._happens(steps),
        )

    # How it is set up

    def _clocks(self) -> parts.Clocks:
        offset = self._random("own clocks").choice((-3000.0, -500.0, 400.0, 3600.0))
        return parts.Clocks(offset=offset if "own clocks" in self.on else 0.0)

    def _failures_of_all(self) -> tuple[outbox.Failure, ...]:
        failures: list[outbox.Failure] = []
        for business in range(self.businesses):
            self._about = f"business {business} "
            failures += (
                outbox.Failure(
                    business=business,
                    operation=one.operation,
                    number=one.number,
                    fault=one.fault,
                )
                for one in self._failures()
            )
        self._about = ""
        return tuple(failures)

    def _database(self) -> outbox.Database:
        rng = self._random("database")
        most = rng.choice((0.0005, 0.003, 0.02))
        if "slow database" in self.on:
            most = min(rng.choice((0.05, 0.1)), self._delivery({}).lease / 100)
        return outbox.Database(
            server="server" in self.on,
            locks="no locks" not in self.on,
            least=rng.choice((0.0002, most)),
            most=most,
            look=rng.choice((0.05, 0.25)) if "looks often" in self.on else 1.0,
        )

    def _delivery(self, limits: object) -> outbox.Delivery:
        rng = self._random("delivery")
        lease = rng.choice((6.0, 12.0, 12.0))
        if "short lease" in self.on:
            lease = 3.0
        elif "long lease" in self.on:
            lease = 30.0
        return outbox.Delivery(
            lease=lease,
            look=1.0 if "looks often" in self.on else 5.0,
            reserve=self._reserve(limits) if "reserve" in self.on else 0,
            keys_by_function="keys by function" in self.on,
            forgets_text="forgets text" in self.on,
        )

    def _reserve(self, limits: object) -> int:
        assert isinstance(limits, dict)
        most = min((rate.requests for rate in limits.values()), default=1000) - 1
        return min(most, 2)

    def _program(self, limits: object) -> parts.Program:
        program = super()._program(limits)  # type: ignore[arg-type]
        if "short timeout" not in self.on:
            timeout = self._random("timeout").choice((5.0, 15.0))
            program = replace(program, timeout=timeout)
        return program

    # What is put

    def _puts(self) -> tuple[AnyStep, ...]:
        rng = self._random("steps")
        steps: list[AnyStep] = []
        left, at = self.messages * self.businesses, 0.0
        while left > 0:
            machine = (
                rng.randrange(self.workers)
                if self._happens_to("by workers", rng, 0.6)
                else (self.workers)
            )
            business = rng.randrange(self.businesses)
            if self._happens_to("many", rng, 0.2):
                count = min(left, rng.choice((2, 5, 10)))
                messages = tuple((self._chat(rng), self._text(0)) for _ in range(count))
                bulk = rng.random() < 0.7
                steps.append(
                    PutMany(
                        at=round(at, 3),
                        machine=machine,
                        business=business,
                        messages=messages,
                        bulk=bulk,
                    )
                )
                left -= count
            else:
                steps.append(self._single(rng, round(at, 3), machine, business))
                left -= 1
            if self.spread and rng.random() < 0.7:
                at += rng.uniform(0.0, 2 * self.spread / self.businesses)
        return tuple(steps)

    def _happens_to(self, feature: str, rng: Random, chance: float) -> bool:
        return feature in self.on and rng.random() < chance

    def _single(self, rng: Random, at: float, machine: int, business: int) -> Put:
        size = 0
        if self._happens_to("large files", rng, 0.4):
            size = rng.choice((400_000, 700_000))
        elif self._happens_to("files", rng, 0.3):
            size = rng.choice((1, 500, 70_000))
        text = self._text(0)
        order = rng.randint(1, 2) if self._happens_to("orders", rng, 0.4) and not size else None
        key = not self._happens_to("no keys", rng, 0.5)
        not_before = not_after = None
        if self._happens_to("not before", rng, 0.3):
            not_before = round(at + rng.choice((0.5, 5.0, 40.0)) * rng.random(), 2)
            size, order = 0, None
        if self._happens_to("not after", rng, 0.3):
            not_after = round((not_before or at) + rng.choice((0.5, 5.0, 40.0)) * rng.random(), 2)
        if size:
            text = f"{self._number}.pdf"
        elif not_before is not None:
            text = f"m{self._number}"  # its place is not fixed, so nothing may be like it
        return Put(
            at=at,
            machine=machine,
            business=business,
            chat=self._chat(rng),
            text=text,
            size=size,
            key=key,
            twice=self._happens_to("twice", rng, 0.3),
            bulk=self._happens_to("bulk", rng, 0.4),
            order=order,
            not_before=not_before,
            not_after=not_after,
            cancel=round(rng.choice((0.0, 0.01, 0.3, 3.0, 20.0)) * rng.uniform(0.5, 2), 3)
            if self._happens_to("cancels", rng, 0.4)
            else None,
        )

    # What goes wrong

    def _hitches(self) -> tuple[Hitch, ...]:
        if "hitches" not in self.on:
            return ()
        rng = self._random("hitches")
        kinds = rng.sample(
            ("fails", "unlearnt", "late", "slow", "learnt late"), rng.choice((1, 2, 5))
        )
        share = rng.choice((0.05, 0.2, 0.4))
        most = self._writes_of_a_worker()
        return tuple(
            Hitch(
                machine=machine,
                what=what,
                number=number,
                kind=rng.choice(kinds),  # type: ignore[arg-type]
                seconds=round(rng.choice((0.3, 2.0, 8.0, 30.0)) * rng.random(), 2),
            )
            for machine in range(self.workers)
            for what, numbers in most.items()
            for number in range(1, numbers)
            if rng.random() < share
        )

    def _writes_of_a_worker(self) -> dict[What, int]:
        return {"send": 3 * self.messages, "beat": 20, "lease": 8, "put": 4, "other": 4}

    def _happens(self, steps: Sequence[parts.Step | parts.Event]) -> tuple[AnyEvent, ...]:
        rng = self._random("events")
        moments = [step.at for step in steps]
        lease = self._delivery({}).lease
        events: list[AnyEvent] = []

        def moment() -> float:
            # As it is sent, as the first worker is taken over from, or as it is settled.
            later = rng.choice((0.05, 0.5, 2.0, 5.0, 15.0, 2 * lease, 40.0))
            return round(rng.choice(moments) + later * rng.random(), 3)

        def machine() -> int:
            return rng.randrange(self.workers)

        def down() -> float:
            return round(rng.choice((0.1, 2.0, 10.0, 60.0)) * rng.uniform(0.2, 1.0), 2)

        def long() -> float:
            """Return seconds of a pause: mostly longer than until others have taken over."""
            return round(
                rng.choice((0.3, lease * 0.6, lease * 1.5, lease * 2 + 30.0))
                * rng.uniform(0.7, 1.3),
                2,
            )

        def point() -> AnyPoint:
            return rng.choice(self.often if rng.random() < 0.8 else self.points)

        def add(feature: str, most: int, make: Callable[[], AnyEvent]) -> None:
            if feature in self.on:
                events.extend(make() for _ in range(rng.randint(1, most)))

        def at_market(make: Callable[[], outbox.AtMarket]) -> Callable[[], AnyEvent]:
            def made() -> AnyEvent:
                event = make()
                return outbox.AtBusiness(
                    at=event.at,
                    business=rng.randrange(self.businesses),
                    event=replace(event, at=0.0),
                )

            return made

        add("kills", 4, lambda: outbox.Killed(at=moment(), machine=machine(), down=down()))
        add(
            "kills at points",
            4,
            lambda: outbox.AtPoint(
                at=moment(),
                machine=machine(),
                point=point(),
                count=rng.choice((1, 1, 2, 4)),
                seconds=down(),
            ),
        )
        if "kills all" in self.on:
            at = moment()
            events += (
                outbox.Killed(at=at, machine=number, down=down()) for number in range(self.workers)
            )
        add("leaves", 3, lambda: outbox.Left(at=moment(), machine=machine(), down=down()))
        add("pauses", 3, lambda: parts.Stop(at=moment(), machine=machine(), seconds=long()))
        add(
            "pauses at points",
            3,
            lambda: outbox.AtPoint(
                at=moment(),
                machine=machine(),
                point="half written"
                if self.on & {"large files", "files"} and rng.random() < 0.4
                else point(),
                count=rng.choice((1, 1, 2, 4)),
                action="pause",
                seconds=long(),
            ),
        )
        add("sleeps", 2, lambda: parts.Sleep(at=moment(), machine=machine(), seconds=long()))
        add(
            "wall steps",
            2,
            lambda: parts.WallClock(at=moment(), machine=machine(), by=self._step(rng)),
        )
        add(
            "away",
            2,
            lambda: outbox.Away(
                at=moment(),
                machine=rng.choice((-1, machine())),
                seconds=round(rng.choice((1.0, 8.0, 60.0)) * rng.random(), 2),
            ),
        )
        add(
            "no beats",
            2,
            lambda: outbox.Away(
                at=moment(),
                machine=machine(),
                seconds=round(lease * rng.choice((0.5, 1.0, 2.0, 4.0)) * rng.uniform(0.8, 1.2), 2),
                beats=True,
            ),
        )
        add(
            "buyers",
            4,
            at_market(
                lambda: parts.Says(
                    at=moment(),
                    chat=self._chat(rng),
                    who=rng.choice(self.speakers),
                    text=rng.choice(("да", "нет", "?")),
                )
            ),
        )
        add(
            "others use",
            2,
            at_market(lambda: parts.OthersUse(at=moment(), requests=rng.choice((1, 2, 5, 900)))),
        )
        add(
            "others hold",
            2,
            at_market(
                lambda: parts.OthersHold(
                    at=moment(), places=rng.choice((1, 2, 4)), seconds=rng.choice((1.0, 5.0, 30.0))
                )
            ),
        )
        add(
            "down",
            1,
            at_market(lambda: parts.Down(at=moment(), seconds=rng.choice((0.1, 2.0, 15.0, 60.0)))),
        )
        add(
            "access",
            1,
            at_market(
                lambda: parts.Access(
                    at=moment(),
                    why=rng.choice(("revoked", "inactive", "locked")),
                    seconds=rng.choice((1.0, 20.0)),
                )
            ),
        )
        add(
            "outage",
            2,
            lambda: parts.Outage(
                at=moment(), machine=machine(), seconds=round(rng.uniform(1.0, 45.0), 2)
            ),
        )
        add(
            "stall",
            3,
            lambda: parts.Stall(
                at=moment(),
                machine=machine(),
                connection=rng.randrange(4),
                seconds=round(rng.uniform(1.0, 60.0), 2),
                way=rng.choice(("both", "up", "down")),
            ),
        )
        add(
            "cut",
            3,
            lambda: parts.Cut(
                at=moment(),
                machine=machine(),
                connection=rng.randrange(4),
                end=rng.choice(("both", "client", "server")),
            ),
        )
        add(
            "stray",
            3,
            at_market(
                lambda: parts.Stray(
                    at=moment(), connection=rng.randrange(4), what=rng.choice(("408", "page"))
                )
            ),
        )
        events.sort(key=lambda event: event.at)
        return tuple(events)
