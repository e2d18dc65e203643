"""What every verb of a lab stands on: its targets, its event loop, its settings, and how a job is begun."""

import asyncio
import copy
import itertools
from collections.abc import Callable, Coroutine, Iterable, Mapping
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self, TypeVar

import httpx

from llmlab.call import PRIORITIES, Lane
from llmlab.events import Bus
from llmlab.flow import Flow
from llmlab.frame import Rows, show_as_text
from llmlab.job import Job
from llmlab.keeper import Keeper
from llmlab.load import Ground
from llmlab.logbook import Journal
from llmlab.loops import Home
from llmlab.order import Order
from llmlab.policies.cache import Cache
from llmlab.policies.pack import Pack
from llmlab.pricelist import PriceBook
from llmlab.prices import Price
from llmlab.progress import say
from llmlab.rules.adapt import Controller
from llmlab.rules.adaptive import Adaptive
from llmlab.rules.slots import Slots
from llmlab.rules.spend import Spend
from llmlab.settings import HasTarget, budget_of, check_priority, limit_of, live_strategy, open_route
from llmlab.strategy import Strategy
from llmlab.target import Target
from llmlab.typed import Typed
from llmlab.types import Prompt
from llmlab.views import Maker

T = TypeVar("T")
J = TypeVar("J", bound=Job[Any])

_told = False


