"""Concurrency as others choose it: Fixed by hand, AIMD by refusals, Gradient by latency."""

import math
from collections import deque
from dataclasses import dataclass, field

from llmlab.errors import RateLimited
from llmlab.rules.adapt import Decision, Row, Sample, Work, log
from llmlab.rules.checks import check, count

SAMPLES = 10
"""Requests per window at least."""


@dataclass
class Fixed:
    """The same number of calls in flight all the time."""

    n: int = 32
    """Calls in flight at most, at least 1."""
    limit: int = field(init=False, compare=False)
    """Calls in flight at most, now."""
    decisions: deque[Decision] = field(default_factory=log, init=False, repr=False, compare=False)
    """The latest decisions: only pins."""

    def __post_init__(self) -> None:
        check(self, whole=("n",))
        self.limit = self.n

    def start(self, now: float) -> int:  # noqa: ARG002  the controllers share one shape
        """Nothing to note."""
        return 0

    def finish(
        self,
        now: float,
        tag: int,
        sample: Sample,
        error: BaseException | None,
        *,
        in_flight: int,
        line_waiting: int,
        rate_bound: bool,
    ) -> None:
        """Nothing to learn."""

    def tick(self, now: float) -> float:  # noqa: ARG002
        """Never needs to be asked."""
        return math.inf

    def pin(self, limit: int, now: float) -> None:
        """Hold another number from now on."""
        self._move(count("pin", limit), "pinned", now)

    def unpin(self, now: float) -> None:
        """Back to the number of the settings."""
        self._move(self.n, "unpinned", now)

    def _move(self, limit: int, reason: str, now: float) -> None:
        self.limit = limit
        self.decisions.append(Decision(now, limit, reason))


