"""When a closed loop is steady, and what it does then: pure functions of what ended when.

    begin of the window    began + max(W, a tenth of the time so far): until then the first answers come together
    end                    when no further rows were taken: then the requests in flight become fewer
    N                      requests in flight, averaged over the window
    X, W                   requests that ended in it per second, and how long they took on average
    Little's law           N = X W: off by 5% or more, the window was not steady
    throughput             rows answered in it per second; how well it is known: by the means of 10 batches of equal
                           time, half the width of its 95% interval as a share of it

Procedure and constants as usual in simulation output analysis (batch means: Law, "Simulation Modeling and Analysis").
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

BATCHES = 10
STUDENT = 2.262
"""The 97.5% quantile of Student's t with 9 degrees of freedom."""
LEAST = 60
"""Rows that must have been answered in a window."""
LIVES = 3.0
"""Times the mean latency that a window must last."""
CLOSE = 0.05
"""Share by which Little's law may be off, and how wide half the interval of the throughput may be."""

Span = tuple[float, float]
"""When a request was sent and when it ended, seconds on one clock."""


@dataclass(frozen=True, slots=True)
class Window:
    """What was measured while the loop was steady."""

    begin: float
    """Where it begins, seconds."""
    end: float
    """Where it ends."""
    answered: int
    """Rows answered in it."""
    in_flight: float
    """N: requests in flight, averaged over time."""
    rate: float
    """X: requests that ended per second, failed ones included."""
    latency: float
    """W: how long they took on average, seconds; nan if none ended."""
    error: float
    """|N - X W| / N; nan if nothing was in flight."""
    spread: float
    """Half the width of the throughput's 95% interval as a share of it; inf if it cannot be told."""

    @property
    def seconds(self) -> float:
        """How long it lasts."""
        return self.end - self.begin

    @property
    def steady(self) -> bool:
        """Whether enough rows were answered in it and Little's law holds."""
        return self.answered >= LEAST and self.error < CLOSE

    @property
    def enough(self) -> bool:
        """Whether there is nothing to gain from going on."""
        return self.answered >= LEAST and self.seconds >= LIVES * self.latency and self.spread < CLOSE


def window(
    spans: Sequence[Span],
    *,
    began: float,
    end: float,
    flying: Sequence[float] = (),
    answered: Sequence[float] | None = None,
) -> Window:
    """Measure a loop.

    Args:
        spans: The requests that have ended.
        began: When the loop began.
        end: When it stopped taking further rows, or now.
        flying: When those were sent that have not ended.
        answered: When rows were answered. None: each request that ended was one.
    """
    usual = fmean(after - sent for sent, after in spans) if spans else 0.0
    begin = min(end, began + max(usual, 0.1 * (end - began)))
    seconds = end - begin
    inside = [(sent, after) for sent, after in spans if begin < after <= end]
    area = sum(max(0.0, min(after, end) - max(sent, begin)) for sent, after in spans)
    area += sum(max(0.0, end - max(sent, begin)) for sent in flying)
    in_flight, rate = (area / seconds, len(inside) / seconds) if seconds > 0 else (0.0, 0.0)
    latency = fmean(after - sent for sent, after in inside) if inside else math.nan
    error = abs(in_flight - rate * latency) / in_flight if in_flight > 0 else math.nan
    marks = [at for at in ((after for _, after in spans) if answered is None else answered) if begin < at <= end]
    return Window(begin, end, len(marks), in_flight, rate, latency, error, _spread(marks, begin, seconds))


def _spread(marks: Sequence[float], begin: float, seconds: float) -> float:
    if len(marks) < BATCHES or seconds <= 0:
        return math.inf
    counts = [0] * BATCHES
    for at in marks:
        counts[min(BATCHES - 1, int((at - begin) / seconds * BATCHES))] += 1
    return STUDENT * stdev(counts) / math.sqrt(BATCHES) / fmean(counts)


def gained(before: tuple[float, float], after: tuple[float, float]) -> float:
    """The elasticity between two points (in flight, throughput): % more throughput per 1% more in flight."""
    (n, x), (more, now) = before, after
    if min(n, x, more, now) <= 0 or more <= n:
        return math.inf if now > x else -math.inf
    return math.log(now / x) / math.log(more / n)
