"""How the simulated provider spends time: a batch server as processor sharing.

All requests in the batch share one machine. The engine counts *work* in seconds of a machine with a single
request, on a clock V that runs slower the more requests are active:

    dV/dt = itl / (itl + load * (active - 1)) / slowdown

so a request that sat down at V0 has its token due when V = V0 + work, whatever comes and goes meanwhile. That
is exact, costs O(log n) per event and needs one timer. Beyond the slots requests wait in line. When the machine
changes, its new slots, `load` and `slowdown` hold at once; requests being worked on keep the `ttft` and `itl` they had.
Only the running loop's clock is read, so all of it runs in virtual time.
"""

import asyncio
import heapq
import math
import random
from dataclasses import dataclass, fields
from itertools import count

from llmlab.sim.kinds import HINTS

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
    slowdown: float = 1.0
    """How many times as long all work takes: 2 is a machine of half the speed."""
    hint: str = "header"
    """How a 429 of a rate limit tells when to come back, one of `llmlab.sim.kinds.HINTS`; "none": not at all, and no
    header says anything of the limits, as with many servers."""

    def __post_init__(self) -> None:
        for name in ("slots", "context", "rpm", "tpm", "burst", "prefill", "reply_tokens", "tail_factor",
                     "slowdown"):  # fmt: skip
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"{name} must be above 0, not {value}")
        for name in ("queue", "rtt", "ttft", "itl", "load", "jitter", "reply_sigma"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be 0 or more, not {getattr(self, name)}")
        if not 0 <= self.tail <= 1:
            raise ValueError(f"tail is a share between 0 and 1, not {self.tail}")
        if self.hint not in HINTS:
            raise ValueError(f"hint must be one of {', '.join(HINTS)}, not {self.hint!r}")

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
        """Seconds of work done per second for each of `active` requests, above 0."""
        if active <= 1 or not self.load or not self.itl:
            return 1.0 / self.slowdown
        return self.itl / (self.itl + self.load * (active - 1)) / self.slowdown

    def first(self, input_tokens: int, rng: random.Random) -> float:
        """Seconds of work until the first token."""
        work = self.ttft
        if work and self.jitter:
            work *= rng.lognormvariate(0.0, self.jitter)
        if self.tail and rng.random() < self.tail:
            work *= self.tail_factor
        return work + input_tokens / self.prefill


@dataclass(frozen=True)
class Change:
    """The provider becomes another one while it runs: loses capacity, slows down, gets other limits."""

    at: float
    """Seconds after the simulator's first request."""
    physics: Physics
    """What it can do from then on."""

    def __post_init__(self) -> None:
        if not 0 <= self.at < math.inf:
            raise ValueError(f"a change comes at 0 s or later, not {self.at}")


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

    def become(self, physics: Physics) -> None:
        """Be another machine from now on; requests being worked on go on, also beyond its slots."""
        self.work()
        self._physics = physics
        new = 0
        while self.active + new < physics.slots and self._call_next():
            new += 1
        self._resize(new)

    def free(self) -> None:
        """Hand a slot to the first in line, or leave it empty."""
        if self.active > self._physics.slots or not self._call_next():
            self._resize(-1)

    def _call_next(self) -> bool:
        while self._line:
            turn = next(iter(self._line))
            del self._line[turn]
            if not turn.done():
                turn.set_result(None)
                return True
        return False

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

    def work(self) -> float:
        """Give the seconds of work that this seat has had."""
        return self._engine.work() - self._begun

    def leave(self) -> None:
        """Free the slot; a second call does nothing."""
        if not self._left:
            self._left = True
            self._engine.free()
