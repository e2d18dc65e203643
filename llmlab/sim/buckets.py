"""The simulated provider's rate limits: token buckets on the running loop's clock."""

import math
from collections.abc import Mapping

from llmlab.sim.wire import Level

EPSILON = 1e-9


class Bucket:
    """A token bucket: filled continuously at `per_minute / 60` a second, up to `burst` seconds' worth.

    Over any t seconds it lets through at most `capacity + rate * t`.

    Args:
        per_minute: Allowance per minute.
        burst: Seconds of allowance that it holds when full.
        now: The clock's reading in seconds, on the clock of all later calls.
    """

    def __init__(self, per_minute: float, *, burst: float = 60.0, now: float = 0.0) -> None:
        self.limit = per_minute
        self.rate = per_minute / 60.0
        self.capacity = max(1.0, self.rate * burst)
        self._level = self.capacity
        self._at = now

    def retune(self, per_minute: float, *, burst: float, now: float) -> None:
        """Be another bucket from now on, with what is in this one, as far as it holds that."""
        level = self.level(now)
        self.limit, self.rate = per_minute, per_minute / 60.0
        self.capacity = max(1.0, self.rate * burst)
        self._level = min(level, self.capacity)

    def level(self, now: float) -> float:
        """Give what may be taken now; below 0 after an overdraft."""
        if now > self._at:
            self._level = min(self.capacity, self._level + (now - self._at) * self.rate)
            self._at = now
        return self._level

    def wait(self, amount: float, now: float) -> float:
        """Seconds until `amount` may be taken; 0: now. More than the capacity waits for a full bucket."""
        return max(0.0, (min(amount, self.capacity) - self.level(now)) / self.rate)

    def take(self, amount: float, now: float) -> None:
        """Take `amount`, into overdraft if need be."""
        self._level = self.level(now) - amount

    def state(self, now: float) -> Level:
        """Give limit, remainder and seconds to full, such that limit * reset / (limit - remaining) = 60."""
        missing = self.capacity - self.level(now)
        return Level(int(self.limit), max(0, math.floor(self.limit - missing)), missing / self.rate)


class Allowance:
    """The rate limits of one account: several buckets that let a request in together or not at all.

    Args:
        limits: Name -> allowance per minute; None: no limit.
        burst: Seconds of allowance that may be saved up.
        now: The clock's reading in seconds.
    """

    def __init__(self, limits: Mapping[str, float | None], *, burst: float, now: float) -> None:
        self.buckets: dict[str, Bucket] = {}
        self.retune(limits, burst=burst, now=now)

    def retune(self, limits: Mapping[str, float | None], *, burst: float, now: float) -> None:
        """Have other limits from now on; what is left of those that stay is kept."""
        old, self.buckets = self.buckets, {}
        for name, limit in limits.items():
            if limit and (bucket := old.get(name)):
                bucket.retune(limit, burst=burst, now=now)
                self.buckets[name] = bucket
            elif limit:
                self.buckets[name] = Bucket(limit, burst=burst, now=now)

    def beyond(self, costs: dict[str, int]) -> str:
        """Name a bucket whose whole minute would not do for a request; "": none."""
        return next((name for name, bucket in self.buckets.items() if costs[name] > bucket.limit), "")

    def tightest(self, costs: dict[str, int], now: float) -> tuple[str, float]:
        """Name the bucket that makes a request wait longest, and for how many seconds; ("", 0): it may go."""
        waits = ((self.buckets[name].wait(cost, now), name) for name, cost in costs.items() if name in self.buckets)
        wait, name = max(waits, default=(0.0, ""))
        return (name, wait) if wait > EPSILON else ("", 0.0)

    def take(self, costs: dict[str, int], now: float) -> None:
        """Charge a request's costs; names without a bucket cost nothing."""
        for name, cost in costs.items():
            if bucket := self.buckets.get(name):
                bucket.take(cost, now)

    def levels(self, now: float) -> dict[str, Level]:
        """Give the state of each bucket."""
        return {name: bucket.state(now) for name, bucket in self.buckets.items()}
