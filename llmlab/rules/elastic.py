"""Elastic: as much concurrency as still buys throughput, found while the job runs.

With N calls in flight and W seconds per call throughput is X = N / W (Little's law). With S the slowdown, W over what
a request of its length takes, the elasticity of throughput is (resilience.md 4.3)

    e(N) = d ln X / d ln N = 1 - d ln S / d ln N

Elastic makes for the N where e = `elasticity`: there 1% more concurrency buys that many % of throughput. It measures e
in pairs of arms at N (1 - spread) and N (1 + spread). Only the ratio of S between the two counts, both normalised
by the same coefficients: there is no baseline for congestion to creep into, and what slows both arms moves nothing.

    arm        limit             when it has its requests
    grow       2 x the last      again while e >= 0.5 over the step, else pairs around the geometric mean
    low, high  N (1 -+ spread)   after both N moves by gain * w * (e - elasticity); after a small move cruise
    cruise     N                 after two of them the next pair, or back
    back       N before a cut    N is that again; a further cut meanwhile leaves it as the first one did
    frozen     N                 again, until the slowdown changes
    pinned     the user's        again, until unpinned

Requests count in the arm in which they started (tags tell), if our own rate limit did not hold the line as they ended.
An arm is discarded if that leaves too few, if calls in flight did not fill its limit, or if the provider failed too
often. The limit rises by 1 per completion at most (10.2: a step would burst into the provider's bucket) and falls at
once. Probing costs a few % of throughput.
"""

import math
from collections import deque
from dataclasses import dataclass, field

from llmlab.errors import ConnectFailed, Dropped, Overloaded, RateLimited, Refused, ServerError, TimedOut
from llmlab.rules.adapt import Arm, Decision, Measured, Sample, Work, log, measure, quantile, slowdown
from llmlab.rules.checks import check, count
from llmlab.rules.strain import Strain

DOUBLING = 0.5
"""Slow start goes on while a doubling buys at least this much elasticity."""
PLAUSIBLE = -1.0, 1.5
"""Elasticities beyond are no effect of N: the provider changed between the arms. The first such pair does not count."""
CALM = 0.1
"""Moves of ln N below this are followed by a rest."""
MOMENTUM = 3.0
"""Moves one after the other in one direction become longer up to so many times."""
UP, DOWN = math.log(1.2), math.log(0.75)
"""Longest moves of ln N."""
OVERLOAD, STALL = 0.7, 0.5
"""What is left of N after the provider has said that it is too much, and after it has gone silent."""
PATIENCE, SILENCE = 15.0, 10.0
"""Seconds between two cuts at least, and of silence that are a stall at least."""
FIRST = 10
"""Calls that must have succeeded before silence means anything: how long they take is not known before."""


