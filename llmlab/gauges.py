"""What limited a job: the limits over time, and which of them bound it.

`LIMITS` are the columns of `job.limits`. Samples are taken when something happens to the job, some ten times a second
at first and less often the longer it runs, so that a day's job keeps as many as a minute's; and whenever a rule has
told something. Nothing runs between them but one look a moment after each: rows join the line behind the one that was
admitted, and of that nobody tells.

    between two samples                                                  what bound the job
    the thread has computed nearly all the time                          event loop
    the job's rows stood in line at the first of them                    what they waited for then
    none did                                                             what the job itself says: source, journal or
                                                                         provider, looking back
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import pandas as pd

from llmlab.call import Lane
from llmlab.clock import cpu_seconds, wall_offset
from llmlab.events import Admitted, Bus, Finished, Retrying, Told
from llmlab.frame import Column, Frame, frame_of
from llmlab.policies.admit import Admit
from llmlab.rules.adapt import Decision
from llmlab.rules.breaker import Transition
from llmlab.rules.rate import Learned, Pause

EVERY = 0.1
"""Seconds between two samples at first."""
KEPT = 2000
"""Samples of a line from which on every second one is dropped, and the interval grows with the job's age."""
BUSY = 0.9
"""Share of its time that a thread computes from which on the event loop is what binds."""
SPAN = 0.05
"""Seconds over which that share is measured at least."""

_DIMENSIONS = ("requests", "input_tokens", "output_tokens", "total_tokens", "usd")

LIMITS: tuple[Column, ...] = (
    Column("at", "datetime64[us, UTC]", "", "when"),
    Column("target", "string", "", "the provider and model whose limits these are"),
    Column(
        "bound_by",
        "string",
        "",
        "what bound the job then: provider, rate limit, concurrency, budget, source, journal, event loop or paused",
    ),
    Column("limit", "Int64", "", "requests in flight at most; missing when not limited"),
    Column("in_flight", "Int64", "", "requests in flight"),
    Column("waiting", "int64", "", "calls standing in the lab's line"),
    Column("breaker", "string", "", "closed, open or half_open; missing without a breaker"),
    Column("paused_ms", "float64", "ms", "until the provider wants to hear again; missing when it has not asked"),
    Column("learned_rpm", "float64", "1/min", "requests a minute as 429s have taught; missing when they have not"),
    *(
        column
        for name in _DIMENSIONS
        for column in (
            Column(f"{name}_limit", "float64", "1/day" if name == "usd" else "1/min", f"limit of {name} in force"),
            Column(f"{name}_level", "float64", "", f"{name} that may go at once; below 0: owed"),
        )
    ),
    Column("spent_tokens", "float64", "tokens", "of the lab's budget_tokens; missing without one"),
    Column("spent_usd", "float64", "USD", "of the lab's budget_usd; missing without one"),
)

_Sample: TypeAlias = tuple[float, str, str, Mapping[str, float | str]]


