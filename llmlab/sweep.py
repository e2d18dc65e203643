"""Throughput and latency over concurrency: one trial per number of requests in flight, measured while it is steady.

A closed loop: there is always another row, so that as many requests are in flight as may be. Each trial goes on until
its throughput is known well enough (`llmlab.steady`), or its rows are spent. Latency under saturation is then N / X by
construction, so capacity is read off X, never off latency.
"""

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from statistics import fmean
from typing import Any, TypeAlias

import numpy as np
import pandas as pd

from llmlab.call import COMMON, Lane
from llmlab.columns import Column
from llmlab.events import Bus
from llmlab.experiment import Experiment
from llmlab.frame import COLUMNS, Frame, Rows, frame_of
from llmlab.history import ATTEMPTS
from llmlab.loops import Home
from llmlab.scenario import Scenario
from llmlab.settings import limit_of
from llmlab.steady import gained
from llmlab.strategy import Strategy
from llmlab.target import Route
from llmlab.trial import Trial, detail, simulated
from llmlab.types import Item
from llmlab.watch import Grid, Watch

NOTHING = 0.05
"""Elasticity below which, twice in a row, more concurrency buys nothing."""

SWEPT: tuple[Column, ...] = (
    Column("concurrency", "int64", "", "requests in flight at most, as set"),
    Column("repeat", "int64", "", "which measurement of it, from 1"),
    Column("order", "int64", "", "when it was measured: the how-manieth of all, from 1"),
    Column("in_flight", "float64", "", "requests in flight, measured: averaged over the window"),
    Column("rows_per_s", "float64", "1/s", "rows answered per second"),
    Column("rows_per_s_ci", "float64", "", "half the width of the 95% interval of the throughput, as a share of it"),
    Column("tokens_per_s", "float64", "1/s", "output tokens of those answers per second; missing if not told"),
    Column("goodput_per_s", "float64", "1/s", "rows answered within the SLO per second; missing without one"),
    Column("within_slo", "float64", "", "their share of all rows that ended; missing without an SLO"),
    Column("p50_ms", "float64", "ms", "median of the answered rows' latency_ms"),
    Column("p95_ms", "float64", "ms", "its 95% quantile"),
    Column("p99_ms", "float64", "ms", "its 99% quantile"),
    Column("ttft_p50_ms", "float64", "ms", "median time to the first token; missing unless streamed"),
    Column("ttft_p95_ms", "float64", "ms", "its 95% quantile"),
    Column("ok", "int64", "", "rows answered in the window"),
    Column("failed", "int64", "", "rows that ended as an error in it"),
    Column("throttled", "int64", "", "requests refused in it because there were too many (429)"),
    Column("window_s", "float64", "s", "how long the window was: after the warm-up, before the drain"),
    Column("little_error", "float64", "", "how far off Little's law was in it: |N - X W| / N"),
    Column("steady", "bool", "", "the figures can be relied on: little_error below 0.05, 60 rows or more answered"),
    Column("bound_by", "string", "", "what bound it for most of the time, as job.bound_by"),
    Column("cost_usd", "float64", "USD", "of all its requests, warm-up and drain included; missing without a price"),
)

_LABELS = SWEPT[:2]

Source: TypeAlias = Callable[[int], Iterator[tuple[Any, Item]]]
"""Gives the rows of a trial, each with its label, without end, by the trial's seed."""