@dataclass
class Elastic:
    """Make for the concurrency where 1% more of it buys `elasticity` % of throughput; see the module's docstring.

    What the provider says counts as well: more than usual of 429s that our own rate limit does not explain, 503s, 529s
    and timeouts (`llmlab.rules.strain`) cut N to 0.7, at most once in 15 s or the median latency; a silence of 10 s or
    3 x the 99th percentile of latency with all slots taken halves it, once. N before a cut is tried again after one
    arm: if nothing speaks against it then, it was not at fault.
    """

    elasticity: float = 0.2
    """Where to stop: 0.1 for batches, 0.2 balanced, 0.5 for short latencies."""
    initial: int = 8
    """Limit at first, within `least` and `most`."""
    least: int = 1
    """Never below."""
    most: int = 256
    """Never above."""
    spread: float = 0.15
    """How far the arms of a pair are from N, as a share; at least 1."""
    gain: float = 0.6
    """Move of ln N per unit of elasticity off the target."""
    smoothing: float = 0.5
    """Weight of a new measurement against the older ones."""
    freeze_after: int | None = None
    """Small moves in a row after which it stops probing until the slowdown changes by half. None: never."""
    limit: int = field(init=False, compare=False)
    """Calls in flight at most, now."""
    decisions: deque[Decision] = field(default_factory=log, init=False, repr=False, compare=False)
    """The latest decisions, oldest first."""
    estimate: float = field(default=math.nan, init=False, compare=False)
    """The smoothed elasticity, 0 to 1. nan: nothing measured yet."""
    _n: float = field(init=False, repr=False, compare=False)
    _arm: Arm = field(init=False, repr=False, compare=False)
    _kept: Arm | None = field(default=None, init=False, repr=False, compare=False)
    _epoch: int = field(default=0, init=False, repr=False, compare=False)
    _order: tuple[str, str] = field(default=("low", "high"), init=False, repr=False, compare=False)
    _rests: int = field(default=0, init=False, repr=False, compare=False)
    _calm: int = field(default=0, init=False, repr=False, compare=False)
    _streak: int = field(default=0, init=False, repr=False, compare=False)
    _doubt: bool = field(default=False, init=False, repr=False, compare=False)
    _pinned: bool = field(default=False, init=False, repr=False, compare=False)
    _work: Work = field(default_factory=Work, init=False, repr=False, compare=False)
    _running: int = field(default=0, init=False, repr=False, compare=False)
    _recent: deque[float] = field(default_factory=lambda: deque(maxlen=200), init=False, repr=False, compare=False)
    _heard: float = field(default=0.0, init=False, repr=False, compare=False)
    _stalled: bool = field(default=False, init=False, repr=False, compare=False)
    _strain: Strain = field(default_factory=Strain, init=False, repr=False, compare=False)
    _back: float = field(default=0.0, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        whole = ("initial", "least", "most", *(() if self.freeze_after is None else ("freeze_after",)))
        check(self, whole=whole, above=("gain",), share=("elasticity", "spread", "smoothing"))
        self.limit = min(self.most, max(self.least, self.initial))
        self._n = float(self.limit)
        self._begin("grow", self.limit)

    @property
    def settled(self) -> bool:
        """Whether more than this, below `most`, buys too little: the elasticity is known, and no reason to grow."""
        calm = self.gain * (self.estimate - self.elasticity) < CALM  # the next move would be small; nan: not known
        return calm and not self._pinned and self._n < self.most

    def start(self, now: float) -> int:
        """Note that a call was admitted; the tag returned comes back when it has ended."""
        if not self._running:
            self._heard = now
        self._running += 1
        return self._epoch

    def progress(self, now: float) -> None:
        """Note a sign of life, such as a token: silence begins anew."""
        self._heard = now

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
        """Note that a call has ended; see `llmlab.rules.adapt.Controller`."""
        self._running -= 1
        if error is None or isinstance(error, Refused):
            self._heard, self._stalled = now, False
        arm = self._arm
        arm.ended += 1
        arm.waiting += line_waiting > 0
        if error is not None:
            self._fail(now, tag, error, rate_bound=rate_bound)
            return
        self._strain.succeed(tag, self.limit)
        self._recent.append(sample.seconds)
        row = self._work.learn(sample)
        if self.limit < arm.limit:
            self.limit += 1
            if self.limit == arm.limit:
                self._open()
        elif tag == arm.tag:
            arm.add(row, in_flight, rate_bound=rate_bound)
            if arm.full:
                self._judge(now)

    def tick(self, now: float) -> float:
        """Halve N if the provider has gone silent; returns when to be asked next, infinity with nothing in flight."""
        if not self._running or len(self._recent) < FIRST:
            return now + SILENCE if self._running else math.inf
        due = self._heard + max(SILENCE, 3 * quantile(self._recent, 0.99))
        if now >= due and self._running >= self.limit and not self._stalled and not self._pinned:
            self._stalled = True
            self._cut(now, STALL, "silence")
        return due if due > now else now + SILENCE

    def pin(self, limit: int, now: float) -> None:
        """Hold the limit at a number from now on, also outside `least` and `most`; goes on observing."""
        self._pinned, self.limit, self._n, self._back = True, count("pin", limit), float(limit), 0.0
        self._begin("pinned", limit)
        self._say(now, "pinned")

    def unpin(self, now: float) -> None:
        """Go on by itself from there."""
        if self._pinned:
            self._pinned = False
            self._set(self._n)
            self._say(now, "unpinned")
            self._cruise(1)

    def _begin(self, name: str, limit: int) -> None:
        """Make for an arm: up by one per completion, down at once."""
        self._arm = Arm(name, limit)
        if limit <= self.limit:
            self.limit = limit
            self._open()

    def _open(self) -> None:
        self._epoch += 1
        self._arm = Arm(self._arm.name, self._arm.limit, self._epoch)

    def _set(self, n: float) -> None:
        self._n = min(float(self.most), max(float(self.least), n))

    def _cruise(self, arms: int) -> None:
        self._rests, self._kept = arms, None
        self._begin("cruise", round(self._n))

    def _probe(self, name: str) -> None:
        n = round(self._n)
        by = max(1, round(n * self.spread))
        self._begin(name, max(self.least, n - by) if name == "low" else min(self.most, n + by))

    def _judge(self, now: float) -> None:
        """Conclude from an arm that has its requests, and go on to the next."""
        arm = self._arm
        self._work.solve()
        if flaw := arm.flaw():
            self._discard(now, arm, flaw)
        elif arm.name == "pinned":
            self._say(now, "pinned", arm)
            self._begin("pinned", arm.limit)
        elif arm.name == "grow":
            self._grow(now, arm)
        elif arm.name == "back":
            self._n, self._back = float(arm.limit), 0.0
            self._say(now, "back", arm)
            self._probe(self._order[0])
        elif arm.name == "frozen":
            self._watch(now, arm)
        elif arm.name == "cruise":
            self._rest(now, arm)
        elif self._kept is None:
            self._say(now, "first of a pair", arm)
            self._kept = arm
            self._probe(self._order[1])
        else:
            self._pair(now, arm, self._kept)

    def _discard(self, now: float, arm: Arm, flaw: str) -> None:
        self._kept = None
        if flaw == "rate limit binds" and arm.name in ("grow", "high", "back"):
            self._n, self._back = float(arm.limit), 0.0  # it binds here and not below: this much it takes to use it
        self._say(now, flaw, arm)
        if arm.name == "pinned" or (arm.name == "grow" and flaw != "rate limit binds"):
            self._begin(arm.name, arm.limit)
        else:
            self._cruise(1)

    def _grow(self, now: float, arm: Arm) -> None:
        kept = self._kept
        found = measure(kept, arm, self._work) if kept else None
        if kept and found and found.elasticity < DOUBLING:
            self._set(math.sqrt(kept.limit * arm.limit))
            self._say(now, "slow start ends", arm, found)
        else:
            self._set(arm.limit)
            self._say(now, "slow start", arm, found)
            if arm.limit < self.most:
                self._kept = arm
                self._begin("grow", min(self.most, 2 * arm.limit))
                return
        self._kept = None
        self._probe(self._order[0])

    def _rest(self, now: float, arm: Arm) -> None:
        self._say(now, "rest", arm)
        self._rests -= 1
        if self._rests > 0:
            self._begin("cruise", arm.limit)
        elif self.freeze_after is not None and self._calm >= self.freeze_after:
            self._kept = arm
            self._begin("frozen", arm.limit)
        elif self._back > self._n:
            self._begin("back", round(self._back))
        else:
            self._probe(self._order[0])

    def _watch(self, now: float, arm: Arm) -> None:
        kept = self._kept or arm
        change = slowdown(arm.rows, self._work)[0] - slowdown(kept.rows, self._work)[0]
        if abs(change) < math.log(1.5):
            self._say(now, "frozen", arm)
            self._begin("frozen", arm.limit)
        else:
            self._calm, self._kept = 0, None
            self._say(now, "slowdown changed", arm)
            self._probe(self._order[0])

    def _pair(self, now: float, arm: Arm, kept: Arm) -> None:
        # The next pair begins with the arm in which this one ended: half the changes, and drift cancels out.
        self._order, self._kept = (arm.name, kept.name), None
        found = measure(kept, arm, self._work)
        if found is None:
            self._say(now, "arms alike", arm)
            self._cruise(2)
            return
        self._doubt = not self._doubt and not PLAUSIBLE[0] < found.elasticity < PLAUSIBLE[1]
        if self._doubt:
            self._say(now, "provider changed between arms", arm, found)
            self._probe(self._order[0])
            return
        move = self._move(found)
        self._set(self._n * math.exp(min(UP, max(DOWN, move))))
        self._say(now, "more pays" if move > 0 else "less costs little" if move < 0 else "unclear", arm, found)
        if abs(move) < CALM:
            self._calm += 1
            self._cruise(2)
        else:
            self._calm = 0
            self._probe(self._order[0])

    def _move(self, found: Measured) -> float:
        """By how much ln N should change."""
        # Above 1 is noise, below 0 says no more than 0 does: too much. Unlimited, outliers would rule the mean.
        e = min(1.0, max(0.0, found.elasticity))
        if math.isnan(self.estimate):
            self.estimate = e
        else:
            self.estimate += self.smoothing * found.weight * (e - self.estimate)
        off = self.estimate - self.elasticity
        if off * (e - self.elasticity) <= 0:  # what is new and what was known disagree about the direction
            self._streak = 0
            return 0.0
        if abs(off) < CALM / 2:
            self._streak = 0
        else:  # Without a sharp knee e changes slowly with N, and a long way would be made in small steps.
            self._streak = max(1, self._streak + 1) if off > 0 else min(-1, self._streak - 1)
        return self.gain * found.weight * off * min(MOMENTUM, 1 + 0.5 * max(0, abs(self._streak) - 1))

    def _fail(self, now: float, tag: int, error: BaseException, *, rate_bound: bool) -> None:
        too_much = isinstance(error, (Overloaded, TimedOut)) or (isinstance(error, RateLimited) and not rate_bound)
        if too_much or isinstance(error, (ServerError, ConnectFailed, Dropped)):
            self._arm.failed += 1
        overload = too_much and self._strain.refuse(tag, self.limit) and not self._pinned
        if overload and now - self._strain.cut_at >= max(PATIENCE, quantile(self._recent, 0.5)):
            self._cut(now, OVERLOAD, f"overload: {type(error).__name__}")

    def _cut(self, now: float, share: float, reason: str) -> None:
        arm = self._arm
        if arm.name == "back" and arm.tag:
            self._back = 0.0  # that was too much indeed, and N is what the cut before has left of it
        else:
            self._back = self._n if arm.tag and arm.name != "grow" else float(self.limit)
            self._set(self._back * share)
        self._streak, self._calm, self._doubt = 0, 0, False
        self._say(now, reason, arm)
        self._cruise(1)
        self._strain.cut(now, self._epoch, self.limit)

    def _say(self, now: float, reason: str, arm: Arm | None = None, found: Measured | None = None) -> None:
        rows = arm.rows if arm else []
        in_flight = arm.mean if arm else float(self._running)
        slow = math.exp(slowdown(rows, self._work)[0]) if rows else math.nan
        e, error = (found.elasticity, found.error) if found else (math.nan, math.nan)
        n, name = round(self._n), self._arm.name
        self.decisions.append(Decision(now, n, reason, in_flight, name, len(rows), slow, e, error, self.estimate))
