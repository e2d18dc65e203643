"""Strategies on the same work: one trial per strategy and seed, one row of the result each.

Seeds are paired: every strategy of a seed meets the same prompts, answers, delays and faults, as a simulated request
draws them from the seed, its text and how often it was sent, never from the order of arrival. What is left between two
strategies of one seed is their doing.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from llmlab.call import COMMON, Lane
from llmlab.columns import Column
from llmlab.experiment import Experiment
from llmlab.frame import COLUMNS, Frame, frame_of
from llmlab.history import ATTEMPTS, EVENTS
from llmlab.loops import Home
from llmlab.policies.cache import Cache
from llmlab.prices import Price
from llmlab.progress import say
from llmlab.scenario import Scenario
from llmlab.sim.transport import Simulator
from llmlab.strategy import Strategy
from llmlab.target import Route
from llmlab.trial import Trial, Work, detail, simulated
from llmlab.types import Usage

COMPARED: tuple[Column, ...] = (
    Column("strategy", "string", "", "the strategy's name"),
    Column("seed", "int64", "", "what prompts, answers, delays, faults and jitter were drawn from"),
    Column("ok", "int64", "", "rows answered"),
    Column("failed", "int64", "", "all others: ended as an error, or never answered"),
    Column("makespan_s", "float64", "s", "from the first row taken up to the last one settled"),
    Column("attempts_per_ok", "float64", "", "requests sent, failed rows' too, per row answered; missing if none"),
    Column("throttled", "int64", "", "requests refused because there were too many (429)"),
    Column("calls_in_outage", "Int64", "", "requests that came to the provider while it was down; missing if live"),
    Column("p50_ms", "float64", "ms", "median of the answered rows' latency_ms; missing if none"),
    Column("p95_ms", "float64", "ms", "its 95% quantile"),
    Column("p99_ms", "float64", "ms", "its 99% quantile"),
    Column("wasted_tokens", "Int64", "tokens", "spent without an answer, as the simulator says; live: as far as told"),
    Column("wasted_usd", "float64", "USD", "price of those tokens; missing when it is not known"),
)

_LABELS = (COMPARED[0], COMPARED[1])


class Comparison(Experiment):
    """The job of `lab.compare`; the verb says what is in its `frame` and its `rows`.

    Args:
        strategies: By name.
        seeds: One trial of each strategy for each of them.
        work: Gives the rows of a seed.
        scenario: What is simulated. None: live.
        live: Gives a strategy's way to the real provider.
        lane: With whom live rows share their place in the lab's line, and on whose budgets.
        home: The event loop it lives on.
        open_ground: Called on that loop as it begins.
        total: Rows in all.
        progress: Show a line of progress. None: where there is somebody to look.
    """

    def __init__(
        self,
        strategies: Mapping[str, Strategy],
        seeds: Sequence[int],
        work: Callable[[int], Work],
        *,
        scenario: Scenario | None,
        live: Callable[[Strategy], Route],
        lane: Lane = COMMON,
        home: Home,
        open_ground: Callable[[], object],
        total: int,
        progress: bool | None,
    ) -> None:
        self._strategies, self._seeds, self._work = strategies, seeds, work
        self._scenario, self._live, self._lane = scenario, live, lane
        self._trials: list[Trial] = []
        self._measured: dict[tuple[str, int], tuple[Any, ...]] = {}
        super().__init__(
            "compare", home, open_ground=open_ground, virtual=scenario is not None, total=total, progress=progress
        )

    @property
    def frame(self) -> Frame:
        """One row per strategy and seed whose trial is over, strategies in the order given; see `COMPARED`."""
        measured = self._measured.copy()
        order = [(name, seed) for name in self._strategies for seed in self._seeds if (name, seed) in measured]
        out = frame_of(COMPARED, [measured[each] for each in order], pd.RangeIndex(len(order)))
        out.attrs["scenario"] = "live" if self._scenario is None else self._scenario.name
        return out

    @property
    def rows(self) -> Frame:
        """The rows of all trials: strategy, seed and the columns of `llmlab.frame.COLUMNS`, by the input's index."""
        return detail(self._trials, lambda job: job.frame, _empty(COLUMNS))

    @property
    def attempts(self) -> Frame:
        """Their requests: strategy, seed and the columns of `job.attempts`."""
        return detail(self._trials, lambda job: job.attempts, _empty(ATTEMPTS))

    @property
    def events(self) -> Frame:
        """What else happened to them: strategy, seed and the columns of `job.events`."""
        return detail(self._trials, lambda job: job.events, _empty(EVENTS))

    async def _run(self) -> None:
        for seed in self._seeds:
            work = self._work(seed)
            for name, strategy in self._strategies.items():
                trial = Trial({"strategy": name, "seed": seed}, work.rows(), seed, work.stream, self._lane)
                self._trials.append(trial)
                measured = await self._perform(partial(self._try, trial, strategy))
                if measured is None:
                    return
                if trial.ran_out:
                    self._stopped = self._stopped or "the budget is spent"
                    return
                self._measured[name, seed] = measured
                _tell_if_in_vain(trial)
        self._tell_if_too_short()

    def _tell_if_too_short(self) -> None:
        """Say so if the work was over before the scenario has begun to do what it is for."""
        if self._scenario is None or not self._scenario.turns_at:
            return
        name, turns = self._scenario.name, self._scenario.turns_at
        longest = self.frame["makespan_s"].max()
        if longest <= turns:
            say(
                f"llmlab: {name!r} begins to matter at second {turns:g}, and the longest trial took {longest:.0f} s: "
                "it shows nothing; give more rows (n=)"
            )

    async def _try(self, trial: Trial, strategy: Strategy) -> tuple[Any, ...]:
        if self._scenario is None:
            rows = await trial.run(self._live(strategy.fresh()), self._home, self.listen)
            return _measure(trial, rows, None, _told(trial))
        home = Home()
        route, simulators = simulated(self._scenario, strategy.fresh(), seed=trial.seed, home=home)
        rows = await trial.run(route, home, self.listen)
        called = sum(each.stats()["in_outage"] for each in simulators)
        return _measure(trial, rows, called, _counted(simulators, self._scenario.price))


