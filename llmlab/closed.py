"""A job played through on plain heaps: rows, concurrency, a rate, retries; no event loop, so that it is soon done.

Modelled are the default strategy's slots, a limit per minute with its burst, and Retry's formulas and allowances. Not
modelled: breaker, deadlines, hedges, what 429s teach. A strategy with those is played whole: see `llmlab.stage`.
"""

import heapq
import math
import random
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import count

import numpy as np

from llmlab.errors import Verdict
from llmlab.loadfit import Array
from llmlab.machine import Machine, Visit
from llmlab.policies.retry import SPREAD, Retry


@dataclass(frozen=True, slots=True)
class Draw:
    """What becomes of one attempt, drawn from a pilot."""

    alone: float
    """Seconds without company; of a failure, all its seconds."""
    each: float
    """Seconds more for each request in flight."""
    cost: float
    """Dollars; NaN: not known."""
    n_in: float = math.nan
    """Input tokens."""
    n_out: float = math.nan
    """Output tokens."""
    error: str = ""
    """Error class; "" for an answer."""
    verdict: Verdict = field(default_factory=Verdict)
    """What policies make of the error."""
    retry_after: float | None = None
    """Seconds that the provider asks to wait."""


@dataclass(slots=True)
class Played:
    """What came of a run."""

    latency: Array
    """Seconds of each successful attempt."""
    makespan: float
    """Seconds from the first row's start to the last one's end."""
    rows: int
    """Rows settled."""
    failed: int
    """Rows without an answer."""
    attempts: int
    """Requests sent."""
    throttled: int
    """429s among them."""
    cost: float
    """Dollars; NaN: not known."""
    in_flight: float
    """Mean requests in flight."""
    peak: int
    """Most requests in flight at any time."""
    rate: float
    """Rows settled per second between the first quarter and the last row sent: of a longer run, the rate goes on."""

    def scaled(self, rows: int) -> "Played":
        """The same for more rows: the middle of the run goes on."""
        more = rows / self.rows
        makespan = self.makespan + (rows - self.rows) / self.rate if rows > self.rows else self.makespan
        # Beginning and end stay as long as they are; in flight there is less than in the middle.
        steady = self.in_flight * self.makespan / self.rows * self.rate
        in_flight = (self.in_flight * self.makespan + steady * (makespan - self.makespan)) / makespan
        counts = (round(self.failed * more), round(self.attempts * more), round(self.throttled * more))
        return Played(self.latency, makespan, rows, *counts, self.cost * more, in_flight, self.peak, self.rate)


@dataclass(eq=False, slots=True)
class _Row:
    failures: int = 0
    throttles: int = 0
    delay: float = 0.0
    sent: float = 0.0
    draw: Draw | None = None


class Closed:
    """One run.

    Args:
        draws: What becomes of the attempts, in the order in which they are sent; never ends.
        rows: How many.
        concurrency: In flight at most.
        slots: The provider's, None: not known.
        rpm: Requests a minute that the client lets go. None: no limit.
        burst: Seconds' worth of `rpm` that may go at once.
        retry: Whose formulas and allowances hold.
        rng: Draws the jitter.
    """

    def __init__(
        self,
        draws: Iterator[Draw],
        *,
        rows: int,
        concurrency: int,
        slots: float | None,
        rpm: float | None,
        burst: float,
        retry: Retry,
        rng: random.Random,
    ) -> None:
        self._draws, self._retry, self._rng = draws, retry, rng
        self._rows = self._left = rows
        self._free = concurrency
        self._machine = Machine(slots)
        self._gap = 0.0 if rpm is None else 60.0 / rpm
        self._slack = max(0.0, burst - self._gap)
        self._next = -math.inf  # when the limit was or will be due again
        self._order = count()
        self._back: deque[_Row] = deque()
        self._sleeping: list[tuple[float, int, _Row]] = []
        self._latency: list[float] = []
        self._ends: list[float] = []
        self._failed = self._attempts = self._throttled = 0
        self._cost = 0.0
        self._last_sent = 0

    def play(self) -> Played:
        """Play it to its end."""
        now = 0.0
        while len(self._ends) < self._rows:
            hold = self._send(now)
            wakes = self._sleeping[0][0] if self._sleeping else math.inf
            now = max(now, min(hold, wakes, self._machine.next_end()))
            while self._sleeping and self._sleeping[0][0] <= now:
                self._back.append(heapq.heappop(self._sleeping)[2])
            while (visit := self._machine.ended(now)) is not None:
                self._settle(now, visit.note)
        return self._told(now)

    def _send(self, now: float) -> float:
        """Send what may go; gives when the limit lets the next one go, inf if that is not what it waits for."""
        while self._free and (self._back or self._left):
            if self._gap:
                due = max(self._next, now - self._slack)
                if due > now:
                    return due
                self._next = due + self._gap
            if self._back:
                row = self._back.popleft()
            else:
                row = _Row()
                self._left -= 1
                self._last_sent = len(self._ends)
            self._start(now, row)
        return math.inf

    def _start(self, now: float, row: _Row) -> None:
        draw = row.draw = next(self._draws)
        row.sent = now
        self._free -= 1
        self._attempts += 1
        if not math.isnan(draw.cost):
            self._cost += draw.cost
        self._machine.enter(now, Visit(draw.alone, draw.each, row), slot=not draw.error)

    def _settle(self, now: float, row: _Row) -> None:
        self._free += 1
        draw = row.draw
        assert draw is not None  # noqa: S101  it was sent
        if not draw.error:
            self._latency.append(now - row.sent)
            self._ends.append(now)
            return
        self._throttled += draw.verdict.throttle
        delay = self._delay(row, draw)
        if delay is None:
            self._failed += 1
            self._ends.append(now)
        else:
            heapq.heappush(self._sleeping, (now + delay, next(self._order), row))

    def _delay(self, row: _Row, draw: Draw) -> float | None:
        """Seconds before the next attempt, as `Retry` has it; None: none is made."""
        if not draw.verdict.retry:
            return None
        if draw.verdict.throttle and self._retry.throttled is not None:
            row.throttles += 1
            n, spent = row.throttles, row.throttles > self._retry.throttled
        else:
            row.failures += 1
            n, spent = row.failures, row.failures >= self._retry.attempts
        if spent:
            return None
        row.delay = self._retry.seconds(n, row.delay, self._rng)
        return max(row.delay, (draw.retry_after or 0.0) * (1 + self._rng.uniform(0, SPREAD)))

    def _told(self, makespan: float) -> Played:
        first, last = self._rows // 4, max(self._rows // 4 + 1, self._last_sent)
        begun, over = self._ends[first], self._ends[min(last, self._rows) - 1]
        rate = (last - first - 1) / (over - begun) if over > begun else self._rows / makespan
        return Played(
            np.array(self._latency), makespan, self._rows, self._failed, self._attempts, self._throttled,
            self._cost, self._machine.area / makespan, self._machine.peak, rate,
        )  # fmt: skip