class Sweep(Experiment):
    """The job of `lab.sweep`; the verb says what is in its `frame` and its `rows`.

    Args:
        grid: What is swept.
        strategy: What is in front of the provider, at another concurrency each time.
        source: Gives the rows.
        stream: Ask for the answers in pieces.
        scenario: What is simulated. None: live.
        live: Gives a strategy's way to the real provider.
        lane: With whom live rows share their place in the lab's line, and on whose budgets.
        home: The event loop it lives on.
        open_ground: Called on that loop as it begins.
        progress: Show a line of progress. None: where there is somebody to look.
    """

    def __init__(
        self,
        grid: Grid,
        strategy: Strategy,
        source: Source,
        *,
        stream: bool,
        scenario: Scenario | None,
        live: Callable[[Strategy], Route],
        lane: Lane = COMMON,
        home: Home,
        open_ground: Callable[[], object],
        progress: bool | None,
    ) -> None:
        self.grid = grid
        """What is swept."""
        self._strategy, self._source, self._stream = strategy, source, stream
        self._scenario, self._live, self._lane = scenario, live, lane
        self._trials: list[Trial] = []
        self._taken: dict[int, list[Any]] = {}
        self._measured: dict[tuple[int, int], tuple[Any, ...]] = {}
        self._watches: dict[tuple[int, int], Watch] = {}
        self.gained_until: int | None = None
        """The greatest concurrency measured before more was found to buy nothing. None: all were measured."""
        super().__init__(
            "sweep", home, open_ground=open_ground, virtual=scenario is not None, total=None, progress=progress
        )

    @property
    def frame(self) -> Frame:
        """One row per concurrency and repeat whose trial is over, ascending; see `SWEPT`."""
        return self._framed(self._measured.copy())

    def under(self, *, slo: float | None = None, slo_ttft: float | None = None) -> Frame:
        """The frame as it would be under another SLO, from the answers that are there.

        Raises:
            ValueError: it is no number of seconds above 0.
        """
        grid = replace(self.grid, slo=slo, slo_ttft=slo_ttft)
        figures = {key: self._watches[key].figures(grid) for key in self._measured.copy()}
        return self._framed({key: (*self._measured[key][:3], *said, *self._measured[key][-2:])
                             for key, said in figures.items()})  # fmt: skip

    def _framed(self, measured: dict[tuple[int, int], tuple[Any, ...]]) -> Frame:
        out = frame_of(SWEPT, [measured[each] for each in sorted(measured)], pd.RangeIndex(len(measured)))
        out.attrs["scenario"] = "live" if self._scenario is None else self._scenario.name
        return out

    @property
    def measured(self) -> int:
        """How many points are measured."""
        return len(self._measured)

    @property
    def at_work_on(self) -> int | None:
        """The number that is tried now, or was last; None: none yet."""
        return int(self._trials[-1].labels["concurrency"]) if self._trials else None

    @property
    def rows(self) -> Frame:
        """The rows sent: concurrency, repeat and the columns of `llmlab.frame.COLUMNS`, by the input's index."""
        frames = [self._rows_of(trial) for trial in self._trials if trial.job is not None]
        return pd.concat(frames) if frames else self._no_rows

    @property
    def _no_rows(self) -> Frame:
        return frame_of((*_LABELS, *COLUMNS), [], pd.RangeIndex(0))

    @property
    def attempts(self) -> Frame:
        """Their requests: concurrency, repeat and the columns of `job.attempts`."""
        return detail(self._trials, lambda job: job.attempts, frame_of((*_LABELS, *ATTEMPTS), [], pd.RangeIndex(0)))

    def _rows_of(self, trial: Trial) -> Frame:
        if trial.job is None:
            return self._no_rows
        frame = trial.job.frame
        taken = self._taken[id(trial)]
        frame.index = pd.Index([taken[position] for position in frame.index])
        # what stood in line when the trial ended was never sent
        return trial.labelled(frame[(frame["status"] != "cancelled") | (frame["attempts"] > 0)].copy())

    async def _run(self) -> None:
        rng = random.Random(self.grid.seed)
        for repeat in range(1, self.grid.repeats + 1):
            order = list(self.grid.concurrency)
            if not self.virtual:
                rng.shuffle(order)  # so that what drifts with time does not look like concurrency
            for concurrency in order:
                if self._pointless(concurrency):
                    continue
                if not await self._point(concurrency, repeat):
                    return

    async def _point(self, concurrency: int, repeat: int) -> bool:
        """Measure one point; whether to go on."""
        seed = self.grid.seed + repeat - 1
        taken: list[Any] = []
        rows = Rows(_noted(self._source(seed), taken), None, None)
        trial = Trial({"concurrency": concurrency, "repeat": repeat}, rows, seed, self._stream, self._lane)
        self._taken[id(trial)] = taken
        self._trials.append(trial)
        measured = await self._perform(lambda: self._measure(trial, concurrency))
        if isinstance(self._source, Cycle):
            self._source.give_back(len(taken) - len(self._rows_of(trial)))
        if measured is None:
            return False
        if trial.ran_out:
            self._stopped = self._stopped or "the budget is spent"
            return False
        self._measured[concurrency, repeat] = (concurrency, repeat, len(self._measured) + 1, *measured)
        return True

    async def _measure(self, trial: Trial, concurrency: int) -> tuple[Any, ...]:
        most = self.grid.rows(concurrency, live=not self.virtual)
        watch = Watch(most, max(10, concurrency // 2), lambda: None if trial.job is None else trial.job.drain())
        self._watches[concurrency, trial.labels["repeat"]] = watch
        strategy = self._strategy.fresh()
        limit_of(strategy).resize(concurrency)
        if self._scenario is None:
            home, route = self._home, self._live(strategy)
        else:
            home = Home()
            route, _ = simulated(self._scenario, strategy, seed=trial.seed, home=home)

        def listen(bus: Bus) -> None:
            self.listen(bus)
            watch.listen(bus)

        await trial.run(route, home, listen)
        bound = None if trial.job is None else trial.job.bound_by
        return (*watch.figures(self.grid), bound, watch.cost)

    def _pointless(self, concurrency: int) -> bool:
        """Whether the last two steps below have bought nothing, so that more will not either."""
        points: dict[int, list[tuple[float, float]]] = {}
        for (each, _), measured in self._measured.items():
            if each < concurrency:
                value = measured[7] if self.grid.slo or self.grid.slo_ttft else measured[4]
                points.setdefault(each, []).append((measured[3], value))
        means = [(fmean(n for n, _ in of), fmean(x for _, x in of)) for _, of in sorted(points.items())]
        steps = list(pairwise(means))[-2:]
        if len(steps) < 2 or any(gained(*step) >= NOTHING for step in steps):  # noqa: PLR2004
            return False
        self.gained_until = max(points)
        return True


class Cycle:
    """Prompts that begin again when they are spent; each trial goes on where the last one has stopped.

    Args:
        pairs: Each with its label.
    """

    def __init__(self, pairs: Sequence[tuple[Any, Item]]) -> None:
        self._pairs, self._next = pairs, 0

    def __call__(self, seed: int) -> Iterator[tuple[Any, Item]]:  # noqa: ARG002  the shape of a Source
        """Give the rows of the next trial."""
        while True:
            self._next += 1
            yield self._pairs[(self._next - 1) % len(self._pairs)]

    def give_back(self, count: int) -> None:
        """The last so many were taken and not sent."""
        self._next -= count


def _noted(source: Iterator[tuple[Any, Item]], taken: list[Any]) -> Iterator[Item]:
    for label, item in source:
        taken.append(label)
        yield item


def read_concurrency(concurrency: object) -> tuple[int, ...]:
    """The numbers to try, ascending, each once.

    Raises:
        TypeError, ValueError: they are no whole numbers of at least 1, or none.
    """
    given: list[Any] = list(concurrency) if isinstance(concurrency, Iterable) else [concurrency]
    for each in given:
        if isinstance(each, bool) or not isinstance(each, int | np.integer):
            raise TypeError(f"concurrency must be whole numbers, not {each!r}")
        if each < 1:
            raise ValueError(f"concurrency must be at least 1, not {each}")
    if not given:
        raise ValueError("concurrency: there is none to try")
    return tuple(sorted({int(each) for each in given}))


def swept(strategy: object) -> Strategy:
    """A strategy as a sweep can measure it: it asks the provider every time, and its concurrency can be set.

    Raises:
        TypeError: it is no Strategy.
        ValueError: it has no concurrency to set, or packs rows.
    """
    if not isinstance(strategy, Strategy):
        raise TypeError(f"strategy must be a Strategy, not {type(strategy).__name__}; try Strategy.default()")
    limit_of(strategy)
    if strategy.packs:
        raise ValueError("strategy packs rows: a sweep measures requests of one row each; leave pack= out")
    return strategy.without_cache()
