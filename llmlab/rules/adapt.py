"""Concurrency controllers: values that say how many calls may be in flight, and change their mind.

All share one shape, `Controller`: told when a call starts and how it ended, they keep `limit` up to date. They never
wait and read no clock. A controller is a dataclass whose `init` fields are its configuration, so that
`dataclasses.replace(c)` is a fresh copy; to compare strategies is to compare such values.

    Fixed       a number
    AIMD        grows while nothing is refused, shrinks at a 429: blind where none come
    Gradient    shrinks when answers get slower, per token, than they used to be
    Elastic     asks whether more concurrency still buys throughput

Latency says nothing before the tokens are taken out of it: `Work` learns what a request costs by its length alone.
"""

import math
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias

Row: TypeAlias = tuple[float, float, float]
"""Seconds, output tokens, input tokens of one request, with gaps filled."""

HISTORY = 1_000
"""Decisions that a controller remembers."""

HUBER = 1.7
"""Beyond so many mean relative residuals a row loses weight: 1.345 sigma, as sigma = 1.25 mean |r|."""
SHORTEST, LONGEST = 24, 200
"""Requests per arm: as many as its limit, within these."""
RIDGE = 1e-6
ALIKE = 0.02
PLACE = ((0, 1, 2), (1, 3, 4), (2, 4, 5))
"""Where in the moments the product of two columns stands."""
DIAGONAL = (0, 3, 5)


@dataclass(frozen=True, slots=True)
class Sample:
    """What one request took."""

    seconds: float
    """From admission to its end."""
    input_tokens: int | None = None
    """None: not known."""
    output_tokens: int | None = None
    """None: not known."""
    ttft: float | None = None
    """Seconds to the first token. None: not streamed."""
    itl: float | None = None
    """Seconds between tokens, typically (the median). None: not streamed."""


@dataclass(frozen=True, slots=True)
class Decision:
    """A limit and why; also where it stays what it was."""

    at: float
    """When, loop time."""
    limit: int
    """What the controller is making for; it may rise to it one completion at a time."""
    reason: str
    """Why, in a few words."""
    in_flight: float = 0.0
    """Calls in flight, the mean over what was looked at."""
    arm: str = ""
    """What was being measured, where the controller measures in turns."""
    n: int = 0
    """Requests looked at."""
    slowdown: float = math.nan
    """How many times as long as of late a request of the same length takes."""
    elasticity: float = math.nan
    """% of throughput that 1% of concurrency buys, as measured now."""
    error: float = math.nan
    """Standard error of that."""
    estimate: float = math.nan
    """The smoothed elasticity that is acted on."""


class Controller(Protocol):
    """What says how many calls may be in flight. Never awaits; `now` is loop time, seconds.

    It may have a property `settled` besides: whether it keeps the limit where it is, below the most that it is allowed,
    as more would buy nothing. Then who waits for a slot waits for the provider, not for a number set too low.
    """

    limit: int
    """Calls in flight at most, now."""
    decisions: deque[Decision]
    """The latest decisions, oldest first."""

    def start(self, now: float) -> int:
        """Note that a call was admitted; the tag returned comes back when it has ended."""
        ...

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
        """Note that a call has ended; called exactly once for each `start`.

        Args:
            now: When.
            tag: What `start` returned.
            sample: What it took.
            error: Why it failed. None: it did not.
            in_flight: Calls in flight, this one included.
            line_waiting: Calls that stand in line.
            rate_bound: The head of the line waits for our own rate limit rather than for a slot.
        """
        ...

    def tick(self, now: float) -> float:
        """Look whether the provider has gone silent; returns when to be asked next, infinity for never."""
        ...

    def pin(self, limit: int, now: float) -> None:
        """Hold the limit at a number from now on, whatever is observed."""
        ...

    def unpin(self, now: float) -> None:
        """Go on from there by itself."""
        ...


def log() -> deque[Decision]:
    """Make a controller's memory of its decisions."""
    return deque(maxlen=HISTORY)


def quantile(values: Iterable[float], q: float) -> float:
    """Give the value that a share `q` of them do not pass, from 0 to 1; 0 without any."""
    ranked = sorted(values)
    return ranked[int(q * (len(ranked) - 1))] if ranked else 0.0


