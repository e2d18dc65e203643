"""A job: a handle on running work.

It may be awaited, asked for its result without `await`, iterated over, cancelled and looked at, from the
lab's loop, from another one, or from none.
"""

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Generic, Literal, Protocol, TypeVar

from llmlab.call import COMMON, Lane
from llmlab.events import Bus, Finished, Told
from llmlab.feeder import Feeder
from llmlab.flow import Flow
from llmlab.frame import Frame, Record, Rows, record
from llmlab.gauges import Gauges, limits_frame
from llmlab.heap import set_aside
from llmlab.history import History
from llmlab.keeper import Keeper
from llmlab.load import Ground, Load
from llmlab.loops import Home, running_loop, sigint_guard
from llmlab.policies.admit import Admit
from llmlab.progress import Progress, TextBar, say
from llmlab.rules.adapt import Decision
from llmlab.rules.breaker import Transition
from llmlab.rules.rate import Learned, Pause
from llmlab.types import Outcome

T = TypeVar("T")


class Tuner(Protocol):
    """What has a concurrency to be read and set: a Lab."""

    @property
    def concurrency(self) -> int | None:
        """Requests in flight at most."""
        ...

    @concurrency.setter
    def concurrency(self, limit: int | Literal["auto"]) -> None: ...


MANY_ROWS = 500
"""From so many rows on (or if nobody knows how many) a job is worth sparing the garbage collector for."""


@dataclass
class Order:
    """What a job is to do."""

    rows: Rows
    """The input."""
    stream: bool = False
    """Ask for the answers in pieces."""
    seed: int | None = None
    """Seed of the job's randomness. None: from the system."""
    bar: bool = False
    """Show a line of progress."""
    places: Iterator[int] = field(default_factory=itertools.count)
    """Places in the lab's line, one for each row taken."""
    journal: Callable[[Bus], Keeper] | None = None
    """Makes the job's hold on its journal, if it has one."""
    lane: Lane = COMMON
    """With whom its rows share their place in the lab's line."""
    flow: Flow | None = None
    """Holds the answers back while their reader is behind."""

    def load(self) -> Load:
        """The rows for a feeder."""
        rows = self.rows
        return Load(rows.items, rows.total, self.places, self.stream, self.seed, self.flow, self.lane)


