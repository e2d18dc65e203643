"""`lab.tune`: finds the concurrency for a job by trying, and goes on with the job at what was found.

in virtual time     a geometric grid of numbers, then a few more around what that speaks for
on a real provider  a share of the job's own rows, about 5%, is spent on it; their answers are kept, and `rest`
asks the other rows at the setting found

What is aimed at (elasticity, SLO) may be changed at any time: it is judged by the points that are there. What is tried
(scenario, strategy, greatest number) may be changed, too, and is then tried anew. Whoever awaits it gets what holds in
the end.
"""

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, replace
from typing import Any, Literal

import pandas as pd

from llmlab.closer import closer
from llmlab.fits import Fit, fit
from llmlab.frame import Frame
from llmlab.handle import Handle
from llmlab.job import Job
from llmlab.knobs import Knobs
from llmlab.loops import Home, running_loop
from llmlab.quote import Quote
from llmlab.recommend import ATTAINMENT, Recommendation, check_aims, recommend
from llmlab.rest import Rest
from llmlab.showing import Shown
from llmlab.sweep import Sweep

COARSE = (1, 2, 4, 8, 16, 32, 64, 128)
"""Numbers tried first, if nothing else is said."""
LIVE = "live"
"""Stands for the real provider among the scenarios."""
UNDECIDED = ""
"""Stands for: nobody has said yet what is to be tried."""
MOST = 1024
"""Greatest number that may be tried."""
_ANEW = "tried anew with other settings"


