"""The rate of sending where no limit is known: found by 429s.

CUBIC, as botocore's adaptive retries (`retries/adaptive.py`, `throttling.py`):

    429     w = min(rate, measured), rate = 0.7 w                 once a wave: not for what was sent before the cut
    200     rate = 0.4 (t - K)^3 + w, K = cbrt(0.3 w / 0.4)       t seconds after the cut; no more than 2 measured, and
                                                                  no more than 1.1 times the rate 10 s before

Measured is what was sent and not refused in the last max(4 s, median latency), pauses left out: answers still
to come count, as an LLM's come late. A rate that is not used neither grows nor shrinks.
"""

import math
from collections import deque
from dataclasses import dataclass, field

from llmlab.rules.meter import Meter

BETA, SCALE = 0.7, 0.4
"""CUBIC's: what a cut leaves, and how steeply the rate comes back."""
FLOOR = 0.5
"""Requests a second that a cut leaves at least."""
GROWTH = 1.1
"""The rate grows to so many times itself in 10 s at most."""
EVERY = 0.5
"""Seconds that are counted as one, and between two steps of growth."""
SHORTEST, LONGEST = 4.0, 60.0
"""Seconds over which the rate of sending is measured, at least and at most."""
FEW = 3
"""429s that say nothing yet, where some are to be expected: one among the first ten requests is not a tenth."""
KEPT = 240
"""So many times `EVERY` are remembered."""


@dataclass(slots=True)
class Governor:
    """How fast to send, as 429s teach; no limit before the first."""

    rate: float = math.inf
    """Requests a second."""
    meter: Meter = field(default_factory=lambda: Meter(1.0))
    """Holds that rate."""
    latency: float = 0.0
    """Median of successes, followed in steps of 5%; seconds."""
    sends: deque[list[float]] = field(default_factory=lambda: deque(maxlen=KEPT))
    """Loop time of the start, requests sent and not refused, and refused, of each half second."""
    peak: float = 0.0
    """w, requests a second."""
    cut_at: float = -math.inf
    """Loop time of the last cut."""
    grown_at: float = -math.inf
    """Loop time of the last growth or cut."""
    pause_from: float = -math.inf
    """Loop time at which the last pause began."""
    pause_to: float = -math.inf
    """Loop time at which it ends."""

    def send(self, now: float) -> None:
        """Count a request."""
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
        """Whether so few were refused lately that it says nothing about the rate; with a `share` of 0 never."""
        start = now - self._span
        lately = [each for each in self.sends if each[0] >= start]
        refused = sum(each[2] for each in lately)
        return share > 0 and refused < max(FEW, share * (refused + sum(each[1] for each in lately)))

    def pause(self, now: float, until: float) -> None:
        """Note that nothing is sent meanwhile, for no fault of the rate."""
        if now > self.pause_to:
            self.pause_from = now
        self.pause_to = max(self.pause_to, until)

    def measured(self, now: float) -> float:
        """Requests a second that were sent of late and not refused."""
        start = now - self._span
        if start < (resumed := min(now, self.pause_to)):
            start -= resumed - self.pause_from
        return sum(each[1] for each in self.sends if each[0] >= start) / self._span

    def cut(self, now: float, sent: float) -> bool:
        """Send more slowly after a 429; returns whether it did: not for a request sent before the last cut."""
        if sent <= self.cut_at:
            return False
        self.peak = max(FLOOR / BETA, min(self.rate, self.measured(now)))
        self.cut_at = self.grown_at = now
        self.set(now, BETA * self.peak)
        self.meter.tat = max(self.meter.tat, now + self.meter.spare)
        return True

    def succeed(self, now: float, latency: float) -> None:
        """Try more, if the rate is one that was learned."""
        self.latency = self.latency * (1.05 if latency > self.latency else 1 / 1.05) or latency
        if self.rate < math.inf and now - self.grown_at >= EVERY:
            k = math.cbrt((1 - BETA) * self.peak / SCALE)
            cubic = SCALE * (now - self.cut_at - k) ** 3 + self.peak
            capped = self.rate * GROWTH ** min(1.0, (now - self.grown_at) / 10)
            self.grown_at = now
            self.set(now, max(self.rate, min(cubic, capped, 2 * self.measured(now))))

    def set(self, now: float, rate: float) -> None:
        """Hold another rate; infinity: none."""
        self.rate = rate
        self.meter.own = rate if rate < math.inf else None
        self.meter.bound(now, 1.0)

    @property
    def _span(self) -> float:
        """Seconds that are looked at."""
        return min(max(SHORTEST, self.latency), LONGEST)
