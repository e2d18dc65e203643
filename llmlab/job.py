"""A job: a handle on running work, and the feeder that takes rows as there is room for them.

Rows are taken from the source one by one. The feeder keeps the lab's line filled and stops taking when
enough rows stand in it: a generator of a million rows never becomes a million tasks. A row that backs off
stands in no line and holds no slot, so others are taken meanwhile, up to a bound.
"""

import asyncio
import contextlib
import itertools
import random
from collections.abc import AsyncIterable, AsyncIterator, Callable, Generator, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Generic, TypeVar

from llmlab.call import Call, Handler
from llmlab.clock import wall_offset
from llmlab.errors import LLMError
from llmlab.events import Admitted, Attempted, Bus, Finished, Stopped
from llmlab.frame import Frame, Item, Record, Rows, record
from llmlab.heap import set_aside
from llmlab.loops import Home, running_loop, sigint_guard
from llmlab.progress import Progress, TextBar, say
from llmlab.strategy import Strategy
from llmlab.types import Outcome, Prompt, Status

T = TypeVar("T")

LIVE_ROWS = 1000
"""Rows alive at most (or four times the concurrency, if that is more), those that back off included."""
MANY_ROWS = 500
"""From so many rows on (or if nobody knows how many) a job is worth sparing the garbage collector for."""
LONG_ANSWER = 21_333
"""Tokens from which on an answer is streamed even if nobody asked for pieces: at 128,000 tokens an hour it takes
more than ten minutes, and boxes on the way cut connections that are silent for so long (as Anthropic's SDK reckons)."""
BREATH = 64
"""Rows taken from a source in one go before the loop may do something else."""


@dataclass
class Ground:
    """What a job runs on, handed over by the lab when the job starts on the lab's loop."""

    strategy: Strategy
    """The live stack, shared with the lab's other jobs."""
    handler: Handler
    """The stack around the provider."""


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


