"""At most so much a minute: requests, tokens, money.

Each dimension is a token bucket kept as GCRA: r units a second, B units at most, and one time, TAT, at which the
bucket is full again.

    level      L = B - max(0, TAT - now) r
    may go     when TAT + min(w, B)/r - B/r <= now     a cost w above all of B waits for a full bucket, and goes
    taken      TAT = max(now, TAT) + w/r               in every dimension of the cost, or in none

    settled            requests   input   output    total               money
    never sent         back       back    back      back                back
    with usage known   what was not used comes back, what was used beyond the estimate is charged
    refused            kept       kept    back      less the output     back
    failed otherwise   kept       kept    back      less the output     kept

What a provider says only ever lowers a level: L = min(L, remaining - what was taken since the request was sent).
A limit nobody has named is no limit, until a 429 that no known limit explains: then the rate of sending is governed.
"""

import math
import re
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from llmlab.errors import LLMError, Refused

Cost: TypeAlias = Mapping[str, float]
Levels: TypeAlias = Mapping[str, tuple[float, float, float]]

MINUTE, DAY = 60.0, 86_400.0
DIMENSIONS = {
    "rpm": "requests", "tpm": "total_tokens", "input_tpm": "input_tokens", "output_tpm": "output_tokens",
    "usd_per_day": "usd",
}  # fmt: skip
"""Name of the setting -> dimension."""

SLACK = 1e-6  # seconds; a shorter wait is none, as a timer of 1e-15 s never moves a float clock (this does up to 2^31)
HYSTERESIS = 0.02  # share of the limit: providers' figures are rounded and old, a smaller difference says nothing
BETA, SCALE, FLOOR, GROWTH, EVERY, SPAN = 0.7, 0.4, 0.5, 1.1, 0.5, 4.0  # the governor's; see there
LOG = 1024  # takings remembered per dimension, for the headers of requests sent before them

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


@dataclass
class Rate:
    """Keep within limits per minute, the user's and the provider's, whichever are lower.

    In any t seconds no more goes than burst + rate * t, besides what is given back meanwhile. Does not limit how
    many calls are in flight, and stops nothing for good: `usd_per_day` is a pace, not a budget.

    Raises:
        TypeError, ValueError: a limit is no finite number above 0.
    """

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
    """A 429 without a known reason teaches nothing while fewer than this share of the latest requests met one: its row
    backs off, and nobody else. From 0 to below 1; 0: each one teaches."""
    _meters: dict[str, "_Meter"] = field(default_factory=dict, init=False, repr=False, compare=False)
    _governor: "_Governor" = field(init=False, repr=False, compare=False)
    _changed: Callable[[], None] | None = field(default=None, init=False, repr=False, compare=False)
    _free: bool = field(default=True, init=False, repr=False, compare=False)  # no limit, no pause, nothing to ask

    def __post_init__(self) -> None:
        _check("burst", self.burst)
        if not 0 <= self.stray < 1:
            raise ValueError(f"Rate: stray must be at least 0 and below 1, not {self.stray!r}")
        if self.burst > MINUTE:
            raise ValueError(f"Rate: burst must be at most {MINUTE:.0f} seconds, not {self.burst!r}")
        self._governor = _Governor()
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

    def watch(self, changed: Callable[[], None]) -> None:
        """Call `changed` when new limits may let somebody in."""
        self._changed = changed

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
        elif isinstance(error, LLMError) and error.verdict.throttle:
            self._throttle(now, cost, error, levels or {}, sent)

    def _meter(self, name: str) -> "_Meter":
        meter = self._meters.get(name)
        if meter is None:
            meter = self._meters[name] = _Meter(DAY if name == "usd" else MINUTE)
        return meter

    def _limit(self, now: float, limits: Mapping[str, float | None]) -> None:
        self._free = self._free and not limits
        for name, limit in limits.items():
            if name not in DIMENSIONS:
                raise TypeError(f"Rate: a limit is one of {', '.join(DIMENSIONS)}, not {name!r}")
            if limit is not None:
                _check(name, limit)
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
        if error.retry_after:
            for name in concerned:
                self._meter(name).pause(now + error.retry_after, cost[name])
            self._governor.pause(now, now + error.retry_after)
        self._governor.refuse(sent)
        known = any(self._meter(name).per for name in concerned)
        explained = known and (short or error.retry_after)
        if error.code in _RAMP or not (explained or self._governor.stray(now, self.stray)):
            self._governor.cut(now, sent)