@dataclass
class Work:
    """What a request takes by its length alone: seconds = a + b * output tokens + c * input tokens.

    Learned by forgetting least squares on relative residuals r, each row weighted by Huber's min(1, k / |r|) against
    outliers and all earlier rows by `memory`. Coefficients below 0 make no sense and are held at 0. They change only
    in `solve`: what is to be compared must be normalised with the same ones, or they absorb the very congestion
    that is looked for (resilience.md 10.1).
    """

    memory: float = 0.998
    """Weight of a row after one more: 0.998 is about the last 500."""
    coefficients: tuple[float, float, float] = field(default=(0.0, 0.0, 0.0), init=False)
    """a in seconds, b and c in seconds per token."""
    known: bool = field(default=False, init=False)
    """Whether they were ever solved."""
    _moments: list[float] = field(default_factory=lambda: [0.0] * 9, init=False, repr=False)
    _means: list[float] = field(default_factory=lambda: [0.0] * 3, init=False, repr=False)
    _seen: list[float] = field(default_factory=lambda: [0.0] * 3, init=False, repr=False)
    _spread: float = field(default=0.3, init=False, repr=False)

    def learn(self, sample: Sample) -> Row:
        """Take in what a request took; returns it as the row to be normalised later."""
        row = self._row(sample)
        seconds, out, into = row
        expected = self.seconds(row)
        off = abs(seconds - expected) / expected
        self._spread += (min(off, 4 * self._spread) - self._spread) * 0.02
        weight = min(1.0, HUBER * self._spread / off if off else 1.0) / expected**2
        m, keep = self._moments, self.memory
        heavy, heavier = weight * out, weight * into
        m[0] = m[0] * keep + weight
        m[1] = m[1] * keep + heavy
        m[2] = m[2] * keep + heavier
        m[3] = m[3] * keep + heavy * out
        m[4] = m[4] * keep + heavy * into
        m[5] = m[5] * keep + heavier * into
        m[6] = m[6] * keep + weight * seconds
        m[7] = m[7] * keep + heavy * seconds
        m[8] = m[8] * keep + heavier * seconds
        return row

    def seconds(self, row: Row) -> float:
        """What a request of this length should take; never 0."""
        a, b, c = self.coefficients
        mean = self._means[0]
        return max(a + b * row[1] + c * row[2], 0.02 * mean, 1e-9) if self.known else max(mean, 1e-9)

    def solve(self) -> None:
        """Bring the coefficients up to date."""
        columns = [i for i in range(3) if self._moments[DIAGONAL[i]] > 0]
        while columns:
            solution = _solve(self._moments, columns)
            lowest = min(range(len(columns)), key=solution.__getitem__)
            if solution[lowest] >= 0:
                found = dict(zip(columns, solution, strict=True))
                self.coefficients = (found.get(0, 0.0), found.get(1, 0.0), found.get(2, 0.0))
                self.known = True
                return
            del columns[lowest]

    def _row(self, sample: Sample) -> Row:
        out = self._mean(1, sample.output_tokens)
        into = self._mean(2, sample.input_tokens)
        seconds = sample.seconds
        if sample.ttft is not None and sample.itl is not None:
            # Streamed: what an answer of typical length would have taken, so that its own length does not matter.
            out = self._means[1] or 1.0
            seconds = sample.ttft + out * sample.itl
        self._mean(0, seconds)
        return seconds, out, into

    def _mean(self, i: int, value: float | None) -> float:
        """Take a value into a running mean; a gap is filled with that mean."""
        if value is None:
            return self._means[i]
        self._seen[i] = self._seen[i] * self.memory + 1.0
        self._means[i] += (value - self._means[i]) / self._seen[i]
        return float(value)


