"""The verb of a lab that finds its setting: tune."""

import random
from collections.abc import AsyncIterable, Iterable
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import cycle
from typing import Any

import pandas as pd

from llmlab.experiments import Experiments, check_rows
from llmlab.frame import Frame, read_rows
from llmlab.job import Job
from llmlab.knobs import Knobs
from llmlab.logbook import Journal
from llmlab.loops import Home
from llmlab.progress import line_of
from llmlab.quote import Quote, quote
from llmlab.recommend import ATTAINMENT
from llmlab.rest import Rest, affordable, remaining, unanswered, whole
from llmlab.rules.spend import Spend
from llmlab.scenario import SCENARIOS, Scenario
from llmlab.settings import budget_of, limit_of
from llmlab.sim.transport import Simulator
from llmlab.strategy import Strategy
from llmlab.sweep import Cycle, Source, Sweep, read_concurrency, swept
from llmlab.tune import COARSE, LIVE, MOST, UNDECIDED, Aims, Setup, Tuning, Ways
from llmlab.types import Item, Prompt
from llmlab.views import maker
from llmlab.watch import Grid

OWN = "own"
"""Stands for what the lab's own simulated provider does, or a Scenario of the user's."""

SAMPLE = 1000
"""Rows by which the price of trying is reckoned."""


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
        of `prompts` are spent on it, whose answers are kept. As the last line of a notebook's cell it shows curves and
        knobs: scenario, limits, retries, SLO; the live provider, too, at a price that is named before.

        Args:
            prompts: The job's rows, as in `run_many`; read whole. None: made-up ones, in virtual time.
            template: As in `run_many`.
            concurrency: Numbers to try first, whole numbers of at least 1; in virtual time a few more are tried around
                the knee. Live, numbers are left out if there are too few rows for all.
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
            A Tuning: `await` it, or call its `result()`, for a `Recommendation`; display it to turn its knobs. Its
            `use()` sets what was found on this lab; after a live one `rest()` does so and asks the other rows, for the
            frame of all. `cancel()` or Ctrl-C stop it with what was measured so far. If the provider is a real one and
            neither `live` nor `scenario` is given, nothing is tried until that is chosen in its view; awaiting it then
            raises ValueError.

        Raises:
            TypeError, ValueError: an argument is not usable, there are too few rows, or nobody has agreed to the
                price; nothing was sent.
        """
        aims = Aims(elasticity=elasticity, attainment=attainment, slo=slo, slo_ttft=slo_ttft)
        limit_of(self.strategy)  # what is found is to be set there
        check_rows(None, n)
        if live and (prompts is None or scenario is not None or n is not None):
            raise ValueError("live=True takes prompts=, whose rows it spends; scenario= and n= are for virtual time")
        mine = swept(self.strategy if strategy is None else strategy)
        grid, scene = read_concurrency(concurrency), None if live else self._scene(scenario, prompts, live=False)
        if len(grid) < 2:  # noqa: PLR2004
            raise ValueError("concurrency: tuning needs two numbers at least")
        asked = _Asked(
            grid, mine, given=strategy is not None, scene=scene, most=n, seed=seed, progress=progress,
            streamed=_streamed(stream, slo_ttft), items=self._items(prompts, template, needed=live), share=share,
            template=template, budget=budget_of(self.target, budget_usd, budget_tokens),
        )  # fmt: skip
        Grid(grid, 1, n, slo, slo_ttft, seed)  # complains about what is not usable
        if live:
            self._agree(self._offer(asked), "tune", [mine], confirm=confirm, budget=asked.budget)
        chosen = LIVE if live else UNDECIDED if scene is None else scene.name if scene.name in SCENARIOS else OWN
        setup = Setup(scenario=chosen, most=min(MOST, grid[-1]), knobs=Knobs.of(mine))
        self.last = tuning = Tuning(self._ways(asked), aims, setup, home=self._home if live else Home())
        return tuning

    def use(self, strategy: Strategy) -> None:
        """Put another strategy in front of the provider, while no job of this lab is at work.

        The lab's cache, further targets and budgets stay. Limits that were learnt are learnt anew.

        Args:
            strategy: What to do about limits, failures and slowness from now on; the lab runs a fresh copy.

        Raises:
            TypeError, ValueError: it is no Strategy, or cannot keep to the lab's budget.
            RuntimeError: jobs have not ended yet; `lab.concurrency` may be set meanwhile.
        """
        if not isinstance(strategy, Strategy):
            raise TypeError(f"strategy must be a Strategy, not {type(strategy).__name__}; try Strategy.default()")
        if left := self._home.roster.left:
            raise RuntimeError(f"{len(left)} of this lab's jobs have not ended: wait for them or cancel them first")
        self._route.take(strategy.fresh())

    # -- inside -------------------------------------------------------------------------------------------

    def _items(self, prompts: Any, template: str | None, *, needed: bool) -> "_Items | None":
        """The job's rows, if they are given."""
        if prompts is None:
            return None
        rows = read_rows(prompts, template=template, **self._parameters(None, None, None, None, None))
        if isinstance(prompts, AsyncIterable) or (rows.total is None and needed):
            raise TypeError("prompts must be a Series, a DataFrame or a list: some of its rows are asked first")
        found = _Items(list(rows.items), rows.index)  # type: ignore[arg-type]  # no AsyncIterable
        if not found.prompts:
            raise ValueError("prompts: there is none")
        return found

    def _ways(self, asked: "_Asked") -> Ways:
        own = [(OWN, "as you gave it" if self._simulator is None else "this lab's simulator")]
        scenarios = [*(own if asked.scene is not None and asked.scene.name not in SCENARIOS else [])]
        return Ways(
            partial(_numbers, asked),
            partial(self._begin_sweep, asked),
            partial(self._use_found, asked),
            partial(self._rest_of, asked),
            None if asked.items is None or not asked.affordable else partial(self._offer, asked),
            (*scenarios, *((name, name.replace("_", " ")) for name in SCENARIOS)),
            None if asked.items is None else len(asked.items.items),
        )

    @property
    def _simulator(self) -> Simulator | None:
        transport = self.target.provider.transport
        return transport if isinstance(transport, Simulator) else None

    def _offer(self, asked: "_Asked") -> Quote:
        """What trying on the real provider would cost.

        Raises:
            ValueError: there are too few rows.
        """
        assert asked.items is not None  # noqa: S101  asked for only if there are some
        grid, most = asked.live
        some = asked.items.prompts[:SAMPLE]
        return quote(self.target, some, times=1).scaled(len(grid) * (most + grid[-1]))

    def _begin_sweep(self, asked: "_Asked", tuning: Tuning, numbers: tuple[int, ...], progress: bool | None) -> Sweep:
        setup = tuning.setup
        strategy = setup.knobs.on(asked.strategy)
        progress = asked.progress if progress is None else progress
        scene, most = asked.scene_of(setup), asked.live[1] if setup.scenario == LIVE else asked.most
        source = asked.cycle if scene is None else self._virtual_source(asked, scene)
        streamed = asked.streamed if asked.streamed is not None else scene is not None and scene.stream
        measured = Grid(numbers, 1, most, None, None, asked.seed)  # by what is answered, whatever the SLO will be
        budget = asked.budget if scene is None else None
        return Sweep(measured, strategy, source, stream=streamed, **self._where(scene, budget, progress))

    def _virtual_source(self, asked: "_Asked", scene: Scenario) -> Source:
        if asked.items is None:
            return self._source(None, None, scene)[0]
        return asked.repeated

    def _use_found(self, asked: "_Asked", tuning: Tuning) -> str:
        """Set what was found; what was set, in words."""
        limit, knobs = tuning.recommendation.concurrency, tuning.setup.knobs
        words = f"lab.concurrency = {limit}"
        if not asked.given and knobs == Knobs.of(self.strategy):
            self.concurrency = limit
            return words
        strategy = knobs.on(asked.strategy)
        limit_of(strategy).resize(limit)
        try:
            self.use(strategy)
        except RuntimeError as error:
            self.concurrency = limit
            return f"{words}; nothing else is set: {error}"
        return f"{words}, {knobs}"

    def _rest_of(self, asked: "_Asked", tuning: Tuning, rest: Rest) -> Job[Frame]:
        assert asked.items is not None  # noqa: S101  a live tuning has rows
        items, index, answers, keeper = asked.items.items, asked.items.index, tuning.answers, None
        if rest.journal is not None:
            told = {"template": asked.template, **self._parameters(None, None, None, None, None)}
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