@dataclass(frozen=True, kw_only=True)
class Aims:
    """What is aimed at."""

    elasticity: float = 0.2
    """1% more in flight is to buy at least so many percent more throughput, between 0 and 1."""
    attainment: float = ATTAINMENT
    """Share of the rows that must keep the SLO."""
    slo: float | None = None
    """Seconds that a good answer may take; None: any."""
    slo_ttft: float | None = None
    """Seconds that its first token may take; None: any."""

    def __post_init__(self) -> None:
        check_aims(self.elasticity, self.attainment)


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What is tried."""

    scenario: str
    """A name, LIVE or UNDECIDED."""
    most: int
    """Greatest number tried."""
    knobs: Knobs
    """Of the strategy in front of the provider."""

    def __post_init__(self) -> None:
        if not 2 <= self.most <= MOST:  # noqa: PLR2004  one number is no choice
            raise ValueError(f"the greatest number tried must be from 2 to {MOST}, not {self.most!r}")


@dataclass(frozen=True)
class Ways:
    """What a lab does for its Tuning."""

    grid: Callable[[Setup], tuple[int, ...]]
    """The numbers to try first."""
    begin: Callable[["Tuning", tuple[int, ...], bool | None], Sweep]
    """Begins a sweep over them, with a line of progress or without."""
    use: Callable[["Tuning"], str]
    """Sets what is recommended on the lab; what was set, in words."""
    rest: Callable[["Tuning", Rest], Job[Frame]]
    """Begins the job of the rows that have no answer yet."""
    offer: Callable[[], Quote] | None
    """What trying on the real provider would cost. None: there are no rows to try with."""
    scenarios: tuple[tuple[str, str], ...]
    """What can be simulated, with how it is called for people."""
    rows: int | None
    """How many the job has, as far as known."""


class Tuning(Handle[Recommendation]):
    """The job of `lab.tune`: `await` it, or call its `result()`, for a Recommendation; display it to turn the knobs.

    Args:
        ways: What the lab does for it.
        aims: What is aimed at.
        setup: What is tried.
        home: The event loop it lives on.
    """

    def __init__(self, ways: Ways, aims: Aims, setup: Setup, *, home: Home) -> None:
        super().__init__("tune", home)
        self.ways = ways
        """What the lab does for it."""
        self.aims = aims
        """What is aimed at; may be replaced at any time."""
        self.setup = setup
        """What is tried; see `change`."""
        self.shown = Shown()
        """Its view, if it has one."""
        self.before: Frame | None = None
        """What was measured with the settings before these."""
        self.used: str | None = None
        """What `use` has set last, in words."""
        self._sweeps: list[Sweep] = []
        self._spent: list[Sweep] = []  # on the real provider: their answers are kept, whatever is tried afterwards
        self._next: Setup | None = None
        self._framed: tuple[Any, Frame] | None = None
        self._fitted: tuple[Any, Fit] | None = None
        if setup.scenario != UNDECIDED:
            self._begin_by_itself()

    # -- looking ------------------------------------------------------------------------------------------

    @property
    def frame(self) -> Frame:
        """What was measured so far; see `llmlab.sweep.SWEPT`."""
        sweeps, aims = tuple(self._sweeps), self.aims
        key = (tuple((sweep, sweep.measured) for sweep in sweeps), aims.slo, aims.slo_ttft)
        if self._framed is None or self._framed[0] != key:
            self._framed = key, _joined([sweep.under(slo=aims.slo, slo_ttft=aims.slo_ttft) for sweep in sweeps])
        return self._framed[1].copy()

    @property
    def rows(self) -> Frame:
        """The rows sent for it; see `Sweep.rows`. On a real provider its index is the input rows' positions."""
        return _rows(self._sweeps)

    @property
    def answers(self) -> Frame:
        """Those sent to the real provider, by the input rows' positions, whatever was tried afterwards."""
        return _rows(self._spent)

    @property
    def fit(self) -> Fit | None:
        """The curve through the throughput measured so far; None: fewer than two numbers were measured."""
        points = tuple((sweep, sweep.measured) for sweep in self._sweeps)
        if self._fitted is None or self._fitted[0] != points:
            frame = self.frame
            if frame.empty or frame.loc[frame["rows_per_s"] > 0, "in_flight"].nunique() < 2:  # noqa: PLR2004
                return None
            self._fitted = points, fit(frame)
        return self._fitted[1]

    @property
    def recommendation(self) -> Recommendation:
        """What the points measured so far speak for, by what is aimed at now.

        Raises:
            ValueError: there is none yet.
        """
        frame = self.frame
        if frame.empty:
            raise ValueError("nothing was measured yet")
        aims = self.aims
        return recommend(frame, elasticity=aims.elasticity, attainment=aims.attainment, fitted=self.fit)

    @property
    def state(self) -> Literal["undecided", "waiting", "running", "done", "stopped", "failed"]:
        """What it is about."""
        if self._task is None:
            return "undecided" if self.setup.scenario == UNDECIDED else "waiting"
        if not self._task.done():
            return "running"
        if self._stopped is not None:
            return "stopped"
        return "done" if self.trouble is None else "failed"

    @property
    def wanted(self) -> Setup:
        """What is tried, or is to be tried next."""
        return self._next or self.setup

    @property
    def sweeps(self) -> tuple[Sweep, ...]:
        """What was begun with the present settings."""
        return tuple(self._sweeps)

    @property
    def trouble(self) -> str | None:
        """Why there is no recommendation though it is over, in words."""
        over = self._task is not None and self._task.done() and not self._task.cancelled()
        error = self._task.exception() if over and self._task is not None else None
        return None if error is None else str(error)

    @property
    def at_work_on(self) -> int | None:
        """The number that is being tried now."""
        return self._sweeps[-1].at_work_on if self._sweeps and self.state == "running" else None

    # -- doing --------------------------------------------------------------------------------------------

    def change(self, **settings: Any) -> None:
        """Try anew with other settings, on its own loop; what was begun is given up.

        Args:
            settings: Fields of `Setup`.

        Raises:
            TypeError, ValueError: they are not usable.
        """
        setup = replace(self.wanted, **settings)
        if setup == self.wanted and self.state == "running":
            return
        self._next, self._stopped = setup, None
        if setup.scenario == UNDECIDED:
            self.setup, self._next = setup, None  # a knob was turned before it is chosen what to try
        elif self.state == "running":
            self._stop_sweeps(_ANEW)
        elif self._task is None:
            self._start()
        else:
            self._task = asyncio.get_running_loop().create_task(self._main(), name="llmlab tune")

    def use(self) -> Recommendation:
        """Set what is recommended on the lab: its concurrency, and the strategy, if another one than its own was tried.

        While jobs of the lab are at work only the concurrency is set. `used` says what was.

        Returns:
            The recommendation.
        """
        found = self.recommendation
        self.used = self.ways.use(self)
        return found

    def rest(self, **settings: Any) -> Job[Frame]:
        """Use the recommendation, and ask the rows that tuning has not answered yet.

        Args:
            settings: `stream`, `journal`, `durability`, `budget_usd`, `budget_tokens`, `priority` and `progress`, as
                `lab.run_many` takes them. The journal is the rest's own: tuning's answers are in the result only.

        Returns:
            A Job whose result is that of `run_many` for all rows, those answered while tuning included.

        Raises:
            TypeError, ValueError: a setting is not usable, or no rows of the user's own were tuned on.
        """
        if not self._spent:
            raise ValueError("there is no rest: this was tuned on a simulated provider; use() sets what was found")
        how = Rest(**settings)
        self.use()
        return self.ways.rest(self, how)

    def _ipython_display_(self) -> None:
        """Show it live in a notebook; its repr elsewhere."""
        if self._home.loop is None and not self._home.elsewhere and running_loop() is not None:
            self._home.bind()  # what a knob says may come on another thread, and must find the way
        self.shown.reopen()
        if not self.shown.display(self):
            print(repr(self))  # noqa: T201  what a terminal shows of a value
        else:
            self._home.call_soon(self.shown.start)

    def close(self) -> None:
        """Put a still picture in its view's place, on its own loop."""
        self.shown.end()

    # -- inside -------------------------------------------------------------------------------------------

    def _make(self) -> Coroutine[Any, Any, Recommendation]:
        if self.wanted.scenario == UNDECIDED:
            raise ValueError(
                "this lab's provider is a real one: tune(prompts, live=True) sends some of them to it, scenario=… "
                "simulates one"
            )
        self._home.bind()
        return self._main()

    async def _main(self) -> Recommendation:
        while True:
            if self._next is not None:
                self.before = self.frame if self._sweeps else self.before
                self.setup, self._next, self._sweeps, self.used = self._next, None, [], None
            await self._measure()
            if self._next is None:
                return self.recommendation

    async def _measure(self) -> None:
        await self._sweep(self.ways.grid(self.setup))
        if self._stopped is None and self._next is None and self.setup.scenario != LIVE:
            numbers = closer(self.frame, self.recommendation, most=self.setup.most, attainment=self.aims.attainment)
            if numbers:
                await self._sweep(numbers)

    async def _sweep(self, grid: tuple[int, ...]) -> None:
        sweep = self.ways.begin(self, grid, False if self.shown.on else None)
        self._sweeps.append(sweep)
        if self.setup.scenario == LIVE:
            self._spent.append(sweep)
        await sweep

    def _stop(self, reason: str) -> None:
        self._stopped = self._stopped or reason
        self._stop_sweeps(reason)

    def _stop_sweeps(self, reason: str) -> None:
        for sweep in self._sweeps:
            sweep.halt(reason)

    def _settle(self) -> None:
        if self.done:
            self._home.call_soon(self.shown.end)

    def __repr__(self) -> str:
        found = f", {self.recommendation}" if len(self.frame) else ""
        return f"<Tuning: {len(self.frame)} points, {self.state}{found}>"


def _rows(sweeps: list[Sweep]) -> Frame:
    frames = [sweep.rows for sweep in sweeps]
    return pd.concat(frames) if frames else pd.DataFrame()


def _joined(frames: list[Frame]) -> Frame:
    known = [frame for frame in frames if len(frame)]
    if not known:
        return frames[0] if frames else pd.DataFrame()
    # the same number may be in both sweeps: they are repeats of each other
    out = pd.concat(known, ignore_index=True).sort_values("concurrency", kind="stable", ignore_index=True)
    out["repeat"] = out.groupby("concurrency").cumcount() + 1
    return out