class Job(Generic[T]):
    """A handle on running work: `await` it, call `result()`, iterate over it, cancel it, look at its frame.

    Made by a Lab's verbs. It starts by itself when the event loop next gets its turn, or when it is first
    waited for. A row's failure is data in its row; only the job's own failure raises.
    """

    def __init__(
        self,
        name: str,
        order: Order,
        *,
        home: Home,
        open_ground: Callable[[], Ground],
        finish: "Callable[[Job[T]], T]",
        tuner: Tuner | None = None,
    ) -> None:
        self.name = name
        self.bus = Bus()
        """The job's events."""
        self._order, self._home, self._open, self._finish = order, home, open_ground, finish
        self._tuner = tuner
        self._feeder: Feeder | None = None
        self._records: dict[int, Record] = {}
        self.last: Outcome | None = None
        """The outcome of the row settled last, with the whole Reply; the frame has those before."""
        self._task: asyncio.Task[T] | None = None
        self._cancelled: str | None = None
        self._progress = Progress(self.bus, order.rows.total)
        self._history = History(self.bus)
        self._gauges: Gauges | None = None
        if home.elsewhere:
            home.call_soon(self._start)
        elif (loop := running_loop()) is not None:
            # Not at once: `lab.run_many(…).result()` in a notebook must find the lab unbound to the kernel's loop.
            self._starter: asyncio.Handle = loop.call_soon(self._start_by_itself)

    # -- waiting ------------------------------------------------------------------------------------------

    def __await__(self) -> Generator[Any, None, T]:
        return self.wait().__await__()

    async def wait(self) -> T:
        """What `await job` does, as a coroutine."""
        if self._home.elsewhere:
            loop = self._home.loop
            assert loop is not None  # noqa: S101  a home elsewhere has a loop
            waiting = asyncio.run_coroutine_threadsafe(self._join(), loop)
            with sigint_guard(partial(self._stop, "interrupted"), waiting.cancel, loop=loop):
                return await asyncio.wrap_future(waiting)
        return await self._join()

    def result(self) -> T:
        """Wait without `await`: in scripts, in notebooks, in threads. Returns what awaiting returns."""
        if self._task is None and hasattr(self, "_starter"):
            self._starter.cancel()
        try:
            return self._home.run(self._join, stop=partial(self._stop, "interrupted"))
        except asyncio.CancelledError:
            if self._cancelled == "interrupted":  # of a job that has nothing to give back, as `run`
                raise KeyboardInterrupt from None
            raise

    async def _join(self) -> T:
        task = self._start()
        with sigint_guard(partial(self._stop, "interrupted"), task.cancel):
            try:
                return await asyncio.shield(task)
            except asyncio.CancelledError:
                if not task.done():  # whoever waited was cancelled: nothing goes on behind their back
                    self._stop("cancelled")
                    await asyncio.wait([task])
                    _ = task.cancelled() or task.exception()  # seen: nobody else will ask
                raise

    def _start(self) -> asyncio.Task[T]:
        if self._task is None:
            ground = self._open()
            keeper = None if self._order.journal is None else self._order.journal(self.bus)
            self._feeder = Feeder(self._order.load(), ground, self.bus, self._keep, keeper)
            feeder = self._feeder
            self._gauges = Gauges(self.bus, ground.lines, lambda: feeder.waits_for)
            main = self._main(feeder, keeper, ground)
            self._task = asyncio.get_running_loop().create_task(main, name=f"llmlab {self.name}")
        return self._task

    def _start_by_itself(self) -> None:
        with contextlib.suppress(RuntimeError):  # the lab is at work on another loop: whoever waits is told
            self._start()

    def _keep(self, outcome: Outcome) -> None:
        self._records[outcome.index] = record(outcome)
        self.last = outcome

    async def _main(self, feeder: Feeder, keeper: Keeper | None, ground: Ground) -> T:
        if keeper is not None:
            await keeper.open(self._journal_failed)
        bar = TextBar(self._progress) if self._order.bar else None
        ticker = asyncio.get_running_loop().create_task(bar.run()) if bar else None
        if self._cancelled is not None:
            feeder.stop(self._cancelled)
        total = self._order.rows.total
        deaf = [_forward(name, line, self.bus) for name, line in ground.lines]
        try:
            with set_aside() if total is None or total >= MANY_ROWS else contextlib.nullcontext():
                await feeder.go()
        finally:
            for unsubscribe in deaf:
                unsubscribe()
            if self._gauges is not None:
                self._gauges.sample()
            if ticker is not None and bar is not None:
                ticker.cancel()
                bar.close()
        return self._finish(self)

    # -- looking ------------------------------------------------------------------------------------------

    @property
    def done(self) -> bool:
        """Whether all rows are settled."""
        return self._task is not None and self._task.done()

    @property
    def frame(self) -> Frame:
        """The rows settled so far, in input order, with the input's index; see `llmlab.frame.COLUMNS`."""
        return self._order.rows.frame(self._records.copy())  # a copy: the job may run in another thread

    @property
    def attempts(self) -> Frame:
        """The requests that have ended so far, one row each, failed ones too; see `llmlab.history.ATTEMPTS`."""
        return self._history.attempts()

    @property
    def events(self) -> Frame:
        """What happened so far besides: backing off, breakers that turn, limits decided on; see `llmlab.history.EVENTS`."""
        return self._history.events()

    @property
    def limits(self) -> Frame:
        """The limits over time, and what bound the job; see `llmlab.gauges.LIMITS`."""
        return limits_frame() if self._gauges is None else self._gauges.frame()

    @property
    def bound_by(self) -> str | None:
        """What bound the job for most of its time so far; None before it has begun.

        provider (its speed, or that it is down), rate limit, concurrency, budget, source (of the prompts), journal
        (the disk) or event loop (this process computes all the time).
        """
        return None if self._gauges is None else self._gauges.bound_by

    @property
    def concurrency(self) -> int | None:
        """Requests in flight at most; None: not limited. It is the lab's, whose jobs share it.

        May be set while the job runs, from any thread: a number, or "auto" to give it back to the lab's controller.
        """
        return None if self._tuner is None else self._tuner.concurrency

    @concurrency.setter
    def concurrency(self, limit: int | Literal["auto"]) -> None:
        if self._tuner is None:
            raise ValueError("this job has no lab whose concurrency could be set")
        self._tuner.concurrency = limit

    def __aiter__(self) -> AsyncIterator[Outcome]:
        """Outcomes as they come, in the order in which rows are settled, from the first time it is asked for one.

        Leaving the loop early cancels the job.
        """
        return self._as_settled()

    async def _as_settled(self) -> AsyncIterator[Outcome]:
        queue: asyncio.Queue[Outcome | None] = asyncio.Queue()
        loop = asyncio.get_running_loop()

        def put(item: Outcome | None) -> None:
            loop.call_soon_threadsafe(queue.put_nowait, item)

        unsubscribe = self.bus.subscribe(lambda event: put(event.outcome), Finished)
        waiting = asyncio.ensure_future(self.wait())
        waiting.add_done_callback(lambda _: put(None))
        try:
            while (outcome := await queue.get()) is not None:
                yield outcome
            waiting.result()
        finally:
            unsubscribe()
            if not waiting.done():
                waiting.cancel()

    # -- stopping -----------------------------------------------------------------------------------------

    def cancel(self) -> None:
        """Stop at once, from any thread: rows not yet settled become `cancelled`, awaiting returns the rest."""
        self._home.call_soon(partial(self._stop, "cancelled"))

    @property
    def stopped(self) -> str | None:
        """Why the job was stopped: cancelled, interrupted or an error in words. None: it was not."""
        return self._cancelled

    def keep_only(self, index: int) -> None:
        """Go on with one row alone, from the job's own loop; the others are cancelled."""
        if self._feeder is not None:
            self._feeder.keep_only(index)

    def drop(self, index: int) -> None:
        """Cancel one row, from any thread."""
        self.on_loop(lambda: None if self._feeder is None else self._feeder.drop(index))

    def on_loop(self, callback: Callable[[], object]) -> None:
        """Run `callback` on the job's event loop, from any thread."""
        self._home.call_soon(callback)

    def _journal_failed(self, error: Exception) -> None:
        say(f"llmlab: the job stops, rows already answered are kept. {error}")
        self._stop(f"the journal failed: {error}")

    def _stop(self, reason: str) -> None:
        self._cancelled = reason
        if self._feeder is not None:
            self._feeder.stop(reason)

    def __repr__(self) -> str:
        now = self._progress.now
        of = "" if now.total is None else f"/{now.total}"
        state = "done" if self.done else "not started" if self._task is None else "running"
        errors = f", {now.errors} errors" if now.errors else ""
        return f"<Job {self.name}: {now.done}{of} rows, {state}{errors}>"


def _forward(name: str, line: Admit, bus: Bus) -> Callable[[], None]:
    """Pass on what a target's rules tell to a job's listeners; returns a function that ends it."""
    return line.bus.subscribe(lambda what: bus.emit(Told(name, what)), Transition, Decision, Pause, Learned)
