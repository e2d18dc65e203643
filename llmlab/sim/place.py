"""The simulated provider as it stands on one loop: its machine, its limits, how both change, and who is served."""

import asyncio
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from llmlab.clock import wall_offset
from llmlab.sim import anthropic_ask, anthropic_wire, openai_ask, openai_wire
from llmlab.sim.buckets import Allowance, Bucket
from llmlab.sim.formed import Structured, take
from llmlab.sim.kinds import Kind
from llmlab.sim.physics import Change, Engine, Physics, Seat
from llmlab.sim.tally import Tally
from llmlab.sim.wire import Answer, Ask, Choice, Headers, Stamp, Wire
from llmlab.types import JSON


class Place:
    """What belongs to one loop, which must be running: made at the first request, from which changes are timed.

    Args:
        physics: What the provider can do at first.
        changes: What becomes of it.
    """

    def __init__(self, physics: Physics, changes: Iterable[Change]) -> None:
        self.loop = asyncio.get_running_loop()
        self.physics = physics
        self.engine = Engine(physics)
        self.began = self.loop.time()
        self.offset = wall_offset()
        self._allowances: dict[tuple[str, ...], Allowance] = {}
        for change in changes:
            self.loop.call_at(self.began + change.at, self._become, change.physics)

    @property
    def unix(self) -> float:
        """Unix time in seconds."""
        return self.loop.time() + self.offset

    def allowance(self, names: tuple[str, ...]) -> Allowance:
        """The limits by the names that a dialect gives them."""
        found = self._allowances.get(names)
        if found is None:
            found = Allowance(self._limits(names), burst=self.physics.burst, now=self.loop.time())
            self._allowances[names] = found
        return found

    def _limits(self, names: tuple[str, ...]) -> dict[str, float | None]:
        return {name: self.physics.rpm if name == "requests" else self.physics.tpm for name in names}

    def _become(self, physics: Physics) -> None:
        self.physics = physics
        self.engine.become(physics)
        for names, allowance in self._allowances.items():
            allowance.retune(self._limits(names), burst=physics.burst, now=self.loop.time())


class Pace:
    """When an answer's decoding steps are done; tokens count as written when their step is.

    Args:
        seat: The request's slot.
        answer: What is written.
        first: Seconds of work until the first token.
        step: Seconds of work between tokens.
        tally: Where tokens are counted.
        limited: The limit of output tokens, if there is one.
    """

    def __init__(
        self, seat: Seat, answer: Answer, *, first: float, step: float, tally: Tally, limited: Bucket | None
    ) -> None:
        self._seat, self._first, self._step = seat, first, step
        self._total, self._steps = answer.output_tokens, max(1, answer.steps)
        self._tally, self._limited = tally, limited
        self.written = 0

    async def reach(self, after: int) -> None:
        """Wait for a decoding step, from 1."""
        await self._seat.reach(self._first + self._step * (after - 1))
        self._write(after)

    def stop(self) -> None:
        """Count what was written by now of an answer that nobody waits for any more."""
        work = self._seat.work() - self._first
        if work >= 0:
            self._write(min(self._steps, 1 + int(work / self._step)) if self._step else self._steps)

    def _write(self, after: int) -> None:
        tokens = max(0, self._total * after // self._steps - self.written)
        self.written += tokens
        self._tally.output_tokens += tokens
        if self._limited is not None:
            self._limited.take(tokens, asyncio.get_running_loop().time())


@dataclass(frozen=True, slots=True)
class Dialect:
    """A wire format of completions."""

    path: str
    """How its path ends."""
    parse: Callable[[bytes, Headers], Ask]
    """Reads a request, or raises Refusal."""
    wire: Wire
    """Writes answers."""
    format_field: str
    """The field that asks for JSON."""


OPENAI = Dialect("/chat/completions", openai_ask.parse, openai_wire, "response_format")
ANTHROPIC = Dialect("/messages", anthropic_ask.parse, anthropic_wire, "output_config")


@dataclass(slots=True)
class Visit:
    """One request being served."""

    dialect: Dialect
    """In which it speaks."""
    here: Place
    """Where."""
    stamp: Stamp
    """Names its answer."""
    rng: random.Random
    """Its own source of randomness."""
    kind: Kind
    """The fault that it meets."""
    came: float
    """Loop time at which it came."""
    seat: Seat | None = None
    """Its slot, while it has one."""
    pace: Pace | None = None
    """How its tokens come."""
    read: int = 0
    """Tokens read for it."""
    whole: bool = False
    """Whether its answer went out whole."""
    left: bool = False
    """Whether it is counted out, or never was counted in."""

    def ask(self, headers: Headers, body: bytes, structured: Structured) -> Ask:
        """Read the request as the model gets it; raises Refusal."""
        return take(self.dialect.parse(body, headers), structured, self.dialect.format_field)

    @property
    def wire(self) -> Wire:
        """Writes its answer."""
        return self.dialect.wire

    @property
    def now(self) -> float:
        """Loop time."""
        return self.here.loop.time()

    @property
    def unix(self) -> float:
        """Unix time in seconds."""
        return self.here.unix


def poor(answer: Answer, ask: Ask, kind: str) -> Answer:
    """The answer without its text."""
    nothing = Choice((), "content_filter" if kind == "refused" else "stop")
    return replace(answer, choices=(nothing,) * ask.n, reasoning=())


def facts(allowance: Allowance, name: str, visit: Visit, ask: Ask, costs: dict[str, int]) -> JSON:
    """What an error about a rate limit says."""
    level = allowance.levels(visit.now)[name]
    used = level.limit - level.remaining
    return {"model": ask.model, "bucket": name, "limit": level.limit, "used": used, "asked": costs[name]}
