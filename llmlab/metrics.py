"""Counters and latencies of all that a lab does, for whoever watches it for long: the service, a dashboard.

A fold over events, as `progress` is over those of one job: `Metrics().watch(job.bus)` for each job. Memory is bounded,
whatever goes through: counts are by class, percentiles and rates are of late.
"""

import asyncio
from bisect import bisect_left
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

from llmlab.clock import wall_offset
from llmlab.events import Attempted, Bus, Finished, Retrying

RECENT = 2000
"""Answers that percentiles are taken over."""
SPAN = 60
"""Seconds that rates are measured over."""
ERRORS = 20
"""Errors that are remembered in words."""
LONGEST = 300
"""Characters of such an error."""
BOUNDS_S = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 60.0, 120.0, 300.0)
"""Upper bounds of the latency histogram's buckets, seconds."""


@dataclass
class Histogram:
    """Counts of values by bucket."""

    bounds: tuple[float, ...] = BOUNDS_S
    """Upper bounds, ascending; a last bucket takes the rest."""
    counts: list[int] = field(default_factory=list)
    """Values in each bucket, one more than bounds."""
    total: float = 0.0
    """Sum of all values."""

    def __post_init__(self) -> None:
        self.counts = self.counts or [0] * (len(self.bounds) + 1)

    def add(self, value: float) -> None:
        """Count a value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    def cumulative(self) -> list[tuple[str, int]]:
        """Values up to each bound, as Prometheus wants them: the last bound is +Inf."""
        names = [*(f"{bound:g}" for bound in self.bounds), "+Inf"]
        return list(zip(names, accumulate(self.counts), strict=True))


@dataclass
class Metrics:
    """What was asked, answered, repeated and paid so far. Lives on the lab's loop."""

    words: Callable[[BaseException], str] = str
    """What is remembered of an error, for whoever may look."""
    rows: Counter[str] = field(default_factory=Counter)
    """Rows settled, by status: ok, error, cancelled."""
    errors: Counter[str] = field(default_factory=Counter)
    """Rows that ended as an error, by its class."""
    attempts: Counter[tuple[str, str]] = field(default_factory=Counter)
    """Requests, by target and by what came of them: ok, or the error's class."""
    retries: Counter[str] = field(default_factory=Counter)
    """Requests repeated, by the class of the error before."""
    input_tokens: int = 0
    """Of all requests, failed ones included."""
    output_tokens: int = 0
    """Likewise."""
    cost_usd: float | None = None
    """Dollars for them. None: no price was known for any."""
    latency: Histogram = field(default_factory=Histogram)
    """Latency of answers, seconds."""
    last_errors: deque[dict[str, Any]] = field(default_factory=lambda: deque(maxlen=ERRORS))
    """The rows that failed last: `at` (Unix time), `error_type`, `message`."""
    _recent: deque[float] = field(default_factory=lambda: deque(maxlen=RECENT), repr=False)
    _seconds: deque[tuple[int, int, int]] = field(default_factory=lambda: deque(maxlen=SPAN + 1), repr=False)

    def watch(self, bus: Bus) -> None:
        """Count what happens to a job from now on."""
        bus.subscribe(self._attempted, Attempted)
        bus.subscribe(self._retrying, Retrying)
        bus.subscribe(self._finished, Finished)

    def percentiles_ms(self) -> dict[str, float | None]:
        """p50, p95, p99 and mean of the latency of recent answers, milliseconds; None: there were none."""
        ordered = sorted(self._recent)
        if not ordered:
            return dict.fromkeys(("p50", "p95", "p99", "mean"))
        found: dict[str, float | None] = {f"p{q}": _quantile(ordered, q / 100) * 1000.0 for q in (50, 95, 99)}
        return {**found, "mean": sum(ordered) / len(ordered) * 1000.0}

    def rates(self, now: float) -> tuple[float, float]:
        """Rows settled, and output tokens, per second of the last minute; `now` is loop time."""
        fresh = [each for each in self._seconds if now - each[0] <= SPAN]
        if not fresh:
            return 0.0, 0.0
        span = min(float(SPAN), max(1.0, now - fresh[0][0]))
        return sum(each[1] for each in fresh) / span, sum(each[2] for each in fresh) / span

    def _attempted(self, event: Attempted) -> None:
        self.attempts[event.target, "ok" if event.error is None else type(event.error).__name__] += 1
        tokens = 0
        if event.usage is not None:
            self.input_tokens += event.usage.input_tokens
            tokens = event.usage.output_tokens
            self.output_tokens += tokens
        if event.cost_usd is not None:
            self.cost_usd = (self.cost_usd or 0.0) + event.cost_usd
        self._count(0, tokens)

    def _retrying(self, event: Retrying) -> None:
        self.retries[type(event.error).__name__] += 1

    def _finished(self, event: Finished) -> None:
        outcome = event.outcome
        self.rows[outcome.status] += 1
        self._count(1, 0)
        if outcome.reply is not None:
            if not outcome.reply.cache_hit:
                self.latency.add(outcome.reply.latency_s)
                self._recent.append(outcome.reply.latency_s)
        elif outcome.status == "error":
            kind = type(outcome.error).__name__
            self.errors[kind] += 1
            at = asyncio.get_running_loop().time() + wall_offset()
            self.last_errors.append({"at": at, "error_type": kind, "message": self._words(outcome.error)})

    def _words(self, error: BaseException | None) -> str:
        return "" if error is None else self.words(error)[:LONGEST]

    def _count(self, rows: int, tokens: int) -> None:
        second = int(asyncio.get_running_loop().time())
        if self._seconds and self._seconds[-1][0] == second:
            _, before, known = self._seconds.pop()
            rows, tokens = rows + before, tokens + known
        self._seconds.append((second, rows, tokens))


def _quantile(ordered: list[float], q: float) -> float:
    """Linear interpolation between the closest ranks."""
    place = q * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)
