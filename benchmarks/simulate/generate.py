"""Makes up the story of a seed. Each seed switches a random set of rare things on."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence

from msgspec.structs import replace

from yamarket_chat.limits import Rate
from yamarket_chat.sandbox import Fault

from . import story as parts
from .story import AnyEvent, AnyStep, Failure, Story
from .swarm import BEFORE_OR_AFTER, LATER, READ_FAULTS, SEND_FAULTS, SWARM, THEMES

Random = random.Random

# Seconds by which a history may be late.
MOST_DELAY = 2.0


def generate(seed: int, only: Sequence[str] = ()) -> Story:
    """Return the story of a seed. `only` switches on these rare things, and no others."""
    return _Generator(seed, only).story()


def switched_on(seed: int, only: Sequence[str] = ()) -> set[str]:
    """Return the rare things that a seed switches on."""
    return _Generator(seed, only).on


class _Generator:
    def __init__(self, seed: int, only: Sequence[str]) -> None:
        self.seed = seed
        swarm = self._random("swarm")
        strength = swarm.choice((0.3, 1.0, 1.0, 1.0, 1.6))
        self.on = {name for name, chance in SWARM.items() if swarm.random() < strength * chance}
        if swarm.random() < 0.5:
            if swarm.random() < 0.4:
                self.on.clear()  # nothing hides what only the theme shows
            self.on.update(swarm.choice(THEMES))
        if only:
            self.on = set(only)
        if "date steps" in self.on:
            # A new process does not know what the clock was before, and neither does a Pending.
            self.on -= {"kills", "two machines", "raises"}
        shape = self._random("shape")
        self.chats = shape.choice((1, 1, 2, 3, 4, 8))
        self.messages = shape.choice((3, 6, 10, 14, 20))
        self.spread = shape.choice((0.0, 0.0, 0.05, 1.0, 5.0, 20.0))
        if "tight" in self.on and shape.random() < 0.5:
            self.messages += 10
        self.texts = self._random("texts")
        self.equal = self.texts.choice((("да",), ("да", "да", "нет")))
        self.settle_after = shape.choice((15.0, 15.0, 15.0, 20.0))
        if "last moment" in self.on:
            self.settle_after = shape.choice((10.0, 12.0, 15.0))
        self.apart = self._skew(self._random("skew")) if "skew" in self.on else 0.0
        self._number = 0

    def _random(self, purpose: str) -> Random:
        return Random(f"{self.seed} {purpose}")

    def story(self) -> Story:
        limits, markets = self._limits()
        steps = self._steps()
        return Story(
            seed=self.seed,
            market=self._market(markets),
            program=self._program(limits),
            network=self._network(),
            clocks=self._clocks(),
            steps=steps,
            failures=self._failures(),
            events=self._events(steps),
        )

    # How it is set up

    def _limits(self) -> tuple[dict[str, Rate], dict[str, Rate]]:
        rng = self._random("limits")
        own: dict[str, Rate] = {}
        if "tight" in self.on:
            requests, per = rng.choice(
                ((1, 3.0), (4, 3.0), (2, 5.0), (3, 20.0), (5, 60.0), (8, 600.0))
            )
            burst = rng.randint(1, requests) if "burst" in self.on else None
            own["send_message"] = Rate(requests, per=per, burst=burst)
            own["send_file"] = Rate(max(1, requests // 2), per=per)
        elif "burst" in self.on:
            own["send_message"] = Rate(1000, per=3600.0, burst=rng.choice((1, 2, 5)))
        if "tight reads" in self.on:
            own["history"] = Rate(rng.choice((1, 2, 4)), per=rng.choice((5.0, 30.0)))
            own["get_chat"] = Rate(rng.choice((1, 2, 3)), per=rng.choice((2.0, 10.0)))
        markets = dict(own)
        if "lower at the Market" in self.on:
            limit = own.setdefault("send_message", Rate(10, per=60.0))
            markets["send_message"] = Rate(max(1, limit.requests // 3), per=limit.per)
        return own, markets

    def _market(self, limits: Mapping[str, Rate]) -> parts.Market:
        rng = self._random("market")
        latency = rng.choice((0.0, 0.02, 0.1, 0.3))
        if "slow" in self.on:
            latency = rng.choice((0.5, 1.0, 2.0, 3.0))
        return parts.Market(
            limits=limits,
            parallel=rng.choice((1, 2, 3)) if "few places" in self.on else 4,
            window="fixed" if "fixed window" in self.on else "rolling",
            window_phase=rng.choice((0.0, 1.0, 17.0)) if "fixed window" in self.on else 0.0,
            headers="no headers" not in self.on,
            latency=latency,
            jitter=rng.choice((0.1, 0.5, 2.0)) if "jitter" in self.on else 0.0,
            keep_alive=rng.choice((False, 0.5, 3.0, 5.0)) if "keep-alive" in self.on else True,
            clock_offset=round(rng.uniform(-100.0, 100.0), 2) if "ahead" in self.on else 0.0,
            storage_offset=self.apart,
            storage_milliseconds="milliseconds" in self.on,
            strip_spaces=rng.random() < 0.8,
            order=rng.choice(("descending", "shuffled")) if "order" in self.on else "ascending",
            includes_from=rng.random() < 0.8,
            history_delay=round(rng.uniform(0.1, MOST_DELAY), 2)
            if self.on & {"delay", "replicas"}
            else 0.0,
            replicas="replicas" in self.on,
            storage_hosts=rng.choice((0.3, 1.0)) if "storage hosts" in self.on else 0.0,
            page=rng.choice((1, 2, 3, 5)) if "pages" in self.on else 100,
            odd_rows=rng.choice((0.05, 0.3)) if "odd rows" in self.on else 0.0,
            old_rows=rng.choice((1, 3, 14, 120)) if "old rows" in self.on else 0,
        )

    def _skew(self, rng: Random) -> float:
        return rng.choice((-25.0, -14.0, -5.0, -1.0, -0.3, 0.05, 0.5, 1.0, 3.0, 14.0, 25.0))

    def _program(self, limits: Mapping[str, Rate]) -> parts.Program:
        rng = self._random("program")
        market, network = self._market(limits), self._network()
        takes = market.latency + market.jitter + 4 * network.most
        return parts.Program(
            limits=limits,
            parallel=market.parallel,
            timeout=round(takes + rng.choice((0.5, 2.0, 5.0)), 2)
            if "short timeout" in self.on
            else 15.0,
            attempts=rng.choice((1, 2, 3)) if "few attempts" in self.on else 12,
            settle_after=self.settle_after,
            max_wait=None,
            sessions_of_its_own="own http" in self.on,
        )

    def _network(self) -> parts.Network:
        rng = self._random("network")
        least = rng.choice((0.0002, 0.002, 0.02))
        if "far" in self.on:
            least = rng.choice((0.1, 0.3))
        most = least
        if "uneven" in self.on:
            most = least + rng.choice((0.05, 0.3, 1.0))
        return parts.Network(
            least=least,
            most=most,
            pieces=rng.choice((0.1, 0.5, 1.0)) if "pieces" in self.on else 0.0,
            loss=rng.choice((0.01, 0.05)) if "loss" in self.on else 0.0,
        )

    def _clocks(self) -> parts.Clocks:
        rng = self._random("clocks")
        return parts.Clocks(
            offset=rng.choice((0.0, 0.0, -500.0, 3600.0)),
            drift=rng.choice((-0.01, 0.001, 0.02)) if "drift" in self.on else 0.0,
            tells_sleep="no boot clock" not in self.on,
        )

    # What the programs do

    def _text(self, machine: int) -> str:
        self._number += 1
        rng = self.texts
        if "equal texts" in self.on and rng.random() < 0.7:
            text = rng.choice(self.equal)
        else:
            text = f"m{self._number}"
        if machine:
            text = f"{machine}: {text}"  # two programs do not send the same text to a chat
        if "spaces" in self.on and rng.random() < 0.4:
            text = rng.choice((f" {text}", f"{text}\n", f"\t{text}  "))
        return text

    def _steps(self) -> tuple[AnyStep, ...]:
        rng = self._random("steps")
        steps: list[AnyStep] = []
        if "date steps" in self.on:
            # Nothing tells that the Market's clock was set before its first answer.
            steps.append(parts.Read())
        machines = 2 if "two machines" in self.on else 1
        left = self.messages
        at = 0.0
        while left > 0:
            machine = rng.randrange(machines)
            session = rng.randrange(2) if "two sessions" in self.on else 0
            if "send_many" in self.on and rng.random() < 0.2:
                count = min(left, rng.choice((2, 5, 10)))
                messages = tuple((self._chat(rng), self._text(machine)) for _ in range(count))
                stop = round(rng.uniform(0.0, 30.0), 2) if rng.random() < 0.3 else None
                pause = rng.choice((0.0, 0.0, 0.0, 0.5))
                steps.append(
                    parts.SendMany(
                        at=round(at, 3),
                        machine=machine,
                        session=session,
                        messages=messages,
                        stop=stop,
                        pause=pause,
                    )
                )
                left -= count
            else:
                send = self._send(rng, round(at, 3), machine, session)
                steps.append(send)
                left -= 1 + len(send.then)
            if self.spread:
                at += rng.uniform(0.0, 2 * self.spread)
        span = max(at, 20.0)
        if "reads" in self.on:
            steps += [self._read(rng, span) for _ in range(rng.choice((1, 3, 8)))]
        if "closes" in self.on:
            steps += [self._close(rng, span, machines) for _ in range(rng.choice((1, 1, 2)))]
        if "kills" in self.on:
            steps.append(
                parts.Kill(at=round(rng.uniform(0.0, span), 2), machine=rng.randrange(machines))
            )
        if self.on >= {"storage steps", "equal texts"} and rng.random() < 0.3:
            # They are set in a long pause.
            pause = rng.choice([step.at for step in steps])
            steps = [replace(s, at=s.at + 400.0) if s.at >= pause else s for s in steps]
        steps.sort(key=lambda step: step.at)
        return tuple(steps)

    def _read(self, rng: Random, span: float) -> parts.Read:
        return parts.Read(
            at=round(rng.uniform(0.0, span), 2),
            what=rng.choice(("get_chat", "get_chat", "history", "chats")),
            chat=self._chat(rng),
            cancel=rng.choice((None, None, 0.01, 0.5)),
        )

    def _close(self, rng: Random, span: float, machines: int) -> parts.Close:
        return parts.Close(
            at=round(rng.uniform(0.0, span), 2),
            machine=rng.randrange(machines),
            session=rng.randrange(2) if "two sessions" in self.on else 0,
            grace=rng.choice((0.0, 1.0, 5.0, 30.0)),
        )

    def _chat(self, rng: Random) -> int:
        return rng.randint(1, self.chats)

    def _send(self, rng: Random, at: float, machine: int, session: int) -> parts.Send:
        on = self.on
        then: tuple[str, ...] = ()
        if "one after another" in on and rng.random() < 0.3:
            then = tuple(self._text(machine) for _ in range(rng.choice((1, 2, 4))))
        raises = "raises" in on and rng.random() < 0.5
        size = rng.choice((1, 500, 70_000)) if "files" in on and rng.random() < 0.25 else 0
        text = self._text(machine)
        if size:
            text = f"{self._number}.pdf"
        return parts.Send(
            at=at,
            machine=machine,
            session=session,
            chat=self._chat(rng),
            text=text,
            size=size,
            max_wait=rng.choice((0.0, 0.5, 5.0, 30.0))
            if "max_wait" in on and rng.random() < 0.5
            else None,
            on_unknown="raise" if raises else "settle",
            cancel=self._soon(rng) if "cancels" in on and rng.random() < 0.35 else None,
            timeout=self._soon(rng) if "timeouts" in on and rng.random() < 0.4 else None,
            settle=rng.choice((0.0, 3.0, 16.0, 40.0, 100.0, 160.0, 400.0))
            if "date steps" not in on and (raises or rng.random() < 0.5)
            else None,
            again=rng.random() < 0.7,
            then=() if size else then,
            ends_others="groups" in on and rng.random() < 0.15,
        )

    def _soon(self, rng: Random) -> float:
        flight = 2 * self._network().most  # while its request is on the way
        soon = rng.choice((0.0, 0.01, 0.1, 0.5, 2.0, 10.0, 25.0, flight, flight))
        return round(soon * rng.uniform(0.5, 2), 4)

    # What goes wrong

    def _failures(self) -> tuple[Failure, ...]:
        failures: list[Failure] = []
        rng = self._random("failures")
        share = rng.choice((0.05, 0.15, 0.3, 0.5))
        silent = rng.choice((0.2, 0.5))
        kinds = rng.sample(SEND_FAULTS, rng.choice((1, 2, 4, 12)))
        if "last moment" in self.on:
            kinds = [*kinds, *LATER]
        room = self._room_for_late_ones()
        for operation in ("send_message", "send_file"):
            if operation == "send_file" and "files" not in self.on:
                continue
            for number in range(1, 3 * self.messages):
                if "fails" in self.on and rng.random() < share:
                    fault = rng.choice(kinds)(rng)
                elif "gives no answer" in self.on and rng.random() < silent:
                    fault = Fault("no_answer", rng.choice(BEFORE_OR_AFTER))
                else:
                    continue
                if fault.when == "later" and ("last moment" in self.on or fault.delay > room):
                    fault = replace(fault, delay=room)
                elif fault.kind == "slow":
                    fault = Fault("slow", delay=min(fault.delay, max(room, 0.5)))
                failures.append(Failure(operation=operation, number=number, fault=fault))
        rng = self._random("reads fail")
        share = rng.choice((0.1, 0.3, 0.5))
        if "reads fail" in self.on:
            for operation in ("history", "get_chat"):
                for number in range(1, 2 * self.messages):
                    if rng.random() < share:
                        fault = rng.choice(READ_FAULTS)(rng)
                        failures.append(Failure(operation=operation, number=number, fault=fault))
        return tuple(failures)

    def _room_for_late_ones(self) -> float:
        """Return by how much a request may be carried out later, so that settling can see it."""
        market, network = self._market({}), self._network()
        late = market.latency + market.jitter + 2 * network.most + market.history_delay
        return round(max(min(9.9, self.settle_after - late - 0.1), 0.05), 2)

    def _events(self, steps: tuple[AnyStep, ...]) -> tuple[AnyEvent, ...]:
        rng = self._random("events")
        moments = [step.at for step in steps]
        machines = 1 + max(step.machine for step in steps)
        events: list[AnyEvent] = []

        def moment() -> float:
            return round(rng.choice(moments) + rng.choice((0.05, 1.0, 5.0, 25.0)) * rng.random(), 3)

        def as_it_is_read() -> float:
            # The history is read 15 s after an attempt, in pages.
            return round(rng.choice(moments) + rng.choice((15.0, 30.0)) + 8.0 * rng.random(), 3)

        def before(moments: list[float]) -> parts.Stray:
            # Just before a send, so that it lies unread on the connection that is used.
            at = max(rng.choice(moments) - rng.choice((0.05, 0.2, 1.0)), 0.0)
            return parts.Stray(at=round(at, 3), connection=rng.randrange(4), what="200")

        def as_it_is_answered() -> float:
            # If all are handed over at once, they are answered one after another.
            market, network = self._market({}), self._network()
            takes = market.latency + 2 * network.most
            count = rng.randrange(1 + self.messages // market.parallel)
            return round(rng.choice(moments) + (count + rng.random()) * takes, 3)

        def machine() -> int:
            return rng.randrange(machines)

        def add(feature: str, most: int, make: Callable[[], AnyEvent]) -> None:
            if feature in self.on:
                events.extend(make() for _ in range(rng.randint(1, most)))

        add(
            "buyers",
            30 if "pages" in self.on else 6,
            lambda: parts.Says(
                at=as_it_is_read() if "pages" in self.on else moment(),
                chat=self._chat(rng),
                who=rng.choice(("buyer", "buyer", "market", "support")),
                text=rng.choice(("да", "нет", "?")),
            ),
        )
        add(
            "colleague",
            3,
            lambda: parts.Says(
                at=moment(), chat=self._chat(rng), who="shop", text=f"by hand {rng.random():.6f}"
            ),
        )
        add(
            "others use",
            3,
            lambda: parts.OthersUse(
                at=moment(),
                operation=rng.choice(("send_message", "send_message", "history")),
                requests=rng.choice((1, 2, 5, 900)),
            ),
        )
        add(
            "others hold",
            3,
            lambda: parts.OthersHold(
                at=moment(), places=rng.choice((1, 2, 4)), seconds=rng.choice((1.0, 5.0, 30.0))
            ),
        )
        add("down", 2, lambda: parts.Down(at=moment(), seconds=rng.choice((0.1, 2.0, 15.0, 60.0))))
        add(
            "access",
            1,
            lambda: parts.Access(
                at=moment(),
                why=rng.choice(("revoked", "inactive", "locked")),
                seconds=rng.choice((1.0, 20.0)),
            ),
        )
        add(
            "date steps",
            2,
            lambda: parts.MarketClock(
                # All one way: two steps that cancel each other between two Dates show nowhere.
                at=moment() + 5.0,
                which="both",
                by=abs(self._step(rng)) * (1 if self.seed % 2 else -1),
            ),
        )
        add(
            "storage steps",
            1,
            lambda: parts.MarketClock(
                at=round(max(moments[0], rng.choice(moments) - 5.0), 3),
                which=rng.choice(("storage", "date")),
                by=rng.choice((1.0, -1.0)) * rng.choice(self._room()),
            ),
        )
        add(
            "outage",
            2,
            lambda: parts.Outage(
                at=rng.choice((moment, as_it_is_answered))(),
                machine=machine(),
                seconds=round(rng.uniform(1.0, 45.0), 2),
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
            lambda: parts.Stray(
                at=moment(), connection=rng.randrange(4), what=rng.choice(("408", "page"))
            ),
        )
        add("stray", 3, lambda: before(moments))
        add(
            "stray",
            3,
            lambda: parts.Stray(
                at=as_it_is_answered(),
                connection=rng.randrange(4),
                what=rng.choice(("408", "page")),
            ),
        )
        add(
            "sleeps",
            2,
            lambda: parts.Sleep(
                at=moment(), machine=machine(), seconds=rng.choice((0.3, 5.0, 30.0, 600.0))
            ),
        )
        add(
            "stops",
            2,
            lambda: parts.Stop(
                at=moment(),
                machine=machine(),
                seconds=rng.choice((0.2, 1.0, 6.0, 8.0, 12.0, 14.0, 30.0, 120.0)),
            ),
        )
        add(
            "blocks",
            2,
            lambda: parts.Stop(
                at=rng.choice(moments),
                machine=machine(),
                seconds=round(rng.uniform(1.0, 60.0), 1),
                as_told=True,
            ),
        )
        add(
            "wall steps",
            2,
            lambda: parts.WallClock(at=moment(), machine=machine(), by=self._step(rng)),
        )
        events.sort(key=lambda event: event.at)
        return tuple(events)

    def _room(self) -> tuple[float, ...]:
        """Return by how much one of the Market's clocks may step, so that they agree to 30 s."""
        room = 28.0 - abs(self.apart)
        return tuple(by for by in (0.6, 1.0, 3.0, 7.0, 20.0) if by <= room)

    def _step(self, rng: Random) -> float:
        return rng.choice(
            (-3600.0, -20.0, -7.0, -3.0, -1.0, -0.6, 0.6, 1.0, 3.0, 7.0, 20.0, 3600.0)
        )