@dataclass
class AIMD:
    """Grow while the provider refuses nothing, shrink when it does; the constants are inspect_ai's.

    A round is as many successes as the limit. Slow start: x2 per round until the first 429; then +5% per round, up to
    the next multiple of 5. A 429 leaves 0.8 and starts 15 s in which nothing counts. A round grows the limit only if
    80% of it was in use. Other errors change nothing. Where nothing is refused it ends at `most`, however slow the
    answers have become.
    """

    initial: int = 20
    """Limit at first, within `least` and `most`."""
    least: int = 10
    """Never below."""
    most: int = 100
    """Never above."""
    growth: float = 0.05
    """Growth per round after slow start, as a share."""
    cut: float = 0.8
    """What is left of the limit after a 429, as a share."""
    cooldown: float = 15.0
    """Seconds after a cut in which neither successes nor 429s count."""
    in_use: float = 0.8
    """Share of the limit that must have been in flight for it to grow."""
    limit: int = field(init=False, compare=False)
    """Calls in flight at most, now."""
    decisions: deque[Decision] = field(default_factory=log, init=False, repr=False, compare=False)
    """The latest decisions, oldest first."""
    _slow_start: bool = field(default=True, init=False, repr=False, compare=False)
    _clean: int = field(default=0, init=False, repr=False, compare=False)
    _peak: int = field(default=0, init=False, repr=False, compare=False)
    _counts_from: float = field(default=-math.inf, init=False, repr=False, compare=False)
    _pinned: bool = field(default=False, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        check(self, whole=("initial", "least", "most"), above=("cooldown",), share=("growth", "cut", "in_use"))
        self.limit = min(self.most, max(self.least, self.initial))

    @property
    def settled(self) -> bool:
        """Whether 429s have brought it below `most`."""
        return not self._slow_start and not self._pinned and self.limit < self.most

    def start(self, now: float) -> int:  # noqa: ARG002  the controllers share one shape
        """Nothing to note."""
        return 0

    def finish(
        self,
        now: float,
        tag: int,  # noqa: ARG002
        sample: Sample,  # noqa: ARG002
        error: BaseException | None,
        *,
        in_flight: int,
        line_waiting: int,  # noqa: ARG002
        rate_bound: bool,  # noqa: ARG002
    ) -> None:
        """Count a success; cut at a 429."""
        if now < self._counts_from or (error is not None and not isinstance(error, RateLimited)):
            return
        if error is not None:
            self._slow_start, self._counts_from = False, now + self.cooldown
            self._move(max(self.least, int(self.limit * self.cut)), "429", in_flight, now)
            return
        self._clean += 1
        self._peak = max(self._peak, in_flight)
        if self._clean >= self.limit:
            self._grow(now)

    def _grow(self, now: float) -> None:
        if self._peak < self.in_use * self.limit:
            self._move(self.limit, "not in use", self._peak, now)
        elif self._slow_start:
            self._move(min(self.most, 2 * self.limit), "slow start", self._peak, now)
        else:
            grown = 5 * math.ceil(self.limit * (1 + self.growth) / 5)
            self._move(min(self.most, grown), "clean round", self._peak, now)

    def _move(self, limit: int, reason: str, in_flight: float, now: float) -> None:
        self.decisions.append(Decision(now, self.limit if self._pinned else limit, reason, in_flight, n=self._clean))
        self._clean = self._peak = 0
        if not self._pinned:
            self.limit = limit

    def tick(self, now: float) -> float:  # noqa: ARG002
        """Never needs to be asked."""
        return math.inf

    def pin(self, limit: int, now: float) -> None:
        """Hold the limit at a number from now on, also outside `least` and `most`."""
        self._pinned, self.limit = True, count("pin", limit)
        self._move(self.limit, "pinned", 0.0, now)

    def unpin(self, now: float) -> None:
        """Go on by itself from there."""
        self._pinned = False
        self._move(min(self.most, max(self.least, self.limit)), "unpinned", 0.0, now)


@dataclass
class Gradient:
    """Shrink when requests of one length take longer than they used to: Netflix's Gradient2, per token.

    Per window, with S the mean slowdown (seconds over those expected by length) and long its slow mean:

        g = min(1, max(0.5, tolerance * long / S))     limit' = limit + smoothing * (limit * g + queue - limit)

    long falls by 5% per window while it is more than twice S; a window in which less than half of the limit was in
    flight changes nothing; errors are ignored. What is expected by length is learned in the first `warm_up`
    windows and then stays: learned on, it would take congestion for the normal case, as `long` in time does.
    """

    initial: int = 20
    """Limit at first, within `least` and `most`."""
    least: int = 20
    """Never below."""
    most: int = 200
    """Never above."""
    tolerance: float = 1.5
    """How much slower than usual still counts as usual."""
    queue: int = 4
    """What it grows by per window, before smoothing."""
    smoothing: float = 0.2
    """Share of the way towards the new limit that is gone per window."""
    window: float = 1.0
    """Seconds per window at least; it also has 10 samples at least."""
    memory: int = 600
    """Windows that the slow mean looks back."""
    warm_up: int = 10
    """Windows at first in which it only learns."""
    limit: int = field(init=False, compare=False)
    """Calls in flight at most, now."""
    decisions: deque[Decision] = field(default_factory=log, init=False, repr=False, compare=False)
    """The latest decisions, oldest first."""
    _exact: float = field(init=False, repr=False, compare=False)
    _work: Work = field(default_factory=Work, init=False, repr=False, compare=False)
    _rows: list[Row] = field(default_factory=list, init=False, repr=False, compare=False)
    _peak: int = field(default=0, init=False, repr=False, compare=False)
    _since: float | None = field(default=None, init=False, repr=False, compare=False)
    _windows: int = field(default=0, init=False, repr=False, compare=False)
    _long: float = field(default=0.0, init=False, repr=False, compare=False)
    _gradient: float = field(default=1.0, init=False, repr=False, compare=False)
    _pinned: bool = field(default=False, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        whole = ("initial", "least", "most", "queue", "memory", "warm_up")
        check(self, whole=whole, above=("tolerance", "window"), share=("smoothing",))
        self.limit = min(self.most, max(self.least, self.initial))
        self._exact = float(self.limit)

    @property
    def settled(self) -> bool:
        """Whether answers were slower than usual, when last looked at, at a limit below `most`."""
        return self._gradient < 1 and not self._pinned and self.limit < self.most

    def start(self, now: float) -> int:
        """Open the first window."""
        if self._since is None:
            self._since = now
        return 0

    def finish(
        self,
        now: float,
        tag: int,  # noqa: ARG002  the controllers share one shape
        sample: Sample,
        error: BaseException | None,
        *,
        in_flight: int,
        line_waiting: int,  # noqa: ARG002
        rate_bound: bool,  # noqa: ARG002
    ) -> None:
        """Take in a success; at a window's end, decide."""
        if error is not None:
            return
        self._rows.append(self._work.learn(sample))
        self._peak = max(self._peak, in_flight)
        if len(self._rows) >= SAMPLES and self._since is not None and now - self._since >= self.window:
            self._close(now)
            self._rows, self._peak, self._since = [], 0, now

    def _close(self, now: float) -> None:
        self._windows += 1
        if self._windows <= self.warm_up:
            self._work.solve()
            self._move(self._exact, "warm-up", math.nan, now)
            return
        slowdown = sum(row[0] for row in self._rows) / sum(map(self._work.seconds, self._rows))
        after = self._windows - self.warm_up
        # A plain mean at first, then a slow one: Netflix's ExpAvgMeasurement.
        share = 1.0 / after if after <= self.warm_up else 2.0 / (self.memory + 1)
        self._long += share * (slowdown - self._long)
        if self._long > 2 * slowdown:
            self._long *= 0.95
        if 2 * self._peak < self.limit:
            self._move(self._exact, "not in use", slowdown, now)
            return
        g = self._gradient = min(1.0, max(0.5, self.tolerance * self._long / slowdown))
        wanted = self._exact + self.smoothing * (self._exact * g + self.queue - self._exact)
        self._move(wanted, "slower than usual" if g < 1 else "as fast as usual", slowdown, now)

    def _move(self, exact: float, reason: str, slowdown: float, now: float) -> None:
        if not self._pinned:
            self._exact = min(float(self.most), max(float(self.least), exact))
            self.limit = int(self._exact)
        rows = len(self._rows)
        self.decisions.append(Decision(now, self.limit, reason, self._peak, n=rows, slowdown=slowdown))

    def tick(self, now: float) -> float:  # noqa: ARG002
        """Never needs to be asked."""
        return math.inf

    def pin(self, limit: int, now: float) -> None:
        """Hold the limit at a number from now on, also outside `least` and `most`."""
        self._pinned, self.limit = True, count("pin", limit)
        self._exact = float(limit)
        self._move(self._exact, "pinned", math.nan, now)

    def unpin(self, now: float) -> None:
        """Go on by itself from there."""
        self._pinned = False
        self._move(self._exact, "unpinned", math.nan, now)
