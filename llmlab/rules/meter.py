"""One dimension of a rate: a token bucket, which what the provider says may lower.

Kept as GCRA: r units a second, B units at most, and one time, TAT, at which the bucket is full again.

    level      L = B - max(0, TAT - now) r
    may go     when TAT + min(w, B)/r - B/r <= now     a cost w above all of B waits for a full bucket, and goes
    taken      TAT = max(now, TAT) + w/r

What a provider says only ever lowers a level: L = min(L, remaining - what was taken since the request was sent).
"""

import math
from collections import deque
from dataclasses import dataclass, field

HYSTERESIS = 0.02
"""Share of the limit: providers' figures are rounded and old, a smaller difference says nothing."""
LOG = 1024
"""Takings remembered, for the headers of requests sent before them."""


@dataclass(slots=True)
class Meter:
    """What was taken of one dimension, and when more of it may be; without a limit it only counts."""

    window: float
    """Seconds that the limits are for."""
    own: float | None = None
    """The user's limit per window. None: none."""
    told: float | None = None
    """The provider's limit per window. None: none is known."""
    limit: float | None = None
    """The one in force, the lower of both. None: none."""
    per: float = 0.0
    """1/r, seconds per unit; 0: no limit."""
    spare: float = 0.0
    """B/r, seconds' worth of the limit that may go at once; 0: no limit."""
    tat: float = -math.inf
    """Loop time at which the bucket is full."""
    paused: float = -math.inf
    """Loop time before which the provider wants no more of it."""
    net: float = 0.0
    """All that was taken, less what was given back."""
    log: deque[tuple[float, float]] = field(default_factory=deque)
    """Loop time and `net` of each taking after `synced`, of the last `LOG`."""
    synced: float = -math.inf
    """Loop time at which the request was sent whose headers were the last to count."""
    seen: float = 0.0
    """`net` at that time."""

    def free(self, amount: float) -> float:
        """Loop time at which `amount` may be taken."""
        lead = amount * self.per - self.spare
        return max(self.paused, self.tat + lead if lead < 0 else self.tat)

    def take(self, now: float, amount: float) -> None:
        """Charge what is expected."""
        self.net += amount
        if self.per:
            self.tat = max(now, self.tat) + amount * self.per
        self.log.append((now, self.net))
        if len(self.log) > LOG:
            self.seen = self.log.popleft()[1]

    def correct(self, now: float, amount: float) -> None:
        """Charge `amount` more, or give it back if it is below 0."""
        self.net += amount
        self.tat = max(now, self.tat) + amount * self.per  # on a TAT long past a charge would vanish

    def level(self, now: float) -> float:
        """What may be taken now; below 0: owed; inf without a limit."""
        return (self.spare - max(0.0, self.tat - now)) / self.per if self.per else math.inf

    def bound(self, now: float, share: float) -> None:
        """Put the lower of the two limits in force, `share` of a window at once; what is owed stays owed."""
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

    def pause(self, until: float, amount: float) -> bool:
        """Let nothing pass before `until`, and then no more than the `amount` for which the wait was named.

        Returns whether that is later than was known.
        """
        later = until > self.paused
        self.paused = max(self.paused, until)
        if self.per:
            self.tat = max(self.tat, until + max(0.0, self.spare - amount * self.per))
        return later