def _solve(m: list[float], columns: list[int]) -> list[float]:
    """Solve the normal equations for some of the columns by Gauss elimination.

    The ridge shares out between columns that rise and fall together, as when all inputs have one length.
    """
    rows = [[m[PLACE[i][j]] * (1.0 + RIDGE * (i == j)) for j in columns] + [m[6 + i]] for i in columns]
    size = len(rows)
    for i in range(size):
        pivot = rows[i][i]
        for k in range(i + 1, size):
            factor = rows[k][i] / pivot
            rows[k] = [x - factor * y for x, y in zip(rows[k], rows[i], strict=True)]
    solution = [0.0] * size
    for i in reversed(range(size)):
        rest = sum(rows[i][j] * solution[j] for j in range(i + 1, size))
        solution[i] = (rows[i][size] - rest) / rows[i][i]
    return solution


@dataclass
class Arm:
    """A stretch of the job at one limit, and the requests that started in it."""

    name: str
    """What it is for."""
    limit: int
    """Its limit; it begins when the limit has got there."""
    tag: int = 0
    """Of the requests started in it. 0: it has not begun."""
    rows: list[Row] = field(default_factory=list)
    """Those that succeeded."""
    in_flight: int = 0
    """Calls in flight as they ended, summed over the rows."""
    ended: int = 0
    """Calls that ended meanwhile, whenever started."""
    waiting: int = 0
    """So many of them while others stood in line."""
    held: int = 0
    """So many of its successes while our own rate limit, and not the slots, held the line: they do not count."""
    failed: int = 0
    """So many of them by a failure of the provider."""

    @property
    def mean(self) -> float:
        """Mean number of calls in flight."""
        return self.in_flight / len(self.rows) if self.rows else 0.0

    @property
    def full(self) -> bool:
        """Whether it has its requests, or as many that do not count."""
        return max(len(self.rows), self.held) >= self._size

    def add(self, row: Row, in_flight: int, *, rate_bound: bool) -> None:
        """Take in one of its requests, which has succeeded."""
        # With slots nearly all taken they bind as well: answers that end together wait a moment for a smooth limit.
        if rate_bound and in_flight < 0.95 * self.limit:
            self.held += 1
        else:
            self.rows.append(row)
            self.in_flight += in_flight

    def flaw(self) -> str:
        """Why nothing can be concluded from it; "": nothing is wrong."""
        if len(self.rows) < self._size:
            return "rate limit binds"
        if self.failed > 0.2 * self.ended:
            return "failures"
        if self.mean < 0.8 * self.limit:
            return "line is held" if 2 * self.waiting > self.ended else "too few rows"
        return ""

    @property
    def _size(self) -> int:
        return min(LONGEST, max(SHORTEST, self.limit))


@dataclass(frozen=True, slots=True)
class Measured:
    """The elasticity between two arms."""

    elasticity: float
    """e, not limited to what makes sense."""
    error: float
    """Its standard error, from the dispersion within the arms."""

    @property
    def weight(self) -> float:
        """Trust in it, from 0 to 1: 1 / (1 + (error / 0.3)^2)."""
        return 1.0 / (1.0 + (self.error / 0.3) ** 2)


def slowdown(rows: Sequence[Row], work: Work) -> tuple[float, float]:
    """Trimmed mean of ln S, the extreme 10% left out, and its standard error.

    Each request has the weight of its expected seconds. A wait in line of q adds q / W to ln S, much for a short
    request and little for a long one; weighted so, the mean is q over the mean of W, as in Little's law.
    """
    logs = sorted((math.log(max(row[0], 1e-9) / (alone := work.seconds(row))), alone) for row in rows)
    cut = len(logs) // 20
    kept = logs[cut : len(logs) - cut]
    total = sum(weight for _, weight in kept)
    mean = sum(s * weight for s, weight in kept) / total
    return mean, math.sqrt(sum(((s - mean) * weight) ** 2 for s, weight in kept)) / total


def measure(one: Arm, other: Arm, work: Work) -> Measured | None:
    """Elasticity between two arms, both normalised by the same coefficients; None: their N hardly differ."""
    step = math.log(other.mean / one.mean)
    if abs(step) < ALIKE:
        return None
    (s_one, error_one), (s_other, error_other) = slowdown(one.rows, work), slowdown(other.rows, work)
    return Measured(1.0 - (s_other - s_one) / step, math.hypot(error_one, error_other) / abs(step))
