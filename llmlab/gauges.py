"""What limited a job: the limits over time, and which of them bound it.

`LIMITS` are the columns of `job.limits`. Samples are taken when something happens to the job, some ten times a second
at first and less often the longer it runs, so that a day's job keeps as many as a minute's; and whenever a rule has
told something. Nothing runs between them: what held the line at one sample is taken to have held it until the next.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import pandas as pd

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
"""Samples from which on every second one is dropped, and the interval doubled."""
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
        "what bound the job then: provider, rate limit, concurrency, budget, source, journal or event loop",
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
        idle: What the job itself waits for while nobody stands in line.
    """

    def __init__(self, bus: Bus, lines: Sequence[tuple[str, Admit]], idle: Callable[[], str]) -> None:
        self._lines, self._idle = lines, idle
        self._loop = asyncio.get_running_loop()
        self._wall = wall_offset()
        self._samples: list[_Sample] = []
        self._closed: float | None = None
        self._every, self._due = EVERY, 0.0
        self._last, self._cause = self._loop.time(), ""
        self._shares: dict[str, float] = {}
        self._cpu, self._cpu_at, self._busy = cpu_seconds(), self._last, False
        bus.subscribe(self._admitted, Admitted)
        bus.subscribe(self._happened, Retrying, Finished)
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

    def own(self) -> dict[str, float | str]:
        """What there is to see of the job's own target now, by the columns of LIMITS."""
        return self._lines[0][1].gauge(self.now) if self._lines else {}

    def close(self) -> None:
        """Take the last sample."""
        self.sample()
        self._closed = self._loop.time()

    def frame(self) -> Frame:
        """The samples so far, oldest first; see LIMITS."""
        return limits_frame(self._samples.copy())  # a copy: the job may run in another thread

    def _admitted(self, event: Admitted) -> None:
        if event.at >= self._due:
            self._sample(event.at)

    def _happened(self, _: object) -> None:
        if (now := self._loop.time()) >= self._due:
            self._sample(now)

    def _told(self, _: Told) -> None:
        # The rule is in the middle of its change; how all of them stand is seen when it is over.
        self._loop.call_soon(self.sample)

    def sample(self) -> None:
        """Take a sample now."""
        self._sample(self._loop.time())

    def _sample(self, now: float) -> None:
        if self._cause:
            self._shares[self._cause] = self._shares.get(self._cause, 0.0) + now - self._last
        self._last, self._due = now, now + self._every
        self._cause = self._binding(now)
        for name, line in self._lines:
            self._samples.append((now + self._wall, name, self._cause, line.gauge(now)))
        if len(self._samples) > KEPT * len(self._lines):
            self._thin()

    def _thin(self) -> None:
        per = len(self._lines)
        self._samples = [each for i, each in enumerate(self._samples) if i // per % 2 == 0]
        self._every *= 2

    def _binding(self, now: float) -> str:
        if self._computing(now):
            return "event loop"
        held = next((line.held_by for _, line in self._lines if line.waiting and line.held_by), None)
        return held or self._idle()

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
