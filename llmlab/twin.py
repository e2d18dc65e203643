"""A digital twin: fitted to what a pilot run has measured, it plays the big job before a cent is spent.

    fit        latency by tokens and in-flight (`llmlab.loadfit`), the provider's slots and its limit if they were met;
               everything else as it was: residuals, failures and their bursts, costs (`llmlab.pool`)
    predict    the pilot is drawn anew in blocks, fitted again and the job played with it, run after run. Quantiles over
               the runs are the intervals: doubt about the fit and the luck of a run together
    outside    who asks for far more in flight than was measured is told so: a wall beyond is not in the data

Not modelled: other prompts than the pilot's, limits of tokens, failures that grow with load (but for 429s of a limit
that the pilot has met), a provider that differs from day to day.
"""

import math
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import pandas as pd

from llmlab.calibrate import CALIBRATION, calibrate
from llmlab.closed import Closed, Played
from llmlab.columns import Column
from llmlab.frame import Frame, frame_of
from llmlab.loadfit import TERMS, Array, Latency, find_slots
from llmlab.pilot import NotIdentified, Pilot, read_pilot
from llmlab.policies.retry import Retry
from llmlab.pool import Pool, find_limit, make_pool, redraw
from llmlab.rules.rate import Rate
from llmlab.rules.slots import Slots
from llmlab.settings import live_strategy
from llmlab.sim.physics import Physics
from llmlab.stage import Stage
from llmlab.strategy import Strategy, read_strategies

__all__ = ["CALIBRATION", "PREDICTION", "NotIdentified", "Twin"]

Play: TypeAlias = Callable[[Pool, int], Played]

NEARLY = 0.9
"""Share of a limit from which on it binds."""
LOW, MIDDLE, HIGH = 0.1, 0.5, 0.9
RUNS, STAGED = 40, 8
"""Runs played for a prediction: on plain heaps, and with a whole strategy."""
PLAYED, STAGED_ROWS, WAVES = 3_000, 1_500, 20
"""Rows played at most, if they are at least so many waves of the concurrency; the middle of the run then goes on."""
BEYOND = 1.5
"""Times the greatest in-flight measured, above which a prediction is outside; below the least by as much likewise."""


def _three(name: str, unit: str, meaning: str) -> list[Column]:
    ends = (("_low", ": 10% of the runs were below"), ("", ", the median of the runs"), ("_high", ": 90% were below"))
    shown = "USD" if unit == "usd" else unit
    return [Column(f"{name}{at}_{unit}", "float64", shown, f"{meaning}{words}") for at, words in ends]


PREDICTION: tuple[Column, ...] = (
    Column("strategy", "string", "", "its name; default: the default stack's slots and retries, on plain heaps"),
    Column("concurrency", "Int64", "", "requests in flight at most; missing when the strategy sets no number"),
    Column("rows", "int64", "", "rows of the job"),
    *_three("makespan", "s", "from the first row's start to the last one's end"),
    *_three("p50", "ms", "latency of the successful attempt that half of the rows stay below"),
    *_three("p95", "ms", "latency that 95% of the rows stay below"),
    *_three("p99", "ms", "latency that 99% of the rows stay below"),
    *_three("cost", "usd", "of all attempts; missing when the pilot's cost is not known"),
    Column("failed", "float64", "", "rows without an answer, the mean of the runs"),
    Column("attempts_per_row", "float64", "", "requests sent per row, the mean"),
    Column("throttled", "float64", "", "429s, the mean"),
    Column(
        "rate_rpm", "float64", "1/min", "requests a minute that the run sends on average: what an account must allow"
    ),
    Column("in_flight", "float64", "", "requests in flight on average"),
    Column("outside", "bool", "", "whether it is outside what the pilot has measured: to be hatched in plots"),
    Column("why", "string", "", "why it is outside, or what binds; missing when there is nothing to say"),
)


