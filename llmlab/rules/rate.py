"""At most so much a minute: requests, tokens, money.

Each dimension is a token bucket (`llmlab.rules.meter`). A call goes when every dimension of its cost has enough, and
is charged in all of them or in none.

    settled            requests   input   output    total               money
    never sent         back       back    back      back                back
    with usage known   what was not used comes back, what was used beyond the estimate is charged
    refused            kept       kept    back      less the output     back
    failed otherwise   kept       kept    back      less the output     kept

What a provider says only ever lowers a level. A limit nobody has named is no limit, until a 429 that no known limit
explains: then the rate of sending is governed (`llmlab.rules.governor`).
"""

import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import ClassVar, TypeAlias

from llmlab.errors import LLMError, Refused
from llmlab.rules.checks import amount_above_zero
from llmlab.rules.governor import BETA, Governor
from llmlab.rules.meter import Meter

Cost: TypeAlias = Mapping[str, float]
Levels: TypeAlias = Mapping[str, tuple[float, float, float]]

MINUTE, DAY = 60.0, 86_400.0
DIMENSIONS = {
    "rpm": "requests", "tpm": "total_tokens", "input_tpm": "input_tokens", "output_tpm": "output_tokens",
    "usd_per_day": "usd",
}  # fmt: skip
"""Name of the setting -> dimension."""

SLACK = 1e-6  # seconds; a shorter wait is none, as a timer of 1e-15 s never moves a float clock (this does up to 2^31)
RISE = 1.2  # times what was told last; growth goes on in steps of half a second, and nobody wants to hear of each

_RAMP = frozenset({"slow_down", "ramp_limit_exceeded"})
_REQUESTS = re.compile(r"\brequests? per |\bnumber of requests\b|\bcall rate\b|\brp[sm]\b|^requests:", re.IGNORECASE)
_TOKENS = re.compile(r"\b(?:(input|output)[ _-])?tokens?\b|\b([io])?tpm\b", re.IGNORECASE)
_KINDS = {"input": "input_tokens", "i": "input_tokens", "output": "output_tokens", "o": "output_tokens"}


@dataclass(frozen=True, slots=True)
class Gauge:
    """One dimension at one moment."""

    limit: float | None
    """Per minute (usd: per day), the lower of ours and the provider's. None: none is known."""
    level: float
    """What may be taken now; below 0: owed; inf without a limit."""
    paused_until: float
    """Loop time before which the provider wants no more of it; past, or -inf: no pause."""


@dataclass(frozen=True, slots=True)
class Pause:
    """The provider asked to be left alone for a while, or for longer than it had asked before."""

    at: float
    """Loop time, seconds."""
    until: float
    """Loop time at which the pause ends, as now known."""
    dimensions: tuple[str, ...]
    """What is held back till then, sorted: requests, input_tokens, …"""
    reason: str
    """Why, in a few words."""


@dataclass(frozen=True, slots=True)
class Learned:
    """429s have taught another rate of sending, as no limit is known that would explain them."""

    at: float
    """Loop time, seconds."""
    rpm: float
    """Requests a minute from now on."""
    reason: str
    """Why, in a few words."""