class Run:
    """One job's rows on their way: takes them, settles them, can be stopped. Lives on the lab's loop."""

    def __init__(self, order: Order, ground: Ground, bus: Bus) -> None:
        self.order, self.ground, self.bus = order, ground, bus
        self.records: dict[int, Record] = {}
        self.last: Outcome | None = None
        self.stopped: str | None = None
        self._slots = ground.strategy.slots
        self._items = _in_turn(order.rows.items)
        self._rng = random.Random(order.seed)
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._prompts: dict[int, Prompt] = {}
        self._new: set[int] = set()  # rows taken that were never yet admitted
        self._sent: set[int] = set()
        self._feeder: asyncio.Task[None] | None = None
        self._room = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._wall = wall_offset()
        bus.subscribe(self._admitted, Admitted)
        bus.subscribe(self._attempted, Attempted)

    async def go(self) -> None:
        """Take and settle all rows, or as many as there are until somebody stops it.

        Raises whatever the source raised, once the rows taken before are settled.
        """
        try:
            await self._take_rows()
        except asyncio.CancelledError:
            self.stop("cancelled")
            raise
        finally:
            await self._settle_all()

    async def _take_rows(self) -> None:
        if self.stopped is not None:
            return
        self._feeder = self._loop.create_task(self._feed())
        await asyncio.wait([self._feeder])
        if not self._feeder.cancelled():
            self._feeder.result()

    async def _feed(self) -> None:
        index = 0
        async for item in self._items:
            self._start(index, item)
            index += 1
            if index % BREATH == 0:
                await asyncio.sleep(0)
            while self._full():
                self._room.clear()
                await self._room.wait()

    async def _settle_all(self) -> None:
        if self._tasks:
            await asyncio.wait(tuple(self._tasks.values()))
        for index in tuple(self._tasks):  # cancelled before they had taken their first step
            self._settle(index, self._prompts[index], "cancelled", asyncio.CancelledError(self.stopped))
        if self.stopped is not None and self.order.rows.total is not None:
            await self._write_off()

    def _start(self, index: int, item: Item) -> None:
        if isinstance(item, Exception):
            self._settle(index, item, "error", item)
            return
        self._prompts[index] = item
        self._new.add(index)
        self._tasks[index] = self._loop.create_task(self._row(index, item))

    async def _row(self, index: int, prompt: Prompt) -> None:
        stream = self.order.stream or (prompt.max_tokens or 0) > LONG_ANSWER
        call = Call(index, prompt, self.bus.emit, self._rng, stream, next(self.order.places))
        started = self._loop.time()
        try:
            reply = await self.ground.handler(call)
        except asyncio.CancelledError:
            self._settle(index, prompt, "cancelled", asyncio.CancelledError(self.stopped), call, started)
        except Exception as error:  # noqa: BLE001  a row's failure is data, whatever it is
            self._settle(index, prompt, "error", error, call, started)
            if isinstance(error, LLMError) and error.verdict.fatal:
                self._give_up(error)
        else:
            now = self._loop.time() + self._wall
            self._report(
                Outcome(index, prompt, "ok", reply, None, call.attempts, call.queue_s, call.wait_s,
                        started + self._wall, now)
            )  # fmt: skip

    def _settle(
        self,
        index: int,
        item: Item,
        status: Status,
        error: BaseException,
        call: Call | None = None,
        started: float | None = None,
    ) -> None:
        prompt = item if isinstance(item, Prompt) else None
        now = self._loop.time() + self._wall
        begun = 0.0 if started is None else started + self._wall
        spent = (0, 0.0, 0.0) if call is None else (call.attempts, call.queue_s, call.wait_s)
        self._report(Outcome(index, prompt, status, None, error, *spent, begun, now))

    def _report(self, outcome: Outcome) -> None:
        self._tasks.pop(outcome.index, None)
        self._prompts.pop(outcome.index, None)
        self._new.discard(outcome.index)
        self._sent.discard(outcome.index)
        self.records[outcome.index] = record(outcome)
        self.last = outcome
        self.bus.emit(Finished(outcome))
        self._make_room()

    # -- back-pressure ------------------------------------------------------------------------------------

    def _full(self) -> bool:
        # Rows of this job only: those of others in the same line say nothing about when there is room here.
        return len(self._tasks) >= self._most_alive or len(self._new) >= self._ahead

    @property
    def _ahead(self) -> int:
        """Rows to have standing in line, so that a freed slot never waits for the feeder."""
        return LIVE_ROWS if self._slots is None else max(16, self._slots.limit)

    @property
    def _most_alive(self) -> int:
        return LIVE_ROWS if self._slots is None else max(LIVE_ROWS, 4 * self._slots.limit)

    def _make_room(self) -> None:
        # Half empty before it is filled again: the feeder wakes once for many rows.
        if len(self._new) * 2 <= self._ahead and len(self._tasks) < self._most_alive:
            self._room.set()

    def _admitted(self, event: Admitted) -> None:
        self._sent.add(event.index)
        self._new.discard(event.index)
        self._make_room()

    def _attempted(self, event: Attempted) -> None:
        self._sent.discard(event.index)

    # -- stopping -----------------------------------------------------------------------------------------

    def stop(self, reason: str, *, drain: bool = False) -> None:
        """Take no further rows and cancel those taken; with `drain`, requests in flight may end by themselves."""
        if self.stopped is None:
            self.stopped = reason
            self.bus.emit(Stopped(reason))
        for index, task in list(self._tasks.items()):
            if not (drain and index in self._sent):
                task.cancel()
        if self._feeder is not None:
            self._feeder.cancel()

    def _give_up(self, error: LLMError) -> None:
        if self.stopped is None:
            reason = f"{type(error).__name__}: {error}"
            say(f"llmlab: the job stops early, rows already answered are kept. {reason}")
            self.stop(f"not sent: the job stopped at row {len(self.records)}. {reason}", drain=True)

    async def _write_off(self) -> None:
        """Mark the rows that were never taken."""
        index = len(self.records)
        async for item in self._items:
            self._settle(index, item, "cancelled", asyncio.CancelledError(self.stopped))
            index += 1