class Gauges:
    """Samples the limits of a job's targets while it runs. Lives on the job's loop.

    Args:
        bus: The job's events.
        lines: The line of each target, by its name; the first target is the job's own.
        idle: What the job itself has waited for since it was last asked, if none of it stood in line.
        lane: The job's rows in those lines. None: whoever stands in them counts as the job's.
    """

    def __init__(
        self, bus: Bus, lines: Sequence[tuple[str, Admit]], idle: Callable[[], str], lane: Lane | None = None
    ) -> None:
        self._lines, self._idle, self._lane = lines, idle, lane
        self._loop = asyncio.get_running_loop()
        self._wall = wall_offset()
        self._samples: list[_Sample] = []
        self._began = self._last = self._loop.time()
        self._every, self._due = EVERY, self._last
        self._held: str | None = None
        self._shares: dict[str, float] = {}
        self._cpu, self._cpu_at, self._busy = cpu_seconds(), self._last, False
        self._later: asyncio.TimerHandle | None = None
        self._present: str | None = None
        self._closed: float | None = None
        idle()  # it looks back to when it was last asked, and is to begin here
        bus.subscribe(self._happened, Admitted, Retrying, Finished)
        bus.subscribe(self._told, Told)

    @property
    def bound_by(self) -> str | None:
        """What bound the job for the largest part of its time. None: no time has passed."""
        shares = self._shares.copy()  # the job may run in another thread
        return max(shares, key=shares.__getitem__, default=None)

    @property
    def now(self) -> float:
        """Time of the job's loop, from any thread; after its end, the time of its end."""
        return self._loop.time() if self._closed is None else self._closed

    @property
    def binds_now(self) -> str | None:
        """What binds the job at present, or bound it for most of its time if it is over."""
        return self.bound_by if self._closed is not None else self._present

    def own(self) -> dict[str, float | str]:
        """What there is to see of the job's own target now, by the columns of LIMITS."""
        return self._lines[0][1].gauge(self.now) if self._lines else {}

    def close(self) -> None:
        """Take the last sample: the job is over."""
        self._closed = self._loop.time()
        self._sample(self._closed)
        if self._later is not None:
            self._later.cancel()

    def frame(self) -> Frame:
        """The samples so far, oldest first; see LIMITS."""
        return limits_frame(self._samples.copy())  # a copy: the job may run in another thread

    def _happened(self, _: object) -> None:
        if (now := self._loop.time()) >= self._due:
            self._look(now)

    def _told(self, _: Told) -> None:
        # The rule is in the middle of its change; how all of them stand is seen when it is over.
        self._loop.call_soon(self._look)

    def _look(self, at: float | None = None) -> None:
        if self._closed is None:
            self._sample(self._loop.time() if at is None else at)
            if self._later is None:
                self._later = self._loop.call_at(self._due, self._look_again)

    def _look_again(self) -> None:
        self._later = None
        self._sample(self._loop.time())

    def _sample(self, now: float) -> None:
        idle, busy, held = self._idle(), self._computing(now), self._holding()
        past = "event loop" if busy else self._held or idle
        self._shares[past] = self._shares.get(past, 0.0) + now - self._last
        self._last, self._due, self._held = now, now + self._every, held
        present = self._present = "event loop" if busy else held or idle
        for name, line in self._lines:
            self._samples.append((now + self._wall, name, present, line.gauge(now)))
        if len(self._samples) > KEPT * len(self._lines):
            self._thin(now)

    def _thin(self, now: float) -> None:
        per = len(self._lines)
        self._samples = [each for i, each in enumerate(self._samples) if i // per % 2 == 0]
        # By age, not by count: a rule that tells much for a while must not end the looking for good.
        self._every = max(EVERY, 2 * (now - self._began) / KEPT)

    def _holding(self) -> str | None:
        """What the job's rows in line wait for; None: none stands there."""
        lane = self._lane
        held = ((line.held_by if line.waiting else None) if lane is None else line.waits_for(lane)
                for _, line in self._lines)  # fmt: skip
        return next(filter(None, held), None)

    def _computing(self, now: float) -> bool:
        """Whether the thread has been computing nearly all the time of late; never in virtual time."""
        used = cpu_seconds()
        if used is not None and self._cpu is not None and now - self._cpu_at >= SPAN:
            self._busy = used - self._cpu > BUSY * (now - self._cpu_at)
            self._cpu, self._cpu_at = used, now
        return self._busy


def limits_frame(samples: Sequence[_Sample] = ()) -> Frame:
    """A frame of samples; see LIMITS."""
    return frame_of(LIMITS, [_row(sample) for sample in samples], pd.RangeIndex(len(samples)))


def _row(sample: _Sample) -> tuple[Any, ...]:
    at, target, cause, seen = sample
    paused = seen.get("paused_s")
    named = {"at": at, "target": target, "bound_by": cause, **seen}
    if isinstance(paused, float):
        named["paused_ms"] = paused * 1000.0
    return tuple(named.get(column.name) for column in LIMITS)


def forward(name: str, line: Admit, bus: Bus) -> Callable[[], None]:
    """Pass on what a target's rules tell to a job's listeners; returns a function that ends it."""
    return line.bus.subscribe(lambda what: bus.emit(Told(name, what)), Transition, Decision, Pause, Learned)