@dataclass
class Rate:
    """Keep within limits per minute, the user's and the provider's, whichever are lower.

    In any t seconds no more goes than burst + rate * t, besides what is given back meanwhile. Does not limit how
    many calls are in flight, and stops nothing for good: `usd_per_day` is a pace, not a budget.

    Raises:
        TypeError, ValueError: a limit is no finite number above 0.
    """

    binds: ClassVar[str] = "rate limit"
    """What a wait for it means to a person."""

    rpm: float | None = None
    """Requests a minute. None: as the provider says or 429s teach; so for all limits."""
    tpm: float | None = None
    """Tokens a minute, input and output together."""
    input_tpm: float | None = None
    """Input tokens a minute."""
    output_tpm: float | None = None
    """Output tokens a minute."""
    usd_per_day: float | None = None
    """US dollars a day."""
    burst: float = 5.0
    """Seconds' worth of a limit per minute that may go at once, at most 60; of a limit per day the same share.

    A whole minute at once is the usual first wave of 429s: providers enforce their minutes over shorter spans.
    """
    stray: float = 0.0
    """A 429 without a known reason teaches nothing while fewer than three, or than this share, of the latest requests
    met one: its row backs off, and nobody else. From 0 to below 1; 0: each one teaches."""
    _meters: dict[str, Meter] = field(default_factory=dict, init=False, repr=False, compare=False)
    _governor: Governor = field(init=False, repr=False, compare=False)
    _told: float = field(default=math.inf, init=False, repr=False, compare=False)  # the governor's rate last told
    _changed: Callable[[], None] | None = field(default=None, init=False, repr=False, compare=False)
    _tell: Callable[[object], None] | None = field(default=None, init=False, repr=False, compare=False)
    _free: bool = field(default=True, init=False, repr=False, compare=False)  # no limit, no pause, nothing to ask

    def __post_init__(self) -> None:
        amount_above_zero("Rate: burst", self.burst)
        if not 0 <= self.stray < 1:
            raise ValueError(f"Rate: stray must be at least 0 and below 1, not {self.stray!r}")
        if self.burst > MINUTE:
            raise ValueError(f"Rate: burst must be at most {MINUTE:.0f} seconds, not {self.burst!r}")
        self._governor = Governor()
        self._limit(-math.inf, {name: limit for name in DIMENSIONS if (limit := getattr(self, name)) is not None})

    @property
    def learned_rpm(self) -> float | None:
        """Requests a minute, as 429s have taught. None: nothing had to be learned."""
        return self._governor.rate * MINUTE if self._governor.rate < math.inf else None

    def snapshot(self, now: float) -> dict[str, Gauge]:
        """Give the gauge of each dimension met so far."""
        return {name: Gauge(each.limit, each.level(now), each.paused) for name, each in self._meters.items()}

    def set_limits(self, now: float, limits: Mapping[str, float | None]) -> None:
        """Change limits while in use: name (`rpm`, `tpm`, …) -> limit, None lifts it, those left out stay.

        What is owed stays owed; what 429s have taught is forgotten.
        """
        self._limit(now, limits)
        self._governor.set(now, math.inf)
        if self._changed is not None:
            self._changed()

    def gauge(self, now: float) -> dict[str, float | str]:
        """Give `<dimension>_limit` and `_level` where there is a limit, `learned_rpm` and `paused_s` if they are."""
        seen: dict[str, float | str] = {}
        for name, meter in self._meters.items():
            if meter.limit is not None:
                seen[f"{name}_limit"], seen[f"{name}_level"] = meter.limit, meter.level(now)
        if self.learned_rpm is not None:
            seen["learned_rpm"] = self.learned_rpm
        paused = max((meter.paused for meter in self._meters.values()), default=now) - now
        return seen | {"paused_s": paused} if paused > 0 else seen

    def watch(self, changed: Callable[[], None], tell: Callable[[object], None]) -> None:
        """Call `changed` when new limits may let somebody in, `tell` with each `Pause` and each `Learned`.

        A rate that rises is told of in steps of 20%.
        """
        self._changed, self._tell = changed, tell

    def refuse(self, now: float) -> None:
        """Never: a rate's time comes."""

    def wait(self, now: float, cost: Cost) -> float:
        """Seconds until every dimension of `cost` has enough; 0: now. Never infinity."""
        if self._free:
            return 0.0
        free = self._governor.meter.free(1.0)
        for name, amount in cost.items():
            if (meter := self._meters.get(name)) is not None:
                free = max(free, meter.free(amount))
        return free - now if free - now > SLACK else 0.0

    def take(self, now: float, cost: Cost) -> None:
        """Charge an admitted call's estimate."""
        for name, amount in cost.items():
            self._meter(name).take(now, amount)
        self._governor.send(now)

    def settle(
        self,
        now: float,
        cost: Cost,
        error: BaseException | None,
        used: Cost | None,
        levels: Levels | None,
        sent: float | None,
        permit: object = None,  # noqa: ARG002  the rules share one shape
    ) -> None:
        """Correct the estimate of a call that has ended, and hear what the provider said."""
        for name, amount in _changes(cost, error, used, sent):
            self._meter(name).correct(now, amount)
        if sent is None:
            self._governor.refuse(now, 0.0)
            self._governor.meter.correct(now, -1.0)
            return
        for name, (limit, remaining, _) in (levels or {}).items():
            self._meter(name).sync(now, limit, remaining, sent, self.burst / MINUTE)
            self._free = False
        if error is None:
            self._governor.succeed(now, now - sent)
            if RISE * self._told <= self._governor.rate < math.inf:
                self._say(self._learned(now, "no more 429s: more is tried"))
        elif isinstance(error, LLMError) and error.verdict.throttle:
            self._throttle(now, cost, error, levels or {}, sent)

    def _meter(self, name: str) -> Meter:
        meter = self._meters.get(name)
        if meter is None:
            meter = self._meters[name] = Meter(DAY if name == "usd" else MINUTE)
        return meter

    def _limit(self, now: float, limits: Mapping[str, float | None]) -> None:
        self._free = self._free and not limits
        for name, limit in limits.items():
            if name not in DIMENSIONS:
                raise TypeError(f"Rate: a limit is one of {', '.join(DIMENSIONS)}, not {name!r}")
            if limit is not None:
                amount_above_zero(f"Rate: {name}", limit)
        for name, limit in limits.items():
            setattr(self, name, limit)
            meter = self._meter(DIMENSIONS[name])
            meter.own = limit
            meter.bound(now, self.burst / MINUTE)

    def _throttle(self, now: float, cost: Cost, error: LLMError, levels: Levels, sent: float) -> None:
        self._free = False
        short = {name for name, (_, left, _) in levels.items() if left <= 0 or left < cost.get(name, 0.0)}
        named = short or _named(f"{error.code}: {error.message}")
        concerned = named & cost.keys() or cost.keys() - {"usd"}  # money's pace is ours alone
        happened: list[Pause | Learned] = []
        if error.retry_after:
            happened += self._pause(now, cost, error.retry_after, concerned)
        self._governor.refuse(sent)
        known = any(self._meter(name).per for name in concerned)
        explained = known and (short or error.retry_after)
        ramp = error.code in _RAMP
        governed = ramp or not (explained or self._governor.stray(now, self.stray))
        if governed and self._governor.cut(now, sent):
            why = "the provider asks for a slower start" if ramp else "a 429 that no known limit explains"
            happened.append(self._learned(now, f"{why}: {BETA:g} of {self._governor.peak * MINUTE:.0f} a minute"))
        self._say(*happened)

    def _pause(self, now: float, cost: Cost, seconds: float, concerned: Iterable[str]) -> list[Pause]:
        """Hold back what a Retry-After is about; gives what is to be told: nothing if that much was known."""
        until = now + seconds
        later = [name for name in sorted(concerned) if self._meter(name).pause(until, cost[name])]
        self._governor.pause(now, until)
        return [Pause(now, until, tuple(later), f"the provider asked to wait {seconds:.3g} s")] if later else []

    def _learned(self, now: float, reason: str) -> Learned:
        self._told = self._governor.rate
        return Learned(now, self._told * MINUTE, reason)

    def _say(self, *happened: object) -> None:
        """Last in each change: who listens finds the state complete, and may change it."""
        if self._tell is not None:
            for each in happened:
                self._tell(each)


def _changes(cost: Cost, error: BaseException | None, used: Cost | None, sent: float | None) -> list[tuple[str, float]]:
    """What the end of a call adds to its charges (the table above)."""
    if sent is None:
        return [(name, -amount) for name, amount in cost.items()]
    if used is not None:
        return [(name, amount - cost.get(name, 0.0)) for name, amount in used.items()]
    if error is None:
        return []
    output, total = cost.get("output_tokens", 0.0), cost.get("total_tokens", 0.0)
    back = {"output_tokens": output, "total_tokens": min(output, total)}
    if isinstance(error, Refused):  # no provider bills a refusal; a broken answer may be billed
        back["usd"] = cost.get("usd", 0.0)
    return [(name, -amount) for name, amount in back.items() if amount]


def _named(text: str) -> set[str]:
    """Dimensions that a provider's words speak of."""
    named = {"requests"} if _REQUESTS.search(text) else set()
    if found := list(_TOKENS.finditer(text)):
        kinds = {_KINDS[kind.lower()] for match in found if (kind := match[1] or match[2])}
        named |= kinds or {"input_tokens", "output_tokens", "total_tokens"}
    return named