async def _in_turn(items: Any) -> AsyncIterator[Item]:
    """Any source of rows as an asynchronous one."""
    if isinstance(items, AsyncIterable):
        async for item in items:
            yield item
        return
    for item in items:
        yield item


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
    ) -> None:
        self.name = name
        self.bus = Bus()
        """The job's events."""
        self._order, self._home, self._open, self._finish = order, home, open_ground, finish
        self._run: Run | None = None
        self._task: asyncio.Task[T] | None = None
        self._cancelled: str | None = None
        self._progress = Progress(self.bus, order.rows.total)
        if home.elsewhere:
            home.call_soon(self._start)
        elif (loop := running_loop()) is not None:
            # Not at once: `lab.run_many(…).result()` in a notebook must find the lab unbound to the kernel's loop.
            self._starter: asyncio.Handle = loop.call_soon(self._start)

    # -- waiting ------------------------------------------------------------------------------------------

    def __await__(self) -> Generator[Any, None, T]:
        return self._wait().__await__()

    async def _wait(self) -> T:
        if self._home.elsewhere:
            loop = self._home.loop
            assert loop is not None  # noqa: S101  a home elsewhere has a loop
            return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(self._join(), loop))
        return await self._join()

    def result(self) -> T:
        """Wait without `await`: in scripts, in notebooks, in threads. Returns what awaiting returns."""
        if self._task is None and hasattr(self, "_starter"):
            self._starter.cancel()
        return self._home.run(self._join, stop=partial(self._stop, "interrupted"))

    async def _join(self) -> T:
        task = self._start()
        with sigint_guard(partial(self._stop, "interrupted"), task.cancel):
            try:
                return await asyncio.shield(task)
            except asyncio.CancelledError:
                if not task.done():  # whoever waited was cancelled: nothing goes on behind their back
                    self._stop("cancelled")
                    await asyncio.wait([task])
                raise

    def _start(self) -> asyncio.Task[T]:
        if self._task is None:
            ground = self._open()
            self._run = Run(self._order, ground, self.bus)
            self._task = asyncio.get_running_loop().create_task(
                self._main(self._run), name=f"llmlab {self.name}"
            )
        return self._task

    async def _main(self, run: Run) -> T:
        bar = TextBar(self._progress) if self._order.bar else None
        ticker = asyncio.get_running_loop().create_task(bar.run()) if bar else None
        if self._cancelled is not None:
            run.stop(self._cancelled)
        total = self._order.rows.total
        try:
            with set_aside() if total is None or total >= MANY_ROWS else contextlib.nullcontext():
                await run.go()
        finally:
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
    def last(self) -> Outcome | None:
        """The outcome of the row settled last, with the whole Reply; the frame has those before."""
        return None if self._run is None else self._run.last

    @property
    def frame(self) -> Frame:
        """The rows settled so far, in input order, with the input's index; see `llmlab.frame.COLUMNS`."""
        return self._order.rows.frame({} if self._run is None else self._run.records)

    def __aiter__(self) -> AsyncIterator[Outcome]:
        """Outcomes as they come, in the order in which rows are settled, from the first time it is asked for one."""
        return self._as_settled()

    async def _as_settled(self) -> AsyncIterator[Outcome]:
        queue: asyncio.Queue[Outcome | None] = asyncio.Queue()
        loop = asyncio.get_running_loop()

        def put(item: Outcome | None) -> None:
            loop.call_soon_threadsafe(queue.put_nowait, item)

        unsubscribe = self.bus.subscribe(lambda event: put(event.outcome), Finished)
        waiting = asyncio.ensure_future(self._wait())
        waiting.add_done_callback(lambda _: put(None))
        try:
            while (outcome := await queue.get()) is not None:  # type: ignore[assignment]
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

    def _stop(self, reason: str) -> None:
        self._cancelled = reason
        if self._run is not None:
            self._run.stop(reason)

    def __repr__(self) -> str:
        now = self._progress.now
        of = "" if now.total is None else f"/{now.total}"
        state = "done" if self.done else "not started" if self._task is None else "running"
        errors = f", {now.errors} errors" if now.errors else ""
        return f"<Job {self.name}: {now.done}{of} rows, {state}{errors}>"
