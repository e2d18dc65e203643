"""One strategy in front of one provider, and rows sent through it: what comparisons and sweeps are made of."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from llmlab.call import COMMON, Lane
from llmlab.events import Attempted, Bus
from llmlab.frame import Frame, Rows
from llmlab.job import Job
from llmlab.load import Ground
from llmlab.loops import Home
from llmlab.order import Order
from llmlab.prices import Price
from llmlab.providers import connect
from llmlab.providers.endpoint import Provider
from llmlab.scenario import Scenario
from llmlab.sim.direct import DirectSender
from llmlab.sim.transport import Simulator
from llmlab.strategy import Strategy
from llmlab.target import Route, Target
from llmlab.types import Item, Prompt

Open = Callable[[], Route]
"""Makes the way of a trial's rows, on the loop on which it runs."""


@dataclass(frozen=True)
class Work:
    """The rows that each trial gets."""

    items: Sequence[Item]
    """The prompts."""
    index: pd.Index | None
    """Their index; None: 0, 1, 2, …"""
    stream: bool
    """Ask for the answers in pieces."""

    def rows(self) -> Rows:
        """The rows for one trial."""
        return Rows(self.items, self.index, len(self.items))

    @property
    def prompts(self) -> list[Prompt]:
        """Those of the rows that are prompts."""
        return [item for item in self.items if isinstance(item, Prompt)]


@dataclass
class Trial:
    """One run of the rows."""

    labels: dict[str, Any]
    """What tells it from others, by column of the detail frames."""
    rows: Rows
    """What is sent."""
    seed: int
    """Of the jitter, and of the simulated provider."""
    stream: bool = False
    """Ask for the answers in pieces."""
    lane: Lane = COMMON
    """With whom the rows share their place in line, and on whose budgets."""
    job: Job[Frame] | None = None
    """Its job, once it has begun."""
    sent: float = 0.0
    """Requests, one that rows shared in parts of one."""
    throttled: float = 0.0
    """Those of them that were refused because there were too many."""
    wasted: list[Attempted] = field(default_factory=list)
    """Requests that used tokens and brought no answer."""

    async def run(self, route: Route, home: Home, listen: Callable[[Bus], object]) -> Frame:
        """Send the rows and wait for all of them; the frame is that of `run_many`."""
        order = Order(self.rows, stream=self.stream, seed=self.seed, lane=self.lane)
        self.job = Job("trial", order, home=home, open_ground=lambda: _bound(route), finish=lambda job: job.frame)
        self.job.bus.subscribe(self._attempted, Attempted)
        listen(self.job.bus)
        return await self.job

    def _attempted(self, event: Attempted) -> None:
        self.sent += 1 / event.rows
        if event.error is not None:
            self.throttled += event.error.verdict.throttle / event.rows
            if event.usage is not None:
                self.wasted.append(event)

    @property
    def ran_out(self) -> bool:
        """Whether a budget ended it."""
        return self.job is not None and "BudgetSpent" in self.job.progress.now.kinds

    def labelled(self, frame: Frame) -> Frame:
        """A detail frame of it with its labels in front."""
        for place, (name, value) in enumerate(self.labels.items()):
            frame.insert(place, name, value)
        return frame


def _bound(route: Route) -> Ground:
    route.bind()
    return Ground(route.first, route.first.strategy.slots, route.lines)


def simulated(scenario: Scenario, strategy: Strategy, *, seed: int, home: Home) -> tuple[Route, tuple[Simulator, ...]]:
    """A strategy, which is fresh, in front of a scenario's provider; if it has a Fallback, with a second one behind."""
    first, second = scenario.provider(seed), scenario.second(seed)
    target = Target(direct("sim:small", first, scenario.price), strategy, home)
    if strategy.fallback is None:
        return Route(target), (first,)
    backup = Target(direct("sim:backup", second, scenario.price), strategy.below_fallback(spill=False), home)
    return Route(target, (backup,)), (first, second)


def direct(model: str, simulator: Simulator, price: Price | None) -> Provider:
    """A simulated provider without httpx in between."""
    provider = connect(model, transport=simulator, prices={} if price is None else {model.partition(":")[2]: price})
    provider.sender = DirectSender(simulator, provider.url, provider.headers)
    return provider


def detail(trials: Sequence[Trial], frame_of: Callable[[Job[Frame]], Frame], empty: Frame) -> Frame:
    """The frames of all trials that have begun, one below the other; `empty` if there is none."""
    frames = [trial.labelled(frame_of(trial.job)) for trial in trials if trial.job is not None]
    return pd.concat(frames) if frames else empty