class Core:
    """A lab without its verbs; the arguments are described at `llmlab.Lab`."""

    def __init__(
        self,
        model: str = "sim:small",
        *,
        base_url: str | None = None,
        api_key: str | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
        concurrency: int | Controller | Literal["auto"] | None = None,
        rpm: float | None = None,
        tpm: float | None = None,
        strategy: Strategy | None = None,
        fallback: str | HasTarget | Iterable[str | HasTarget] = (),
        cache: str | Path | Cache | None = None,
        budget_usd: float | None = None,
        budget_tokens: int | None = None,
        queue: int | None = None,
        system: str | None = None,
        temperature: float | None = None,
        max_tokens: int | None = None,
        extra: Mapping[str, Any] | None = None,
        prices: Mapping[str, Price | tuple[float, ...]] | None = None,
        loop: Literal["caller", "thread"] = "caller",
        progress: bool | None = None,
        seed: int | None = None,
    ) -> None:
        self._defaults = {
            "system": system,
            "temperature": temperature,
            "max_tokens": max_tokens,
            "extra": extra,
        }
        Prompt.of("", **self._defaults)  # type: ignore[arg-type]  # complains about what cannot be sent
        if seed is not None and (isinstance(seed, bool) or not isinstance(seed, int)):
            raise TypeError(f"seed must be a whole number, not {seed!r}")
        if loop not in ("caller", "thread"):
            raise ValueError(f"loop must be 'caller' or 'thread', not {loop!r}")
        live = live_strategy(strategy, concurrency, rpm=rpm, tpm=tpm, queue=queue)
        self._home = Home(loop)
        self._route = open_route(
            model,
            live,
            home=self._home,
            base_url=base_url,
            api_key=api_key,
            transport=transport,
            prices=prices,
            seed=seed,
            cache=cache,
            fallback=fallback,
            spill=strategy is None,
        )
        self._budget = budget_of(self.target, budget_usd, budget_tokens)
        self.target.limit_spending(self._budget)
        self._is_member = False
        self._singles = {priority: self._lane(priority, None, patient=False) for priority in PRIORITIES}
        self.last: Job[Any] | Any | None = None
        """The Job or Experiment started last: after an interrupted cell, `lab.last.frame` has what is finished."""
        self._watchers: list[Callable[[Job[Any]], object]] = []
        self._places = itertools.count()
        self._progress, self._seed = progress, seed
        self.target.provider.prices.get(self.target.provider.model)  # the list is read now, not while rows wait
        show_as_text()
        if self.target.provider.name == "sim":
            _tell_once()

    @property
    def target(self) -> Target:
        """The lab's own provider and limits: what other labs fall back to."""
        return self._route.first

    @property
    def strategy(self) -> Strategy:
        """The live stack; its state belongs to this lab."""
        return self.target.strategy

    # -- settings -----------------------------------------------------------------------------------------

    @property
    def concurrency(self) -> int | None:
        """Requests in flight at most; may be set while jobs run, from any thread. None: not limited.

        With a controller at work a number pins it, and "auto" gives it back to the controller.
        """
        return None if self.strategy.slots is None else self.strategy.slots.limit

    @concurrency.setter
    def concurrency(self, limit: int | Literal["auto"]) -> None:
        slots = limit_of(self.strategy)
        if limit == "auto":
            if not isinstance(slots, Adaptive):
                raise ValueError("this lab has no controller to go back to: make it with Lab(concurrency='auto')")
            self._home.call_soon(slots.release)
            return
        Slots(limit)  # complains here, not on the loop
        self._home.call_soon(partial(slots.resize, limit))

    @property
    def model(self) -> str:
        """As given to Lab: "provider:model"."""
        return f"{self.target.provider.name}:{self.target.provider.model}"

    def wait_for(self, main: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Run `main()` on the lab's loop and wait for it without `await`, as `job.result()` does."""
        return self._home.run(main)

    # -- company ------------------------------------------------------------------------------------------

    def watch(self, watcher: Callable[[Job[Any]], object]) -> Callable[[], None]:
        """Call `watcher(job)` with each job from now on, before anything of it is sent, also those of `member` labs.

        For who counts, logs or traces: `job.bus.subscribe(listener, *event_types)` hears what happens to it. Provider
        batches (`submit_batch`) are no jobs.

        Returns:
            A function that ends it.
        """
        self._watchers.append(watcher)
        return lambda: self._watchers.remove(watcher)

    def member(self) -> Self:
        """The same lab, for one of several who share it: targets, limits, cache and budget are one.

        Members take turns at the lab, evenly by tokens, however many jobs each of them has. Closing one closes all.
        """
        member = copy.copy(self)
        member._singles = {  # noqa: SLF001  one of us
            priority: Lane(priority, lane.patient, lane.budgets) for priority, lane in self._singles.items()
        }
        member._is_member = True  # noqa: SLF001
        return member

    # -- life ---------------------------------------------------------------------------------------------

    async def drain(self, *, timeout: float | None = None) -> None:  # noqa: ASYNC109  jobs have an end of their own
        """Take nothing more, and return when all that was begun has ended.

        From now on every verb raises LabClosed. A paused job, and a stream that nobody reads on, are waited for, too; a
        batch at the provider only until it is submitted: `attach_batch` of another lab takes it up again.

        Args:
            timeout: Seconds after which jobs still at work are stopped. None: never.
        """
        self._home.roster.close()
        await self._at_home(partial(self._settle, cancel=False, patience=timeout))

    async def aclose(self, *, cancel: bool = False, timeout: float | None = None) -> None:  # noqa: ASYNC109  as `drain`
        """Take nothing more, wait for what was begun, and close the connections.

        `async with Lab(…) as lab` does it: it waits, or stops what is at work if its body fails. Not needed at the end
        of a program for the connections' sake.

        Args:
            cancel: Stop what is at work, instead of waiting for it: whoever awaits many rows gets those answered so
                far, the others `cancelled`; whoever awaits one answer gets LabClosed.
            timeout: Seconds after which jobs still at work are stopped. None: never.
        """
        self._home.roster.close()
        await self._at_home(partial(self._close, cancel=cancel, patience=timeout))

    def close(self, *, cancel: bool = False, timeout: float | None = None) -> None:
        """What `aclose` does, without `await`: in scripts, in threads. `with Lab(…) as lab` does it."""
        self._home.roster.close()
        self._home.close(partial(self._close, cancel=cancel, patience=timeout))

    async def _at_home(self, main: Callable[[], Coroutine[Any, Any, None]]) -> None:
        home = self._home
        if home.loop is None or home.loop is asyncio.get_running_loop():
            await main()
        else:
            await asyncio.to_thread(home.close, main)

    async def _settle(self, *, cancel: bool, patience: float | None) -> None:
        roster = self._home.roster
        paused = 0 if cancel else sum(job.paused for job in roster.left)
        if paused:
            say(f"llmlab: the lab waits for {paused} paused job{'s' * (paused > 1)}: resume or cancel before it closes")
        await roster.settle(cancel=cancel, patience=patience)

    async def _close(self, *, cancel: bool, patience: float | None) -> None:
        await self._settle(cancel=cancel, patience=patience)
        await self._route.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose(cancel=error is not None)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close(cancel=error is not None)

    def __repr__(self) -> str:
        url = self.target.provider.shown_url
        return f"{type(self).__name__}({self.model!r}, base_url={url!r}, concurrency={self.concurrency})"

    # -- inside -------------------------------------------------------------------------------------------

    def _parameters(
        self,
        model: str | None,
        system: str | None,
        temperature: float | None,
        max_tokens: int | None,
        extra: Mapping[str, Any] | None,
    ) -> dict[str, Any]:
        given = {"system": system, "temperature": temperature, "max_tokens": max_tokens, "extra": extra}
        merged = {**self._defaults, **{name: value for name, value in given.items() if value is not None}}
        Prompt.of("", model=model, **merged)  # type: ignore[arg-type]  # complains before any row is read
        return {"model": model, **merged}

    def _keeper(
        self,
        journal: Journal,
        settings: dict[str, Any],
        reader: Typed | None = None,
        whose: Callable[[int], tuple[str, str]] | None = None,
    ) -> Callable[[Bus], Keeper]:
        provider = self.target.provider
        if reader is not None:
            settings["schema"] = reader.settings
        named = {"provider": provider.name, **settings, "model": settings["model"] or provider.model}
        return lambda bus: Keeper(
            journal,
            provider=provider.name,
            model=provider.model,
            settings=named,
            on_trouble=_tell_trouble,
            bus=bus,
            reader=reader,
            whose=whose,
        )

    def _job(
        self,
        name: str,
        rows: Rows,
        *,
        stream: bool,
        view: Maker | None = None,
        finish: Any,
        journal: Callable[[Bus], Keeper] | None = None,
        lane: Lane,
        flow: Flow | None = None,
        open_ground: Callable[[], Ground] | None = None,
    ) -> Job[Any]:
        self._tell_price()
        order = Order(
            rows, stream=stream, seed=self._seed, view=view, places=self._places, journal=journal, lane=lane, flow=flow
        )
        opening = open_ground or self._open
        return self._known(Job(name, order, home=self._home, open_ground=opening, finish=finish, tuner=self))

    def _known(self, job: J) -> J:
        self.last = job
        for watcher in self._watchers:
            watcher(job)
        return job

    def _tell_price(self) -> None:
        """Say once that a model's price is not known."""
        prices = self.target.provider.prices
        if isinstance(prices, PriceBook) and prices.provider is not None and (unknown := prices.tell_unknown()):
            say(f"llmlab: {unknown}")

    def _open(self, pack: Pack | None = None) -> Ground:
        """Called on the loop on which a job starts; `pack` is the job's own, instead of the strategy's."""
        self._route.bind()
        handler = self.target if pack is None else self.target.by(self.strategy.with_pack(pack))
        packed = self.strategy.pack if pack is None else pack
        return Ground(handler, self.strategy.slots, self._route.lines, 1 if packed is None else packed.rows)

    def _single(self, priority: int) -> Lane:
        """A lane for one call, which can be paused alone."""
        shared = self._singles[priority]
        return Lane(priority, shared.patient, shared.budgets, among=shared)

    def _lane(self, priority: int, budget: Spend | None, *, patient: bool) -> Lane:
        check_priority(priority)
        among = self._singles[priority] if self._is_member else None
        return Lane(priority, patient, tuple(each for each in (self._budget, budget) if each is not None), among=among)


def _tell_trouble(trouble: str | None) -> None:
    say(f"llmlab: {trouble}" if trouble else "llmlab: the journal can be written again")


def _tell_once() -> None:
    global _told  # noqa: PLW0603  once per process
    if not _told:
        _told = True
        say("llmlab: talking to the built-in simulated provider (no key, no cost); "
            'for a real one write llmlab.Lab("openai:MODEL") or "anthropic:MODEL"')  # fmt: skip
