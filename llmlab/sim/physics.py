"""How the simulated provider spends time: a batch server as processor sharing, and token buckets.

All requests in the batch share one machine. The engine counts *work* in seconds of a machine with a single
request, on a clock V that runs slower the more requests are active:

    dV/dt = itl / (itl + load * (active - 1))

so a request that sat down at V0 has its token due when V = V0 + work, whatever comes and goes meanwhile. That
is exact, costs O(log n) per event and needs one timer. Beyond the slots requests wait in line.
Only the running loop's clock is read, so all of it runs in virtual time.
"""

import asyncio
import heapq
import math
import random
from dataclasses import dataclass, fields
from itertools import count

from llmlab.sim.wire import Level

EPSILON = 1e-9  # a timer may fire this many seconds early: asyncio rounds to the clock's resolution


@dataclass(frozen=True)
class Physics:
    """What the simulated provider can do. The defaults are a decent hosted API without rate limits."""

    slots: int = 64
    """Requests worked on at a time; the others wait in line."""
    queue: int = 10_000
    """Requests that may wait; one more is refused as overloaded."""
    rtt: float = 0.02
    """Seconds on the way, for every request, errors included."""
    ttft: float = 0.13
    """Seconds from the slot to the first token, when no other request is active."""
    itl: float = 0.010
    """Seconds between tokens, when no other request is active."""
    load: float = 0.0001
    """Seconds added to `itl` by each other active request: token speed falls under load."""
    prefill: float = 20_000.0
    """Input tokens read per second, on top of `ttft`; inf: at once."""
    jitter: float = 0.2
    """Sigma of the lognormal factor on `ttft`; 0: none."""
    tail: float = 0.0
    """Share of requests whose `ttft` is `tail_factor` times as long."""
    tail_factor: float = 10.0
    """How much longer those take."""
    rpm: float | None = None
    """Requests per minute. None: no limit, and no headers about it."""
    tpm: float | None = None
    """Tokens per minute (Anthropic: of input and of output, each). None: no limit."""
    burst: float = 60.0
    """Seconds of allowance that may be saved up: 60 lets a whole minute's worth go at once."""
    context: int = 128_000
    """Most tokens of input and output together."""
    reply_tokens: float = 60.0
    """Median length of an answer in tokens."""
    reply_sigma: float = 0.4
    """Sigma of the lognormal distribution of lengths; 0: all have the median."""

    def __post_init__(self) -> None:
        for name in ("slots", "context", "rpm", "tpm", "burst", "prefill", "reply_tokens", "tail_factor"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"{name} must be above 0, not {value}")
        for name in ("queue", "rtt", "ttft", "itl", "load", "jitter", "reply_sigma"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be 0 or more, not {getattr(self, name)}")
        if not 0 <= self.tail <= 1:
            raise ValueError(f"tail is a share between 0 and 1, not {self.tail}")

    @classmethod
    def instant(cls, **changes: float | None) -> "Physics":
        """Make a provider that takes no time at all, for tests and for measuring the client alone.

        Args:
            changes: Fields that differ from it.
        """
        if unknown := set(changes) - {each.name for each in fields(cls)}:
            raise TypeError(f"Physics has no field {', '.join(sorted(unknown))}")
        zero = {"rtt": 0.0, "ttft": 0.0, "itl": 0.0, "load": 0.0, "prefill": math.inf, "jitter": 0.0}
        return cls(**(zero | {"slots": 1_000_000, "queue": 1_000_000} | changes))  # type: ignore[arg-type]

    def speed(self, active: int) -> float:
        """Seconds of work done per second for each of `active` requests, between 0 and 1."""
        if active <= 1 or not self.load or not self.itl:
            return 1.0
        return self.itl / (self.itl + self.load * (active - 1))

    def first(self, input_tokens: int, rng: random.Random) -> float:
        """Seconds of work until the first token."""
        work = self.ttft
        if work and self.jitter:
            work *= rng.lognormvariate(0.0, self.jitter)
        if self.tail and rng.random() < self.tail:
            work *= self.tail_factor
        return work + input_tokens / self.prefill


class Full(Exception):
    """The line is as long as it may be: a fact, to be turned into an answer."""


class Engine:
    """The machine: slots, a line before them, and the work clock.

    Lives on the loop on which it is made.
    """

    def __init__(self, physics: Physics) -> None:
        self._physics = physics
        self._loop = asyncio.get_running_loop()
        self._line: dict[asyncio.Future[None], None] = {}  # a dict keeps order and forgets the cancelled in O(1)
        self._due: list[tuple[float, int, asyncio.Future[None]]] = []
        self._order = count()
        self._timer: asyncio.TimerHandle | None = None
        self._work = 0.0
        self._speed = 1.0
        self._at = self._loop.time()
        self.active = 0

    @property
    def queued(self) -> int:
        """Requests waiting in line."""
        return len(self._line)

    async def sit(self) -> "Seat":
        """Take a slot, waiting in line if there is none.

        Raises:
            Full: the line is as long as it may be.
        """
        if self.active < self._physics.slots:
            self._resize(1)
            return Seat(self, self._work)
        if len(self._line) >= self._physics.queue:
            raise Full
        turn = self._loop.create_future()
        self._line[turn] = None
        try:
            await turn
        except asyncio.CancelledError:
            self._give_up(turn)
            raise
        return Seat(self, self.work())

    def _give_up(self, turn: asyncio.Future[None]) -> None:
        if self._line.pop(turn, self) is self and not turn.cancelled():
            self.free()  # the slot was handed over in the very pass in which its new owner was cancelled

    def free(self) -> None:
        """Hand a slot to the first in line, or leave it empty."""
        while self._line:
            turn = next(iter(self._line))
            del self._line[turn]
            if not turn.done():
                turn.set_result(None)
                return
        self._resize(-1)

    def work(self) -> float:
        """Give the work clock's reading in seconds."""
        now = self._loop.time()
        self._work += (now - self._at) * self._speed
        self._at = now
        return self._work

    async def reach(self, work: float) -> None:
        """Wait until the work clock shows `work` seconds."""
        if work <= self.work() + EPSILON:
            return
        due = self._loop.create_future()
        heapq.heappush(self._due, (work, next(self._order), due))
        if self._due[0][2] is due:
            self._arm()
        await due

    def _resize(self, change: int) -> None:
        self.work()
        self.active += change
        self._speed = self._physics.speed(self.active)
        if not self.active:  # nobody is left to wait: start afresh, before rounding adds up
            self._due.clear()
            self._work = 0.0
        self._arm()

    def _arm(self) -> None:
        """Set the timer for the earliest token; one set too early may stay, it re-arms as it fires."""
        while self._due and self._due[0][2].done():
            heapq.heappop(self._due)
        if not self._due:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
            return
        when = self._at + max(0.0, self._due[0][0] - self._work) / self._speed
        if self._timer is not None:
            if self._timer.when() <= when:
                return
            self._timer.cancel()
        self._timer = self._loop.call_at(when, self._fire)

    def _fire(self) -> None:
        self._timer = None
        reached = self.work() + EPSILON
        while self._due and self._due[0][0] <= reached:
            due = heapq.heappop(self._due)[2]
            if not due.done():
                due.set_result(None)
        self._arm()


class Seat:
    """A slot in use."""

    __slots__ = ("_begun", "_engine", "_left")

    def __init__(self, engine: Engine, begun: float) -> None:
        self._engine = engine
        self._begun = begun
        self._left = False

    async def reach(self, work: float) -> None:
        """Wait until this seat has had `work` seconds of work."""
        await self._engine.reach(self._begun + work)

    def leave(self) -> None:
        """Free the slot; a second call does nothing."""
        if not self._left:
            self._left = True
            self._engine.free()


class Bucket:
    """A token bucket: filled continuously at `per_minute / 60` a second, up to `burst` seconds' worth.

    Over any t seconds it lets through at most `capacity + rate * t`.

    Args:
        per_minute: Allowance per minute.
        burst: Seconds of allowance that it holds when full.
        now: The clock's reading in seconds, on the clock of all later calls.
    """

    def __init__(self, per_minute: float, *, burst: float = 60.0, now: float = 0.0) -> None:
        self.limit = per_minute
        self.rate = per_minute / 60.0
        self.capacity = max(1.0, self.rate * burst)
        self._level = self.capacity
        self._at = now

    def level(self, now: float) -> float:
        """Give what may be taken now; below 0 after an overdraft."""
        if now > self._at:
            self._level = min(self.capacity, self._level + (now - self._at) * self.rate)
            self._at = now
        return self._level

    def wait(self, amount: float, now: float) -> float:
        """Seconds until `amount` may be taken; 0: now. More than the capacity waits for a full bucket."""
        return max(0.0, (min(amount, self.capacity) - self.level(now)) / self.rate)

    def take(self, amount: float, now: float) -> None:
        """Take `amount`, into overdraft if need be."""
        self._level = self.level(now) - amount

    def state(self, now: float) -> Level:
        """Give limit, remainder and seconds to full, such that limit * reset / (limit - remaining) = 60."""
        missing = self.capacity - self.level(now)
        return Level(int(self.limit), max(0, math.floor(self.limit - missing)), missing / self.rate)


class Allowance:
    """The rate limits of one account: several buckets that let a request in together or not at all.

    Args:
        limits: Name -> allowance per minute; None: no limit.
        burst: Seconds of allowance that may be saved up.
        now: The clock's reading in seconds.
    """

    def __init__(self, limits: dict[str, float | None], *, burst: float, now: float) -> None:
        made = {name: limit and Bucket(limit, burst=burst, now=now) for name, limit in limits.items()}
        self.buckets = {name: bucket for name, bucket in made.items() if bucket}

    def beyond(self, costs: dict[str, int]) -> str:
        """Name a bucket whose whole minute would not do for a request; "": none."""
        return next((name for name, bucket in self.buckets.items() if costs[name] > bucket.limit), "")

    def tightest(self, costs: dict[str, int], now: float) -> tuple[str, float]:
        """Name the bucket that makes a request wait longest, and for how many seconds; ("", 0): it may go."""
        waits = ((self.buckets[name].wait(cost, now), name) for name, cost in costs.items() if name in self.buckets)
        wait, name = max(waits, default=(0.0, ""))
        return (name, wait) if wait > EPSILON else ("", 0.0)

    def take(self, costs: dict[str, int], now: float) -> None:
        """Charge a request's costs; names without a bucket cost nothing."""
        for name, cost in costs.items():
            if bucket := self.buckets.get(name):
                bucket.take(cost, now)

    def levels(self, now: float) -> dict[str, Level]:
        """Give the state of each bucket."""
        return {name: bucket.state(now) for name, bucket in self.buckets.items()}
