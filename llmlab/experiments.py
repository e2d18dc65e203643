"""The verbs of a lab that try things out: compare, sweep."""

from collections.abc import AsyncIterable, Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from itertools import cycle
from typing import Any

import numpy as np
import pandas as pd

from llmlab.call import NORMAL, Lane
from llmlab.compare import Comparison, check_virtual, read_seeds
from llmlab.core import Core
from llmlab.frame import read_rows
from llmlab.loops import Home
from llmlab.quote import Quote, agree, quote
from llmlab.rules.spend import Spend
from llmlab.scenario import SCENARIOS, Scenario, find
from llmlab.settings import budget_of
from llmlab.sim.transport import Simulator
from llmlab.strategy import Strategies, Strategy, read_strategies
from llmlab.sweep import Cycle, Source, Sweep, read_concurrency, swept
from llmlab.target import Route, Target
from llmlab.trial import Work
from llmlab.types import Item, Prompt
from llmlab.watch import Grid

N = 2000
"""Rows of each trial, if nothing else is said: enough for what the ready-made scenarios do after a while."""


class Experiments(Core):
    """A lab with the verbs that try things out; the arguments are described at `llmlab.Lab`."""

    def compare(
        self,
        strategies: Strategies,
        *,
        prompts: "pd.DataFrame | pd.Series[Any] | Iterable[Any] | None" = None,
        n: int | None = None,
        scenario: str | Scenario | None = None,
        seeds: int | Iterable[int] = 1,
        template: str | None = None,
        stream: bool | None = None,
        live: bool = False,
        confirm: bool = False,
        budget_usd: float | None = None,
        budget_tokens: int | None = None,
        progress: bool | None = None,
    ) -> Comparison:
        """Compare strategies on the same work: in virtual time on a simulated provider, or live on this lab's.

        Args:
            strategies: By name, `{"bare": Strategy.bare(), "mine": s}`, or a list with the names they have. They may
                differ in anything but a Cache (in virtual time): retries, jitter, limits, breaker, hedging, controller,
                fallback. One with a Fallback goes on to a second simulated provider (`Scenario.backup`), or to this
                lab's own fallbacks if live.
            prompts: As in `run_many`; read whole. None: `n` made-up ones.
            n: How many are made up, at least 1. None: 2,000.
            scenario: What the simulated provider does: steady, rate_limited, outage, overload, heavy_tail, flaky,
                capacity_drop, or a Scenario of your own. None: what this lab's own simulated provider does; steady, if
                its provider is a real one.
            seeds: A whole number or several: each strategy runs once for each. More seeds tell chance from effect.
            template: As in `run_many`.
            stream: Ask for the answers in pieces. None: as the scenario says.
            live: Send real requests to this lab's provider, `prompts` for every strategy and seed, one trial after the
                other. What it will cost is said first; if it can cost anything, `confirm` or a budget must be given.
            confirm: Go ahead at the price that was named.
            budget_usd: Dollars that the comparison may spend; when they are spent it stops with the trials that are
                over. In virtual time simulated ones: those of the lab's own budget are not touched.
            budget_tokens: Tokens that it may use; likewise.
            progress: Show a line of progress. None: as the lab does.

        Returns:
            A Comparison: `await` it, or call its `result()`, for a tidy frame with one row per strategy and seed and
            the columns of `llmlab.compare.COMPARED`. Its `rows`, `attempts` and `events` are what lies behind it, each
            with the columns `strategy` and `seed` in front; `cancel()` or Ctrl-C stop it with the trials that are over.
            The same arguments give the same frame, to the last digit, unless live.

        Raises:
            TypeError, ValueError: an argument is not usable, or nobody has agreed to the price; nothing was sent.
        """
        named, drawn = read_strategies(strategies), read_seeds(seeds)
        check_rows(prompts, n)
        check_template(prompts, template)
        scene = self._scene(scenario, prompts, live=live)
        if scene is None and not live:
            scene = SCENARIOS["steady"]
        streamed = (scene is not None and scene.stream) if stream is None else stream
        make, rows = self._work(prompts, n, template, scene, stream=streamed)
        budget = budget_of(self.target, budget_usd, budget_tokens)
        if scene is not None:
            check_virtual(named)
            self._check_budget(named.values() if budget is not None else ())
        else:
            offer = quote(self.target, make(drawn[0]).prompts, times=len(named) * len(drawn))
            self._agree(offer, "compare", list(named.values()), confirm=confirm, budget=budget)
        job = Comparison(
            named,
            drawn,
            make,
            total=rows * len(named) * len(drawn),
            **self._where(scene, budget, progress),
        )
        self.last = job
        return job

    def sweep(
        self,
        concurrency: Iterable[int] = (1, 2, 4, 8, 16, 32, 64),
        *,
        prompts: "pd.DataFrame | pd.Series[Any] | Iterable[Any] | None" = None,
        n: int | None = None,
        scenario: str | Scenario | None = None,
        strategy: Strategy | None = None,
        repeats: int = 1,
        slo: float | None = None,
        slo_ttft: float | None = None,
        seed: int = 0,
        template: str | None = None,
        stream: bool | None = None,
        live: bool = False,
        confirm: bool = False,
        budget_usd: float | None = None,
        budget_tokens: int | None = None,
        progress: bool | None = None,
    ) -> Sweep:
        """Measure throughput and latency over the number of requests in flight.

        Each number is held until its throughput is known to 5% (60 answers or more over three mean latencies or more,
        after a warm-up), or its rows are spent. Numbers beyond the point where two steps have brought hardly any gain
        (elasticity below 0.05) are left out; `gained_until` says so.

        Args:
            concurrency: Requests in flight at most, whole numbers of at least 1.
            prompts: As in `run_many`; read whole, and begun again when they are spent. None: made-up ones.
            n: Rows per number at most, at least 1. None: 8 times the number, at least 1,000; live 5 times, at least
                120.
            scenario: What is simulated, a name as in `compare` or a Scenario. None: what this lab's own simulated
                provider does. In virtual time.
            strategy: What is in front of the provider, with its concurrency replaced. None: this lab's, without its
                cache.
            repeats: How often each number is measured.
            slo: Seconds that a good answer may take, for the goodput. None: any.
            slo_ttft: Seconds that its first token may take; asks for streams. None: any.
            seed: Of the simulated provider, the prompts, the jitter and, if live, the order.
            template: As in `run_many`.
            stream: Ask for the answers in pieces. None: as the scenario says, or if `slo_ttft` is given.
            live: Send real requests to this lab's provider, in random order of the numbers. What it will cost at most
                is said first; if it can cost anything, `confirm` or a budget must be given.
            confirm: Go ahead at the price that was named.
            budget_usd: Dollars that the sweep may spend; when they are spent it stops with the points that are done.
                In virtual time simulated ones: those of the lab's own budget are not touched.
            budget_tokens: Tokens that it may use; likewise.
            progress: Show a line of progress. None: as the lab does.

        Returns:
            A Sweep: `await` it, or call its `result()`, for a tidy frame with one row per number and repeat and the
            columns of `llmlab.sweep.SWEPT`, as `llmlab.fits` and `llmlab.plots.sweep` take it. Its `rows` and
            `attempts` are what lies behind it; live, `rows` has the answers.

        Raises:
            TypeError, ValueError: an argument is not usable, the lab's provider is a real one and neither `live` nor
                `scenario` is given, or nobody has agreed to the price; nothing was sent.
        """
        check_rows(None, n)
        check_template(prompts, template)
        grid = Grid(read_concurrency(concurrency), repeats, n, slo, slo_ttft, seed)
        scene = self._scene(scenario, prompts, live=live)
        if scene is None and not live:
            raise ValueError(
                f"{self.model} is a real provider: sweep(live=True, prompts=…) sends requests to it, "
                "scenario=… simulates one"
            )
        if stream is False and slo_ttft is not None:
            raise ValueError("slo_ttft is about the first token: not together with stream=False")
        streamed = (slo_ttft is not None or (scene is not None and scene.stream)) if stream is None else stream
        mine = swept(self.strategy if strategy is None else strategy)
        budget = budget_of(self.target, budget_usd, budget_tokens)
        source, few = self._source(prompts, template, scene)
        if live:
            most = sum(grid.rows(each, live=True) for each in grid.concurrency) * repeats
            offer = quote(self.target, few, times=1).scaled(most)
            self._agree(offer, "sweep", [mine], confirm=confirm, budget=budget)
        job = Sweep(grid, mine, source, stream=streamed, **self._where(scene, budget, progress))
        self.last = job
        return job

    def _where(self, scene: Scenario | None, budget: Spend | None, progress: bool | None) -> dict[str, Any]:
        """Where an experiment runs, and on whose account: what is simulated costs this lab's own budget nothing."""
        home = self._home if scene is None else Home()
        lane = Lane(budgets=() if budget is None else (budget,))
        return {
            "scenario": scene,
            "live": self._way,
            "lane": self._lane(NORMAL, budget, patient=True) if scene is None else lane,
            "home": home,
            "open_ground": self._route.bind if scene is None else home.bind,
            "progress": self._progress if progress is None else progress,
        }

    def _scene(self, scenario: str | Scenario | None, prompts: object, *, live: bool) -> Scenario | None:
        """What is simulated; None: nothing is."""
        if live and scenario is not None:
            raise ValueError("scenario is what a simulated provider does: not together with live=True")
        if live and prompts is None:
            raise ValueError("live=True needs prompts=: what is to be sent to the provider")
        if live:
            return None
        provider = self.target.provider
        if scenario is not None:
            return find(scenario)
        if not isinstance(provider.transport, Simulator):
            return None
        own = Scenario.of(provider.transport)
        return replace(own, price=provider.prices.get(provider.model) or own.price)

    def _agree(
        self, offer: Quote, verb: str, strategies: list[Strategy], *, confirm: bool, budget: Spend | None
    ) -> None:
        if limited := budget is not None or self._budget is not None:
            self._check_budget(strategies)
        agree(offer, verb, confirm=confirm, limited=limited)

    def _check_budget(self, strategies: Iterable[Strategy]) -> None:
        for strategy in strategies:
            self._way(strategy.fresh()).first.check_budget()

    def _source(self, prompts: Any, template: str | None, scene: Scenario | None) -> tuple[Source, list[Prompt]]:
        """What gives a sweep's rows, and some of them to tell the price by."""
        defaults = self._parameters(None, None, None, None, None)
        if prompts is None:
            assert scene is not None  # noqa: S101  a live sweep has prompts
            return partial(_endless, scene, defaults), []
        make, _ = self._work(prompts, None, template, scene, stream=False)
        work = make(0)
        labels = range(len(work.items)) if work.index is None else work.index
        pairs = list(zip(labels, work.items, strict=True))
        return (Cycle(pairs) if scene is None else lambda _: cycle(pairs)), work.prompts

    def _work(
        self, prompts: Any, n: int | None, template: str | None, scene: Scenario | None, *, stream: bool
    ) -> tuple[Callable[[int], Work], int]:
        """What gives a seed's rows, and how many they are."""
        defaults = self._parameters(None, None, None, None, None)
        if prompts is None:
            assert scene is not None  # noqa: S101  a live comparison has prompts
            count = N if n is None else n
            return partial(_made_up, scene, count, defaults, stream), count
        if isinstance(prompts, AsyncIterable):
            raise TypeError("prompts must be a Series, DataFrame, list or iterable: they are sent several times")
        rows = read_rows(prompts, template=template, **defaults)
        work = Work(tuple(rows.items), rows.index, stream)  # type: ignore[arg-type]  # no AsyncIterable
        if not work.items:
            raise ValueError("prompts: there is none")
        return lambda _: work, len(work.items)

    def _way(self, strategy: Strategy) -> Route:
        """A fresh strategy in front of this lab's provider, with this lab's fallbacks behind it."""
        others = self._route.others if strategy.fallback is not None else ()
        return Route(Target(self.target.provider, strategy, self._home), others)


def _made_up(scene: Scenario, n: int, defaults: dict[str, Any], stream: bool, seed: int) -> Work:
    rows = read_rows(scene.prompts(n, seed=seed), **defaults)
    return Work(tuple(rows.items), None, stream)  # type: ignore[arg-type]  # no AsyncIterable


def _endless(scene: Scenario, defaults: dict[str, Any], seed: int) -> Iterator[tuple[int, Item]]:
    return enumerate(Prompt.of(text, **defaults) for text in scene.endless(seed=seed))


def check_rows(prompts: object, n: object) -> None:
    """Complain about a number of made-up rows.

    Raises:
        ValueError: it is no whole number of at least 1, or given beside prompts.
    """
    if prompts is not None and n is not None:
        raise ValueError("n says how many prompts are made up: give n or prompts, not both")
    if n is not None and (isinstance(n, bool) or not isinstance(n, int | np.integer) or n < 1):
        raise ValueError(f"n must be a whole number of at least 1, not {n!r}")


def check_template(prompts: object, template: object) -> None:
    """Complain about a template without anything to fill in.

    Raises:
        ValueError: it is given without prompts.
    """
    if template is not None and prompts is None:
        raise ValueError("template is filled in from prompts=: made-up prompts have none")
