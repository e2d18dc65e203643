"""The verbs of a lab that try things out: compare."""

from collections.abc import AsyncIterable, Callable, Iterable
from functools import partial
from typing import Any

import pandas as pd

from llmlab.call import NORMAL
from llmlab.compare import Comparison, Strategies, check_virtual, read_seeds, read_strategies
from llmlab.core import Core
from llmlab.frame import read_rows
from llmlab.loops import Home
from llmlab.quote import agree, quote
from llmlab.scenario import Scenario, find
from llmlab.settings import budget_of
from llmlab.strategy import Strategy
from llmlab.target import Route, Target
from llmlab.trial import Work

N = 500
"""Rows of each trial, if nothing else is said."""


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
            n: How many are made up, at least 1. None: 500.
            scenario: What the simulated provider does: steady, rate_limited, outage, overload, heavy_tail, flaky,
                capacity_drop, or a Scenario of your own. None: steady.
            seeds: A whole number or several: each strategy runs once for each. More seeds tell chance from effect.
            template: As in `run_many`.
            stream: Ask for the answers in pieces. None: as the scenario says.
            live: Send real requests to this lab's provider, `prompts` for every strategy and seed, one trial after the
                other. What it will cost is said first; if it can cost anything, `confirm` or a budget must be given.
            confirm: Go ahead at the price that was named.
            budget_usd: Dollars that a live comparison may spend; when they are spent it stops with the trials that are
                over.
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
        _check_live(live=live, scenario=scenario, prompts=prompts, n=n)
        scene = None if live else find(scenario or "steady")
        streamed = (scene is not None and scene.stream) if stream is None else stream
        make, rows = self._work(prompts, n, template, scene, stream=streamed)
        budget = budget_of(self.target, budget_usd, budget_tokens)
        if scene is not None:
            check_virtual(named)
        else:
            for strategy in named.values():
                if budget is not None or self._budget is not None:
                    Target(self.target.provider, strategy, self._home).check_budget()
            offer = quote(self.target, make(drawn[0]).prompts, times=len(named) * len(drawn))
            agree(offer, "compare", confirm=confirm, limited=budget is not None or self._budget is not None)
        home = self._home if live else Home()
        job = Comparison(
            named,
            drawn,
            make,
            scenario=scene,
            live=self._way,
            lane=self._lane(NORMAL, budget, patient=True),
            home=home,
            open_ground=self._route.bind if live else home.bind,
            total=rows * len(named) * len(drawn),
            progress=self._progress if progress is None else progress,
        )
        self.last = job
        return job

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
        """A strategy of its own in front of this lab's provider, with this lab's fallbacks behind it."""
        others = self._route.others if strategy.fallback is not None else ()
        return Route(Target(self.target.provider, strategy.fresh(), self._home), others)


def _made_up(scene: Scenario, n: int, defaults: dict[str, Any], stream: bool, seed: int) -> Work:
    rows = read_rows(scene.prompts(n, seed=seed), **defaults)
    return Work(tuple(rows.items), None, stream)  # type: ignore[arg-type]  # no AsyncIterable


def _check_live(*, live: bool, scenario: object, prompts: object, n: object) -> None:
    if prompts is not None and n is not None:
        raise ValueError("n says how many prompts are made up: give n or prompts, not both")
    if n is not None and (isinstance(n, bool) or not isinstance(n, int) or n < 1):
        raise ValueError(f"n must be a whole number of at least 1, not {n!r}")
    if live and scenario is not None:
        raise ValueError("scenario is what a simulated provider does: not together with live=True")
    if live and prompts is None:
        raise ValueError("live=True needs prompts=: what is to be sent to the provider")