@dataclass
class _Items:
    """The job's rows."""

    items: list[Item]
    index: pd.Index | None

    @cached_property
    def places(self) -> list[int]:
        """Positions of those that are prompts; the others are errors already."""
        return [position for position, item in enumerate(self.items) if isinstance(item, Prompt)]

    @cached_property
    def prompts(self) -> list[Prompt]:
        """Those that are prompts."""
        return [item for item in self.items if isinstance(item, Prompt)]


@dataclass
class _Asked:
    """What `lab.tune` was asked for."""

    grid: tuple[int, ...]
    strategy: Strategy
    given: bool
    scene: Scenario | None
    most: int | None
    seed: int
    progress: bool | None
    streamed: bool | None
    items: _Items | None
    share: float
    template: str | None
    budget: Spend | None

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise ValueError(f"share must be above 0 and 1 at most, not {self.share!r}")

    @cached_property
    def live(self) -> tuple[tuple[int, ...], int]:
        """The numbers that a share of the rows can measure, and the rows for each.

        Raises:
            ValueError: there are too few.
        """
        rows = 0 if self.items is None else len(self.items.prompts)
        return affordable(self.grid, int(rows * self.share))

    @property
    def affordable(self) -> bool:
        """Whether a share of the rows is enough to try with on the real provider."""
        try:
            return bool(self.live)
        except ValueError:
            return False

    def scene_of(self, setup: Setup) -> Scenario | None:
        """What is simulated; None: nothing, it is live."""
        if setup.scenario == LIVE:
            return None
        return self.scene if setup.scenario == OWN else SCENARIOS[setup.scenario]

    @cached_property
    def cycle(self) -> Source:
        """The rows for the real provider, each once, by their positions."""
        assert self.items is not None  # noqa: S101  asked for only if there are some
        items, places = self.items.items, self.items.places
        order = random.Random(self.seed).sample(places, len(places))  # rows at the top may be of one kind
        return Cycle([(position, items[position]) for position in order])

    @property
    def repeated(self) -> Source:
        """The rows for a simulated provider, again and again, by their labels."""
        assert self.items is not None  # noqa: S101  asked for only if there are some
        items, index = self.items.items, self.items.index
        labels = range(len(items)) if index is None else index
        pairs = list(zip(labels, items, strict=True))
        return lambda _: cycle(pairs)


def _streamed(stream: bool | None, slo_ttft: float | None) -> bool | None:
    if stream is False and slo_ttft is not None:
        raise ValueError("slo_ttft is about the first token: not together with stream=False")
    return True if slo_ttft is not None else stream


def _numbers(asked: _Asked, setup: Setup) -> tuple[int, ...]:
    """The numbers to try first: those asked for as far as wanted, and on in steps of two."""
    if setup.scenario == LIVE:
        return asked.live[0]
    numbers = [each for each in asked.grid if each <= setup.most]
    while (following := 2 * numbers[-1] if numbers else 1) < setup.most:
        numbers.append(following)
    return tuple(dict.fromkeys([*numbers, setup.most]))
