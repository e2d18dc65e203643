"""What there is to see of a job while it runs, and afterwards: one plain look, made of its events and its gauges.

A look is a value that a picture can be drawn from, in milliseconds, tokens and dollars. It is plain JSON, so that it
may go to a browser as it is, and everything in it that came from outside is mere text.
"""

import math
from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from llmlab.events import Bus, Finished, Told
from llmlab.progress import Progress
from llmlab.rules.breaker import Transition
from llmlab.rules.rate import Pause

RECENT = 1000
"""Answers that the latency quantiles are taken over."""
SPAN = 10.0
"""Seconds that the present rate is measured over."""
SPARKS = 60
"""Points of the throughput line."""


@dataclass(slots=True)
class Look:
    """A job at one moment."""

    name: str = ""
    """The verb that made it."""
    state: str = "waiting"
    """waiting, running, paused, stopped, failed or done."""
    total: int | None = None
    """Rows in all; None while unknown."""
    done: int = 0
    """Rows settled, however."""
    ok: int = 0
    """Rows answered."""
    errors: int = 0
    """Rows that ended as an error."""
    cancelled: int = 0
    """Rows that were cancelled."""
    retries: int = 0
    """Attempts repeated."""
    elapsed_s: float = 0.0
    """Seconds since the job began."""
    eta_s: float | None = None
    """Seconds that it will still take at the present rate. None: nobody can tell."""
    rate: float = 0.0
    """Rows settled per second, of late."""
    rate_overall: float = 0.0
    """Rows settled per second since the job began."""
    in_flight: int = 0
    """Requests in flight, of the job's own target."""
    limit: int | None = None
    """Requests in flight at most. None: not limited."""
    waiting: int = 0
    """Calls in line."""
    p50_ms: float | None = None
    """Median latency of recent answers."""
    p95_ms: float | None = None
    """The 95th percentile of it."""
    input_tokens: int = 0
    """Input tokens of all attempts."""
    output_tokens: int = 0
    """Output tokens of all attempts."""
    cost_usd: float | None = None
    """Dollars for all attempts. None: no price is known."""
    projected_usd: float | None = None
    """Dollars that the whole job will cost at this rate."""
    bound_by: str | None = None
    """What binds the job now."""
    breaker: str | None = None
    """State of the target's breaker."""
    notes: list[str] = field(default_factory=list)
    """What a person should know now, in words."""
    kinds: list[tuple[str, int]] = field(default_factory=list)
    """Errors that ended rows, by class, the most frequent first."""
    retried: list[tuple[str, int]] = field(default_factory=list)
    """Errors after which an attempt was repeated, likewise."""
    spark: list[float] = field(default_factory=list)
    """Rows settled per second over the job's time, oldest first."""