@dataclass(frozen=True, eq=False)
class Twin:
    """A provider as a pilot has met it; made by `Twin.fit`."""

    latency: Latency
    """How long an attempt takes."""
    rpm: float | None
    """Requests a minute that the provider takes; None: no limit was met."""
    least: float
    """Least in-flight measured (5% of the answers had less)."""
    most: float
    """Greatest in-flight measured (5% of the answers had more)."""
    seed: int
    """Of all draws."""
    _pilot: Pilot = field(repr=False)

    @classmethod
    def fit(cls, data: object, *, target: str | None = None, rpm: float | None = None, seed: int = 0) -> "Twin":
        """Fit a twin to pilot runs at two or more levels of load.

        Args:
            data: A job, its `attempts`, or the result frame of one, or a list of them, one per run; or a sweep's or
                a comparison's job, whose trials are as many runs. Jobs and attempts tell more: of a result alone the
                failed attempts' errors are unknown, and rows with retries lack tokens of their own.
            target: "provider:model" to fit, when several have answered.
            rpm: Requests a minute that the provider takes; inf: no limit. None: as the 429s show.
            seed: Of all draws: the same twin predicts the same.

        Raises:
            TypeError: `data` is none of these.
            NotIdentified: the data do not determine a twin: fewer than 50 answers, no token counts, one level of load
                only (1.5 times apart, 15 answers on either side), answers of several targets, requests that rows
                shared. A ValueError.
            ValueError: `rpm` is not above 0.
        """
        if rpm is not None and not rpm > 0:
            raise ValueError(f"rpm must be above 0, or inf for no limit, not {rpm!r}")
        pilot = read_pilot(data, target)
        good = pilot.take(pilot.usable)
        slots = find_slots(good.n_in, good.n_out, good.in_flight, good.latency)
        limit = find_limit(pilot) if rpm is None else rpm if rpm < math.inf else None
        latency = make_pool(pilot, slots, limited=limit is not None).latency
        least, most = (float(each) for each in np.quantile(good.in_flight, [0.05, 0.95]))
        return cls(latency, limit, least, most, seed, pilot)

    @property
    def coefficients(self) -> dict[str, float]:
        """Seconds: a; c per input token; f per request in flight; b per output token; d per both."""
        return dict(zip(TERMS, self.latency.whole, strict=True))

    def predict(
        self,
        rows: int,
        concurrency: int | Iterable[int] | None = None,
        *,
        strategy: Strategy | Iterable[Strategy] | Mapping[str, Strategy] | None = None,
        rpm: float | None = None,
        runs: int | None = None,
    ) -> Frame:
        """Predict a job of `rows` rows like the pilot's.

        Args:
            rows: How many.
            concurrency: Requests in flight at most, one or several. None: the strategies' own.
            strategy: One, several or some by name: played whole but for a Cache, policy by policy, which takes longer.
                None: the default stack's slots, retries and limits, without breaker and without learning from 429s.
            rpm: Requests a minute that the client lets go, if no strategy is given.
            runs: How often to play each. None: 40, or 8 with a strategy.

        Returns:
            A frame, one row per strategy and concurrency; see `llmlab.twin.PREDICTION`.

        Raises:
            TypeError, ValueError: an argument is not usable.
        """
        rows = _whole("rows", rows)
        usual = RUNS if strategy is None else STAGED
        times = usual if runs is None else _whole("runs", runs)
        if strategy is not None:
            if rpm is not None:
                raise ValueError("rpm belongs to the default strategy: put a Rate into yours instead")
            settings = self._stages(rows, strategy, concurrency)
        elif concurrency is None:
            raise ValueError("say how many requests may be in flight: concurrency=32, or several")
        elif rpm is not None and not 0 < rpm < math.inf:
            raise ValueError(f"rpm must be a number above 0, not {rpm!r}")
        else:
            settings = [("default", level, self._heaps(rows, level, rpm)) for level in _levels(concurrency)]
        pools = self._pools(times)
        records = [self._record(name, level, [play(*each) for each in pools]) for name, level, play in settings]
        return frame_of(PREDICTION, records, pd.RangeIndex(len(records)))

    def calibration(self, *, share: float = 0.2) -> Frame:
        """Fit to a part of the pilot and compare with the rest.

        Args:
            share: Of the attempts, held out in blocks; between 0 and 0.5.

        Returns:
            A frame, a row per group (all, and each run) and quantile; see `llmlab.twin.CALIBRATION`.
        """
        if not 0 < share <= 0.5:  # noqa: PLR2004
            raise ValueError(f"share must be above 0 and at most 0.5, not {share!r}")
        limited = self.rpm is not None
        rows = calibrate(self._pilot, self.latency.slots, limited=limited, share=share, seed=self.seed)
        return frame_of(CALIBRATION, rows, pd.RangeIndex(len(rows)))

    def physics(self) -> Physics:
        """The simulated provider nearest to the twin, for `llmlab simulate`, `compare` and `Simulator(physics=…)`.

        Keeps speed, load, slots, rate limit and lengths of answers; of the residuals only their spread, as jitter
        of the first token; no faults.
        """
        a, c, f, b, d = self.latency.whole
        good = self._pilot.take(self._pilot.usable)
        off = np.log(good.latency / self.latency.predict(good.n_in, good.n_out, good.in_flight))
        first = max(a + f, 1e-6)
        share = first / float(np.mean(good.latency))
        lengths = np.log(np.maximum(good.n_out, 1.0))
        slots = Physics.slots if self.latency.slots is None else max(1, round(self.latency.slots))
        unseen = self.latency.slots is None
        return Physics(
            slots=1_000_000 if unseen else slots, queue=1_000_000, rtt=0.0, ttft=first, itl=b + d, load=d,
            prefill=math.inf if c <= 0 else 1 / c, jitter=min(1.0, float(np.std(off)) / max(share, 1e-6)), rpm=self.rpm,
            reply_tokens=float(np.exp(np.median(lengths))), reply_sigma=float(np.std(lengths)),
        )  # fmt: skip

    # -- playing ------------------------------------------------------------------------------------------

    def _pools(self, times: int) -> list[tuple[Pool, int]]:
        """A pool of a redrawn pilot and a seed for each run; the same for all settings, which can so be compared."""
        rng = np.random.default_rng(self.seed)
        limited = self.rpm is not None
        seeds = rng.integers(2**31, size=times).tolist()
        return [(make_pool(redraw(self._pilot, rng), self.latency.slots, limited=limited), each) for each in seeds]

    def _heaps(self, rows: int, level: int, rpm: float | None) -> Play:
        limit = min((each for each in (rpm, self.rpm) if each is not None), default=None)
        played = min(rows, max(PLAYED, WAVES * level))

        def play(pool: Pool, seed: int) -> Played:
            rng = random.Random(seed)
            closed = Closed(
                pool.stream(rng), rows=played, concurrency=level, slots=self.latency.slots, rpm=limit,
                burst=Rate.burst, retry=Retry(), rng=rng,
            )  # fmt: skip
            return closed.play().scaled(rows)

        return play

    def _stages(
        self, rows: int, strategies: object, concurrency: int | Iterable[int] | None
    ) -> list[tuple[str, int | None, Play]]:
        levels: list[int | None] = [None] if concurrency is None else [*_levels(concurrency)]
        settings: list[tuple[str, int | None, Play]] = []
        for name, strategy in _strategies(strategies).items():
            for level in levels:
                slots = live_strategy(strategy, level, rpm=None, tpm=None, queue=None).slots  # complains before playing
                known = slots.limit if isinstance(slots, Slots) else level
                settings.append((name, known, self._staged(rows, strategy, level)))
        return settings

    def _staged(self, rows: int, strategy: Strategy, level: int | None) -> Play:
        limit = self.rpm or 0.0
        played = min(rows, max(STAGED_ROWS, WAVES * (level or 0), math.ceil(3 * limit)))

        def play(pool: Pool, seed: int) -> Played:
            draws = pool.stream(random.Random(seed))
            stage = Stage(draws, rows=played, slots=self.latency.slots, rpm=self.rpm, seed=seed)
            return stage.play(live_strategy(strategy, level, rpm=None, tpm=None, queue=None)).scaled(rows)

        return play

    def _record(self, name: str, level: int | None, plays: Sequence[Played]) -> tuple[Any, ...]:
        spread = [np.array([each.makespan for each in plays])]
        spread += [np.array([_quantile(each.latency, q) for each in plays]) * 1000 for q in (0.5, 0.95, 0.99)]
        known = np.isfinite(self._pilot.cost).any()
        spread.append(np.array([each.cost if known else math.nan for each in plays]))
        figures = [float(each) for values in spread for each in np.quantile(values, (LOW, MIDDLE, HIGH))]
        rows = plays[0].rows
        attempts, in_flight = _mean(plays, "attempts"), _mean(plays, "in_flight")
        rate = float(np.mean([60 * each.attempts / each.makespan for each in plays]))
        outside, why = self._judge(_mean(plays, "peak"), in_flight, rate)
        counts = (_mean(plays, "failed"), attempts / rows, _mean(plays, "throttled"), rate, in_flight)
        return (name, level, rows, *figures, *counts, outside, why)

    def _judge(self, peak: float, in_flight: float, rate: float) -> tuple[bool, str | None]:
        """Whether it is outside the measured range, and what there is to say."""
        if peak > BEYOND * self.most:
            return True, (
                f"{peak:.0f} in flight are more than {BEYOND:g} times the most measured, {self.most:.0f}: slots or "
                f"limits beyond are not in the data. Run some rows at {peak:.0f} and fit again"
            )
        if peak * BEYOND < self.least:
            return True, f"{peak:.0f} in flight are far less than the least measured, {self.least:.0f}"
        if self.rpm is not None and rate > NEARLY * self.rpm:
            return False, f"the limit of {self.rpm:.0f} requests a minute binds"
        if self.latency.slots is not None and in_flight > self.latency.slots:
            return False, f"the provider works on about {self.latency.slots:.0f} at a time: more only wait longer"
        return False, None


