"""The verb of a lab that finds its setting: tune."""

import random
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import pandas as pd

from llmlab.experiments import Experiments
from llmlab.frame import Frame, read_rows
from llmlab.job import Job
from llmlab.logbook import Journal
from llmlab.loops import Home
from llmlab.progress import line_of
from llmlab.quote import quote
from llmlab.recommend import ATTAINMENT, Recommendation, check_aims
from llmlab.rules.spend import Spend
from llmlab.scenario import Scenario
from llmlab.settings import budget_of, limit_of
from llmlab.strategy import Strategy
from llmlab.sweep import Cycle, Sweep, read_concurrency, without_cache
from llmlab.tune import COARSE, Rest, Tuning, affordable, remaining, unanswered, whole
from llmlab.types import Prompt
from llmlab.views import maker
from llmlab.watch import Grid


class TuningVerb(Experiments):
    """A lab that can be tuned; the arguments are described at `llmlab.Lab`."""

    def tune(
        self,
        prompts: "pd.DataFrame | pd.Series[Any] | Iterable[Any] | None" = None,
        *,
        template: str | None = None,
        concurrency: Iterable[int] = COARSE,
        elasticity: float = 0.2,
        slo: float | None = None,
        slo_ttft: float | None = None,
        attainment: float = ATTAINMENT,
        scenario: str | Scenario | None = None,
        strategy: Strategy | None = None,
        n: int | None = None,
        seed: int = 0,
        stream: bool | None = None,
        live: bool = False,
        share: float = 0.05,
        confirm: bool = False,
        budget_usd: float | None = None,
        budget_tokens: int | None = None,
        progress: bool | None = None,
    ) -> Tuning:
        """Find the concurrency for a job: as few requests in flight as give nearly all the throughput there is.

        In virtual time on a simulated provider, or with `live=True` on this lab's own: then about `share` of the rows
        of `prompts` are spent on it, whose answers are kept.

        Args:
            prompts: The job's rows, as in `run_many`; read whole. None: made-up ones, in virtual time.
            template: As in `run_many`.
            concurrency: Numbers to try first, whole numbers of at least 1; three more are tried around the knee. Live,
                numbers are left out if there are too few rows for all.
            elasticity: 1% more in flight is to buy at least so many percent more throughput, between 0 and 1: 0.1 if
                only throughput counts, 0.2 balanced, 0.5 if latency counts.
            slo: Seconds that a good answer may take. None: any.
            slo_ttft: Seconds that its first token may take; asks for streams. None: any.
            attainment: Share of the rows that must keep the SLO, above 0, 1 at most.
            scenario: What is simulated, as in `compare`. None: what this lab's own simulated provider does.
            strategy: What is in front of the provider, with its concurrency replaced. None: this lab's.
            n: Rows per number at most, in virtual time. None: as in `sweep`.
            seed: Of the simulated provider, the jitter and, if live, the order.
            stream: Ask for the answers in pieces.
            live: Send real requests. What they will cost is said first; if they can cost anything, `confirm` or a
                budget must be given.
            share: Share of the rows to spend on it if live, above 0, 1 at most.
            confirm: Go ahead at the price that was named.
            budget_usd: Dollars that tuning may spend.
            budget_tokens: Tokens that it may use.
            progress: Show a line of progress. None: as the lab does.

        Returns:
            A Tuning: `await` it, or call its `result()`, for a `Recommendation`. Its `use()` sets what was found on
            this lab; after a live one `rest()` does so and asks the other rows, for the frame of all. `cancel()` or
            Ctrl-C stop it with what was measured so far.

        Raises:
            TypeError, ValueError: an argument is not usable, there are too few rows, the provider is a real one and
                neither `live` nor `scenario` is given, or nobody has agreed to the price; nothing was sent.
        """
        check_aims(elasticity, attainment)
        limit_of(self.strategy)  # what is found is to be set there
        aims = {"elasticity": elasticity, "attainment": attainment}
        grid, mine = read_concurrency(concurrency), without_cache(self.strategy if strategy is None else strategy)
        if live:
            if prompts is None or scenario is not None or n is not None:
                raise ValueError(
                    "live=True takes prompts=, whose rows it spends; scenario= and n= are for virtual time"
                )
            aimed = _Live(slo, slo_ttft, seed, share, stream=bool(stream) or slo_ttft is not None)
            budget = budget_of(self.target, budget_usd, budget_tokens)
            return self._tune_live(prompts, template, grid, mine, aimed, aims, budget, progress, confirm=confirm)
        if self._scene(scenario, prompts, live=False) is None:
            raise ValueError(
                f"{self.model} is a real provider: tune(prompts, live=True) sends some of them to it, "
                "scenario=… simulates one"
            )
        begin = partial(
            self.sweep, prompts=prompts, template=template, n=n, slo=slo, slo_ttft=slo_ttft, seed=seed,
            scenario=scenario, strategy=mine, stream=stream, progress=progress,
        )  # fmt: skip
        return self._tuned(Tuning(grid, begin, refine=True, use=self._use, rest=None, home=Home(), **aims))

    def _tune_live(
        self,
        prompts: Any,
        template: str | None,
        grid: tuple[int, ...],
        strategy: Strategy,
        aimed: "_Live",
        aims: Mapping[str, float],
        budget: Spend | None,
        progress: bool | None,
        *,
        confirm: bool,
    ) -> Tuning:
        rows = read_rows(prompts, template=template, **self._parameters(None, None, None, None, None))
        if rows.total is None:
            raise TypeError("prompts must be a Series, a DataFrame or a list: some of its rows are asked first")
        items = [each for each in rows.items if isinstance(each, Prompt)]  # type: ignore[union-attr]
        grid, most = affordable(grid, int(len(items) * aimed.share))
        offer = quote(self.target, items, times=1).scaled(len(grid) * (most + grid[-1]))
        self._agree(offer, "tune", [strategy], confirm=confirm, budget=budget)
        order = random.Random(aimed.seed).sample(range(len(items)), len(items))  # rows at the top may be of one kind
        source, where = Cycle([(position, items[position]) for position in order]), self._where(None, budget, progress)

        def begin(numbers: tuple[int, ...]) -> Sweep:
            measured = Grid(numbers, 1, most, aimed.slo, aimed.slo_ttft, aimed.seed)
            return Sweep(measured, strategy, source, stream=aimed.stream, **where)

        rest = partial(self._rest_of, items, rows.index, template)
        return self._tuned(Tuning(grid, begin, refine=False, use=self._use, rest=rest, home=self._home, **aims))

    def _tuned(self, tuning: Tuning) -> Tuning:
        self.last = tuning
        return tuning

    def _use(self, found: Recommendation) -> None:
        self.concurrency = found.concurrency

    def _rest_of(
        self, items: list[Prompt], index: pd.Index | None, template: str | None, tuning: Tuning, rest: Rest
    ) -> Job[Frame]:
        answers = tuning.rows
        keeper = None
        if rest.journal is not None:
            told = {"template": template, **self._parameters(None, None, None, None, None)}
            keeper = self._keeper(Journal(rest.journal, durability=rest.durability), told)
        return self._job(
            "rest",
            remaining(items, unanswered(items, answers)),
            stream=rest.stream,
            view=maker(line_of, wanted=self._progress if rest.progress is None else rest.progress),
            finish=lambda job: whole(answers, job.frame, index, len(items)),
            journal=keeper,
            lane=self._lane(rest.priority, budget_of(self.target, rest.budget_usd, rest.budget_tokens), patient=True),
        )


@dataclass(frozen=True)
class _Live:
    """How a real provider is tried."""

    slo: float | None
    slo_ttft: float | None
    seed: int
    share: float
    stream: bool

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise ValueError(f"share must be above 0 and 1 at most, not {self.share!r}")