@dataclass(slots=True)
class _Meter:
    """One dimension: `per` = 1/r and `spare` = B/r in seconds, both 0 without a limit: then it only counts."""

    window: float
    own: float | None = None
    told: float | None = None
    limit: float | None = None
    per: float = 0.0
    spare: float = 0.0
    tat: float = -math.inf
    paused: float = -math.inf
    net: float = 0.0  # all that was taken, less what was given back
    log: deque[tuple[float, float]] = field(default_factory=deque)  # time and `net` of each taking after `synced`
    synced: float = -math.inf  # when the request was sent whose headers were the last to count
    seen: float = 0.0  # `net` at that time

    def free(self, amount: float) -> float:
        """Loop time at which `amount` may be taken."""
        lead = amount * self.per - self.spare
        return max(self.paused, self.tat + lead if lead < 0 else self.tat)

    def take(self, now: float, amount: float) -> None:
        self.net += amount
        if self.per:
            self.tat = max(now, self.tat) + amount * self.per
        self.log.append((now, self.net))
        if len(self.log) > LOG:
            self.seen = self.log.popleft()[1]

    def correct(self, now: float, amount: float) -> None:
        self.net += amount
        self.tat = max(now, self.tat) + amount * self.per  # on a TAT long past a charge would vanish

    def level(self, now: float) -> float:
        return (self.spare - max(0.0, self.tat - now)) / self.per if self.per else math.inf

    def bound(self, now: float, share: float) -> None:
        """Put the lower of the two limits in force; what is owed stays owed."""
        limit = min((each for each in (self.own, self.told) if each is not None), default=None)
        if limit == self.limit:
            return
        owed = max(0.0, self.tat - now) / self.per if self.per else 0.0
        self.limit = limit
        self.per, self.spare = (self.window / limit, self.window * share) if limit else (0.0, 0.0)
        self.tat = now + owed * self.per

    def sync(self, now: float, limit: float, remaining: float, sent: float, share: float) -> None:
        """Lower the level to what the provider said it was; a limit that has risen may raise it."""
        if sent < self.synced or limit <= 0:
            return
        self.synced = sent
        while self.log and self.log[0][0] <= sent:
            self.seen = self.log.popleft()[1]
        before, self.told = self.limit or 0.0, limit
        self.bound(now, share)
        # Nobody knows if the figure is as old as the sending or as fresh as the answer. The older one has been
        # refilled since: without that, answers that take minutes would choke their own rate.
        level = remaining - max(0.0, self.net - self.seen - (now - sent) / self.per)
        full_at = now + max(0.0, self.spare - level * self.per)
        if before < (self.limit or 0.0):
            self.tat = full_at
        elif self.level(now) - level > HYSTERESIS * limit:
            self.tat = max(self.tat, full_at)

    def pause(self, until: float, amount: float) -> None:
        """Let nothing pass before `until`, and then no more than the `amount` for which the wait was named."""
        self.paused = max(self.paused, until)
        if self.per:
            self.tat = max(self.tat, until + max(0.0, self.spare - amount * self.per))


@dataclass(slots=True)
class _Governor:
    """CUBIC on the rate of sending, as botocore's adaptive retries (`retries/adaptive.py`, `throttling.py`).

    429     w = min(rate, measured), rate = 0.7 w                 once a wave: not for what was sent before the cut
    200     rate = 0.4 (t - K)^3 + w, K = cbrt(0.3 w / 0.4)       t seconds after the cut; no more than 2 measured, and
                                                                  no more than 1.1 times the rate 10 s before

    Measured is what was sent and not refused in the last max(4 s, median latency), pauses left out: answers still
    to come count, as an LLM's come late. A rate that is not used neither grows nor shrinks.
    """

    rate: float = math.inf
    meter: _Meter = field(default_factory=lambda: _Meter(1.0))
    latency: float = 0.0  # median, followed in steps of 5%
    sends: deque[list[float]] = field(
        default_factory=lambda: deque(maxlen=240)
    )  # start, count, refused of each half second
    peak: float = 0.0
    cut_at: float = -math.inf
    grown_at: float = -math.inf
    pause_from: float = -math.inf
    pause_to: float = -math.inf

    def send(self, now: float) -> None:
        if not self.sends or now - self.sends[-1][0] >= EVERY:
            self.sends.append([now, 0.0, 0.0])
        self.sends[-1][1] += 1.0
        self.meter.correct(now, 1.0)

    def refuse(self, sent: float, refused: float = 1.0) -> None:
        """Count one less of those sent then; `refused`: whether the provider would not have it."""
        for each in reversed(self.sends):
            if each[0] <= sent:
                each[1] = max(0.0, each[1] - 1.0)
                each[2] += refused
                return

    def stray(self, now: float, share: float) -> bool:
        """Whether so few were refused lately that it says nothing about the rate."""
        start = now - min(max(SPAN, self.latency), MINUTE)
        lately = [each for each in self.sends if each[0] >= start]
        refused = sum(each[2] for each in lately)
        return refused < share * (refused + sum(each[1] for each in lately))

    def pause(self, now: float, until: float) -> None:
        if now > self.pause_to:
            self.pause_from = now
        self.pause_to = max(self.pause_to, until)

    def measured(self, now: float) -> float:
        span = min(max(SPAN, self.latency), MINUTE)
        start = now - span
        if start < (resumed := min(now, self.pause_to)):
            start -= resumed - self.pause_from
        return sum(each[1] for each in self.sends if each[0] >= start) / span

    def cut(self, now: float, sent: float) -> None:
        if sent <= self.cut_at:
            return
        self.peak = max(FLOOR / BETA, min(self.rate, self.measured(now)))
        self.cut_at = self.grown_at = now
        self.set(now, BETA * self.peak)
        self.meter.tat = max(self.meter.tat, now + self.meter.spare)

    def succeed(self, now: float, latency: float) -> None:
        self.latency = self.latency * (1.05 if latency > self.latency else 1 / 1.05) or latency
        if self.rate < math.inf and now - self.grown_at >= EVERY:
            k = math.cbrt((1 - BETA) * self.peak / SCALE)
            cubic = SCALE * (now - self.cut_at - k) ** 3 + self.peak
            capped = self.rate * GROWTH ** min(1.0, (now - self.grown_at) / 10)
            self.grown_at = now
            self.set(now, max(self.rate, min(cubic, capped, 2 * self.measured(now))))

    def set(self, now: float, rate: float) -> None:
        self.rate = rate
        self.meter.own = rate if rate < math.inf else None
        self.meter.bound(now, 1.0)


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


def _check(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"Rate: {name} must be a number, not {value!r}")
    if not 0 < value < math.inf:
        raise ValueError(f"Rate: {name} must be a finite number above 0, not {value!r}")
