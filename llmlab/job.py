"""A job: a handle on running work.

It may be awaited, asked for its result without `await`, iterated over, cancelled and looked at, from the
lab's loop, from another one, or from none.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Coroutine
from functools import partial
from typing import Any, ClassVar, Literal, TypeVar

from llmlab.events import Bus, Finished, Stopped
from llmlab.feeder import Feeder
from llmlab.frame import Frame, Record
from llmlab.gauges import Gauges, forward, limits_frame
from llmlab.handle import Handle
from llmlab.heap import set_aside
from llmlab.history import History
from llmlab.keeper import Keeper
from llmlab.live import Look
from llmlab.load import Ground, Work
from llmlab.loops import Home
from llmlab.order import Order, Tuner
from llmlab.progress import Progress, say
from llmlab.showing import Showing
from llmlab.types import Outcome

T = TypeVar("T")


MANY_ROWS = 500
"""From so many rows on (or if nobody knows how many) a job is worth sparing the garbage collector for."""


class Job(Handle[T]):
    """A handle on running work: `await` it, call `result()`, iterate over it, cancel it, look at its frame.

    Made by a Lab's verbs. It starts by itself when the event loop next gets its turn, or when it is first
    waited for. A row's failure is data in its row; only the job's own failure raises.
    """

    SPARES_COLLECTOR: ClassVar[bool] = True
    """Whether it makes objects so fast that the garbage collector is best kept out of it."""

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
        super().__init__(name, home)
        self.bus = Bus()
        """The job's events."""
        self._order, self._open, self._finish = order, open_ground, finish
        self._tuner = tuner
        self._feeder: Work | None = None
        self._records: dict[int, Record] = {}
        self.last: Outcome | None = None
        """The outcome of the row settled last, with the whole Reply; the frame has those before."""
        self.progress = Progress(self.bus, order.rows.total)
        """The counts so far."""
        self._history = History(self.bus)
        self._gave_up: str | None = None
        self._broken: str | None = None
        self.bus.subscribe(self._note_stop, Stopped)
        self._gauges: Gauges | None = None
        self._showing = Showing(self.bus, self.progress)
        self._ground: Ground | None = None
        if order.flow is None:  # else it is begun by its reader, who would miss the first pieces on another thread
            self._begin_by_itself()
        else:
            home.roster.add(self)

    def _make(self) -> Coroutine[Any, Any, T]:
        ground = self._ground = self._open()
        keeper = None if self._order.journal is None else self._order.journal(self.bus)
        feeder = self._feeder = self._work(ground, keeper)
        self._gauges = Gauges(self.bus, ground.lines, lambda: feeder.waits_for, self._order.lane)
        return self._main(feeder, keeper, ground)

    def _work(self, ground: Ground, keeper: Keeper | None) -> Work:
        """Make what settles the rows."""
        return Feeder(self._order.load(), ground, self.bus, self._keep, keeper)

    def _settle(self) -> None:
        self._showing.settle()

    def _keep(self, outcome: Outcome) -> None:
        self._records[outcome.index] = self._order.rows.record(outcome)
        self.last = outcome

    async def _main(self, feeder: Work, keeper: Keeper | None, ground: Ground) -> T:
        if keeper is not None:
            await keeper.open(self._journal_failed)
        self._showing.begin(self, self._order.view)
        if self._stopped is not None:
            feeder.stop(self._stopped)
        total = self._order.rows.total
        many = self.SPARES_COLLECTOR and (total is None or total >= MANY_ROWS)
        deaf = [forward(name, line, self.bus) for name, line in ground.lines]
        try:
            with set_aside() if many else contextlib.nullcontext():
                await feeder.go()
        except Exception as failure:
            self._broken = f"{type(failure).__name__}: {failure}"
            raise
        finally:
            for unsubscribe in deaf:
                unsubscribe()
            if self._gauges is not None:
                self._gauges.close()
            self._showing.end()
        return self._finish(self)

    # -- being shown --------------------------------------------------------------------------------------

    def _ipython_display_(self) -> None:
        """Show the job live in a notebook; its repr elsewhere."""
        if not self._showing.display(self):
            print(repr(self))  # noqa: T201  what a terminal shows of a value
        elif self._task is not None and not self._task.done():
            self.on_loop(self._showing.start)

    def look(self) -> Look:
        """What there is to see of the job now, from any thread."""
        state = "waiting" if self._task is None else "running"
        if self._showing.ended is not None:
            state = "failed" if self._broken else "stopped" if self.stopped else "done"
        elif self.paused:
            state = "paused"
        why = self._broken or self.stopped
        notes = [] if why in (None, "cancelled", "interrupted") else [str(why)]
        look = Look(name=self.name, state=state, total=self.progress.now.total, notes=notes)
        if self._gauges is not None:
            look.bound_by = self._gauges.binds_now
            self._showing.live.look(self._gauges.now, self._gauges.own(), look)
        return look

    # -- looking ------------------------------------------------------------------------------------------

    def drain(self, reason: str = "drained") -> None:
        """Take no further rows, from any thread; requests in flight end by themselves, what only waits is cancelled."""
        self.on_loop(lambda: self._feeder.stop(reason, drain=True) if isinstance(self._feeder, Feeder) else None)

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
        """What else happened so far: backing off, breakers that turn, limits; see `llmlab.history.EVENTS`."""
        return self._history.events()

    @property
    def limits(self) -> Frame:
        """The limits over time, and what bound the job; see `llmlab.gauges.LIMITS`."""
        return limits_frame() if self._gauges is None else self._gauges.frame()

    @property
    def bound_by(self) -> str | None:
        """What bound the job for most of its time so far; None before it has begun.

        provider (its speed, or that it is down), rate limit, concurrency, budget, source (of the prompts), journal
        (the disk), paused (by the user) or event loop (this process computes all the time).
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

    def pause(self) -> None:
        """Send nothing more until `resume`, from any thread; requests in flight end by themselves."""
        self.on_loop(partial(self._hold, held=True))

    def resume(self) -> None:
        """Go on after `pause`, from any thread."""
        self.on_loop(partial(self._hold, held=False))

    @property
    def paused(self) -> bool:
        """Whether the user has paused it."""
        return self._order.lane.held

    def _hold(self, *, held: bool) -> None:
        self._order.lane.held = held
        for _, line in () if self._ground is None else self._ground.lines:
            line.pump()

    def cancel(self) -> None:
        """Stop at once, from any thread: rows not yet settled become `cancelled`, awaiting returns the rest."""
        self._home.call_soon(partial(self._stop, "cancelled"))

    def keep_only(self, index: int) -> None:
        """Go on with one row alone, from the job's own loop; the others are cancelled."""
        if self._feeder is not None:
            self._feeder.keep_only(index)

    def drop(self, index: int) -> None:
        """Cancel one row, from any thread."""
        self.on_loop(lambda: None if self._feeder is None else self._feeder.drop(index))

    def _journal_failed(self, error: Exception) -> None:
        say(f"llmlab: the job stops, rows already answered are kept. {error}")
        self._stop(f"the journal failed: {error}")

    @property
    def stopped(self) -> str | None:
        """Why it was stopped: cancelled, interrupted, or in words what it gave up for. None: it was not."""
        return self._stopped or self._gave_up

    def _note_stop(self, event: Stopped) -> None:
        self._gave_up = event.reason

    def _stop(self, reason: str) -> None:
        self._stopped = reason
        if self._feeder is not None:
            self._feeder.stop(reason)

    def __repr__(self) -> str:
        now = self.progress.now
        of = "" if now.total is None else f"/{now.total}"
        state = "done" if self.done else "not started" if self._task is None else "running"
        errors = f", {now.errors} errors" if now.errors else ""
        return f"<Job {self.name}: {now.done}{of} rows, {state}{errors}>"