def _quantile(latency: Array, q: float) -> float:
    return float(np.quantile(latency, q)) if len(latency) else math.nan


def _mean(plays: Sequence[Played], name: str) -> float:
    return float(np.mean([getattr(each, name) for each in plays]))


def _whole(name: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise TypeError(f"{name} must be a whole number, not {value!r}")
    if value < 1:
        raise ValueError(f"{name} must be at least 1, not {value}")
    return int(value)


def _levels(concurrency: int | Iterable[int]) -> list[int]:
    several = concurrency if isinstance(concurrency, Iterable) else [concurrency]
    found = [_whole("concurrency", each) for each in several]
    if not found:
        raise ValueError("concurrency is empty: name one number at least")
    return found


def _strategies(given: object) -> dict[str, Strategy]:
    if isinstance(given, str) or not isinstance(given, Strategy | Iterable):
        raise TypeError(f"strategy must be a Strategy, several or some by name, not {given!r}")
    named = read_strategies([given] if isinstance(given, Strategy) else given)
    if packing := [name for name, strategy in named.items() if strategy.packs]:
        raise ValueError(f"strategy {packing[0]!r} packs rows: a twin knows requests of one row each; leave pack= out")
    return {name: strategy.without_cache() for name, strategy in named.items()}  # whose hits no pilot foretells