class Live:
    """What a look needs beyond the counts. Lives on the job's loop, as the bus does; looks may be made anywhere."""

    def __init__(self, bus: Bus, progress: Progress) -> None:
        self._progress = progress
        self._latencies: deque[float] = deque(maxlen=RECENT)
        self._began: float | None = None
        self._marks: deque[tuple[float, int]] = deque()
        self._line = _Line()
        self._parked: dict[str, tuple[float, str]] = {}
        bus.subscribe(self._finished, Finished)
        bus.subscribe(self._told, Told)

    def begin(self, now: float) -> None:
        """Start the job's clock."""
        self._began = now
        self._marks.append((now, 0))
        self._line.begin(now)

    def _finished(self, event: Finished) -> None:
        reply = event.outcome.reply
        if reply is not None and not math.isnan(reply.latency_s):
            self._latencies.append(reply.latency_s)

    def _told(self, event: Told) -> None:
        what, target = event.what, event.target
        if isinstance(what, Pause):
            self._parked[f"pause {target}"] = what.until, what.reason
        elif isinstance(what, Transition):
            self._parked.pop(f"breaker {target}", None)
            if what.new == "open":
                self._parked[f"breaker {target}"] = what.at + what.lasts, f"the provider is down, {_why(what)}"
            elif what.new == "half_open":
                self._parked[f"breaker {target}"] = math.inf, "trying whether the provider is back"

    def look(self, now: float, gauge: Mapping[str, Any], look: Look) -> Look:
        """Fill in a look begun by the job: its name, state, total and what binds it.

        Args:
            now: Time of the job's loop.
            gauge: What there is to see of its target's limits; see `llmlab.gauges.LIMITS`.
            look: The look to complete.
        """
        counts = self._progress.now
        look.total, look.done, look.errors, look.cancelled = (
            counts.total,
            counts.reached,
            counts.failed,
            counts.cancelled,
        )
        look.ok = look.done - look.errors - look.cancelled
        look.elapsed_s = 0.0 if self._began is None else now - self._began
        look.retries, look.retried, look.kinds = counts.retries, _top(counts.retried), _top(counts.kinds)
        look.rate, look.spark = self._rate(now, look.done), self._line.points(now, look.done)
        look.rate_overall = look.done / look.elapsed_s if look.elapsed_s > 0 else 0.0
        look.in_flight, look.waiting = int(gauge.get("in_flight", 0)), int(gauge.get("waiting", 0))
        look.limit, look.breaker = gauge.get("limit"), gauge.get("breaker")
        look.p50_ms, look.p95_ms = self._quantiles()
        look.input_tokens, look.output_tokens = counts.input_tokens, counts.output_tokens
        look.cost_usd = counts.cost_usd
        _foresee(look)
        if look.state == "running":
            look.notes = [*look.notes, *(self._parkings(now) or _owed(gauge, look.bound_by))]
        return look

    def _rate(self, now: float, done: int) -> float:
        marks = self._marks
        if not marks or now - marks[-1][0] >= SPAN / 20:
            marks.append((now, done))
        while len(marks) > 1 and now - marks[1][0] >= SPAN:
            marks.popleft()
        at, before = marks[0]
        return (done - before) / (now - at) if now > at else 0.0

    def _quantiles(self) -> tuple[float | None, float | None]:
        ranked = sorted(self._latencies.copy())
        if not ranked:
            return None, None
        return ranked[len(ranked) // 2] * 1000.0, ranked[min(len(ranked) - 1, int(0.95 * len(ranked)))] * 1000.0

    def _parkings(self, now: float) -> list[str]:
        notes = []
        for until, reason in tuple(self._parked.values()):
            if until == math.inf:
                notes.append(reason)
            elif until > now:
                notes.append(f"parked {math.ceil(until - now)} s: {reason}")
        return notes


def _why(what: Transition) -> str:
    """Why a breaker has opened, for a person."""
    if what.reason == "failure ratio":
        return f"{what.failures} of {what.calls} calls failed"
    reasons = {"unreachable": "no answer at all", "throttled": "nothing but 429s for long"}
    return reasons.get(what.reason, "a trial call failed, too")


def _owed(gauge: Mapping[str, Any], bound_by: str | None) -> list[str]:
    """What of a limit per minute is used up for a while, if that is what binds."""
    if bound_by != "rate limit":
        return []
    for name in ("requests", "input_tokens", "output_tokens", "total_tokens"):
        limit, level = gauge.get(f"{name}_limit"), gauge.get(f"{name}_level")
        if limit and level is not None and (wait := -60.0 * level / limit) >= 1.0:
            words = name.removeprefix("total_").replace("_", " ")
            return [f"parked {math.ceil(wait)} s: {limit:,.0f} {words} a minute are used up"]
    return []


def _top(counts: Counter[str]) -> list[tuple[str, int]]:
    return Counter(counts).most_common(5)  # a copy: the job may run in another thread


def _foresee(look: Look) -> None:
    """What is still to come, if it goes on as it went."""
    if look.total is None:
        return
    left = look.total - look.done
    look.eta_s = 0.0 if not left else left / look.rate if look.rate > 0 else None
    if look.cost_usd is not None and look.done:
        look.projected_usd = look.cost_usd * look.total / look.done


class _Line:
    """Throughput over a job's time in at most 2 SPARKS buckets, whose width doubles when they are full."""

    def __init__(self) -> None:
        self._width = 0.5
        self._began: float | None = None
        self._ends: list[int] = []  # rows settled by the end of each bucket

    def begin(self, now: float) -> None:
        self._began = now

    def points(self, now: float, done: int) -> list[float]:
        if self._began is None:  # displayed while its journal is still being opened
            return []
        whole = int((now - self._began) / self._width)
        before, missed = (self._ends[-1] if self._ends else 0), whole - len(self._ends)
        for n in range(1, missed + 1):  # nobody looked for a while: as if they had come evenly
            self._ends.append(before + (done - before) * n // missed)
        while len(self._ends) >= 2 * SPARKS:
            self._ends, self._width = self._ends[1::2], 2 * self._width
        steps = zip([0, *self._ends], self._ends, strict=False)
        return [round((after - before) / self._width, 3) for before, after in steps][-2 * SPARKS :]