def _measure(trial: Trial, rows: Frame, called: int | None, wasted: tuple[int | None, float | None]) -> tuple[Any, ...]:
    """A trial's values in the order of COMPARED."""
    ok = rows[rows["status"] == "ok"]
    quantiles = [ok["latency_ms"].quantile(q) for q in (0.5, 0.95, 0.99)]
    makespan = (rows["finished_at"].max() - rows["started_at"].min()).total_seconds()
    return (
        trial.labels["strategy"],
        trial.seed,
        len(ok),
        len(rows) - len(ok),
        makespan,
        trial.sent / len(ok) if len(ok) else None,
        round(trial.throttled),
        called,
        *quantiles,
        *wasted,
    )


def _tell_if_in_vain(trial: Trial) -> None:
    """Say so if no row at all was answered, and why: a strategy that cannot run in virtual time, say, is seen so."""
    assert trial.job is not None  # noqa: S101  it is over
    now = trial.job.progress.now
    if now.done > now.errors + now.cancelled:
        return
    rows = trial.job.frame
    why = rows["error_type"].str.cat(rows["error"], sep=": ", na_rep="").mode().iloc[0]
    who = f"{trial.labels['strategy']!r} with seed {trial.seed}"
    say(f"llmlab: {who}: none of {len(rows)} rows was answered; most often {why:.300}")


def _counted(simulators: Iterable[Simulator], price: Price | None) -> tuple[int, float | None]:
    """What the providers say was in vain, and its price."""
    lost = [each.stats()["wasted"] for each in simulators]
    usage = Usage(sum(each["input"] for each in lost), sum(each["output"] for each in lost))
    return usage.input_tokens + usage.output_tokens, None if price is None else price.cost(usage)


def _told(trial: Trial) -> tuple[int, float | None]:
    """What the answers told of tokens in vain, and their price."""
    usages = [each.usage for each in trial.wasted if each.usage is not None]
    costs = [each.cost_usd for each in trial.wasted]
    usd = None if None in costs else sum(cost for cost in costs if cost is not None)
    return sum(each.input_tokens + each.output_tokens for each in usages), usd


def _empty(columns: Sequence[Column]) -> Frame:
    return frame_of((*_LABELS, *columns), [], pd.RangeIndex(0))


def read_seeds(seeds: object) -> tuple[int, ...]:
    """Seeds as given, or a single one.

    Raises:
        TypeError, ValueError: they are no whole numbers, or none, or one of them comes twice.
    """
    given: list[Any] = list(seeds) if isinstance(seeds, Iterable) and not isinstance(seeds, str) else [seeds]
    if wrong := [seed for seed in given if isinstance(seed, bool) or not isinstance(seed, int | np.integer)]:
        raise TypeError(f"seeds must be whole numbers, not {wrong[0]!r}")
    if not given or len(set(given)) < len(given):
        raise ValueError("seeds: there is none" if not given else "seeds: each may come once")
    return tuple(int(seed) for seed in given)


def check_virtual(strategies: Mapping[str, Strategy]) -> None:
    """Complain about what cannot run in virtual time.

    Raises:
        ValueError: a strategy has a Cache, which is a file.
    """
    for name, strategy in strategies.items():
        if any(isinstance(policy, Cache) for policy in strategy.policies):
            raise ValueError(f"strategies: {name!r} has a Cache, a file on disk: virtual time would jump ahead of it")
