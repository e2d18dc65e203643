"""The feeder: takes a job's rows as there is room for them, and settles each exactly once.

Rows are taken from the source one by one. The feeder keeps the lab's line filled and stops taking when
enough rows stand in it: a generator of a million rows never becomes a million tasks. A row that backs off
stands in no line and holds no slot, so others are taken meanwhile, up to a bound.
"""

import asyncio
import random
from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial

from llmlab.call import Call
from llmlab.clock import wall_offset
from llmlab.errors import LLMError, NotAsked
from llmlab.events import Admitted, Attempted, Bus, Finished, Following, Retrying, Stopped
from llmlab.flow import Hold
from llmlab.load import Ground, Load, Store
from llmlab.plan import Plan
from llmlab.progress import say
from llmlab.source import Source
from llmlab.types import Item, Outcome, Prompt, Status

LIVE_ROWS = 1000
"""Rows alive at most (or four times the concurrency, if that is more), those that back off included."""
LONG_ANSWER = 21_333
"""Tokens from which on an answer is streamed even if nobody asked for pieces: at 128,000 tokens an hour it takes
more than ten minutes, and boxes on the way cut connections that are silent for so long (as Anthropic's SDK reckons)."""
BREATH = 64
"""Rows taken from a source in one go before the loop may do something else."""
LONGEST_BREATH = 0.005
"""Seconds after which it may in any case: a slow source must not hold up the answers."""

SOURCE_BINDS = 0.5
"""Share of the time spent waiting for the source from which on it is what binds an idle job."""


class Feeder:
    """One job's rows on their way: takes them, settles them, can be stopped. Lives on the lab's loop."""

    def __init__(
        self,
        load: Load,
        ground: Ground,
        bus: Bus,
        keep: Callable[[Outcome], object],
        journal: Store | None = None,
    ) -> None:
        self.load, self.ground, self.bus, self.keep, self.journal = load, ground, bus, keep, journal
        self.settled = 0
        self.stopped: str | None = None
        self._source = load.items if isinstance(load.items, Plan) else Source(load.items)
        self._rng = random.Random(load.seed)
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._prompts: dict[int, Prompt] = {}
        self._new: set[int] = set()  # rows taken that were never yet admitted
        self._sent: Counter[int] = Counter()  # requests in flight, by row: two, if one is hedged
        self._looked = (0.0, 0.0)  # when `waits_for` was last asked, and the seconds the source was waited for then
        self._kept: int | None = None  # the one row that goes on when all others have been stopped
        self._feeder: asyncio.Task[None] | None = None
        self._recalling: asyncio.Future[Mapping[int, Prompt]] | None = None
        self._room = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._wall = wall_offset()
        bus.subscribe(self._admitted, Admitted)
        bus.subscribe(self._following, Following)
        bus.subscribe(self._attempted, Attempted)
        bus.subscribe(self._retrying, Retrying)
        if isinstance(self._source, Plan):
            self._follow(self._source)

    def _follow(self, plan: Plan) -> None:
        """Let a plan hear what becomes of its rows."""
        plan.open(halt=partial(self.stop, drain=True), before_waiting=self._recall_all)
        self.bus.subscribe(lambda event: plan.answered(event.outcome), Finished)
        self.bus.subscribe(lambda _: plan.stop(), Stopped)

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
            await self._close_journal()
            await self._close_source()

    async def _take_rows(self) -> None:
        if self.stopped is not None:
            return
        self._feeder = self._loop.create_task(self._feed())
        await asyncio.wait([self._feeder])
        if not self._feeder.cancelled():
            self._feeder.result()
        elif self.stopped is None:
            raise RuntimeError("the source of the prompts was cancelled from within")

    async def _feed(self) -> None:
        breath, taken = self._loop.time(), 0
        async for index, item in self._source:
            taken += 1
            if self.stopped is not None:  # by the source itself, or by a listener
                self._settle(index, item, "cancelled", asyncio.CancelledError(self.stopped))
                return
            if self.journal is not None and self.journal.knows(index, item):
                if self.journal.has_a_chunk:
                    await self._recall(self.journal)
            else:
                self._start(index, item)
            if taken % BREATH == 0 or self._loop.time() - breath > LONGEST_BREATH:
                await asyncio.sleep(0)
                breath = self._loop.time()
            if self.journal is not None and self._full():
                await self._recall(self.journal)  # what is known already does not wait for what is new
            while self._full():
                self._room.clear()
                await self._room.wait()
            if self.load.flow is not None:
                await self.load.flow.open.wait()  # rows answered at once would pile up before a reader who is behind
        await self._recall_all()

    async def _recall_all(self) -> None:
        """Report what is known already before anything is waited for."""
        if self.journal is not None:
            await self._recall(self.journal)

    async def _recall(self, journal: Store) -> None:
        """Report rows that an earlier run has answered; a stop in the middle of it loses none of them."""
        self._recalling = asyncio.ensure_future(journal.recall(self._announce))
        for index, prompt in (await asyncio.shield(self._recalling)).items():
            self._start(index, prompt)

    async def _close_journal(self) -> None:
        if self.journal is None:
            return
        if self._recalling is not None:
            await asyncio.wait([self._recalling])
        for index, prompt in (await self.journal.recall(self._announce)).items():
            self._settle(index, prompt, "cancelled", asyncio.CancelledError(self.stopped))
        await self.journal.close(self._announce, at_once=self.stopped is not None)

    async def _settle_all(self) -> None:
        if self._tasks:
            await asyncio.wait(tuple(self._tasks.values()))
        for index in tuple(self._tasks):  # cancelled before they had taken their first step
            why = asyncio.CancelledError(self.stopped or "cancelled from below")
            self._settle(index, self._prompts[index], "cancelled", why)

    async def _close_source(self) -> None:
        if isinstance(self._source, Plan):
            await self._source.aclose()
        if self.stopped is not None and self.load.total is not None:
            await self._write_off()  # last of all: what a plan would still have asked depends on all answers

    def _start(self, index: int, item: Item) -> None:
        if isinstance(item, Exception):
            self._settle(index, item, "cancelled" if isinstance(item, NotAsked) else "error", item)
            return
        self._prompts[index] = item
        self._new.add(index)
        self._tasks[index] = self._loop.create_task(self._row(index, item), name=f"row {index}")

    async def _row(self, index: int, prompt: Prompt) -> None:
        stream = self.load.stream or (prompt.max_tokens or 0) > LONG_ANSWER
        place, lane = next(self.load.places), self.load.lane
        reader = None if prompt.schema is None else self.load.reader
        call = Call(index, prompt, self.bus.emit, self._rng, stream, place, lane=lane, reader=reader)
        if self.load.flow is not None:
            call.hold = Hold(self.load.flow)
            self.load.flow.calls[index] = call
        started = self._loop.time()
        try:
            reply = await self.ground.handler(call)
        except asyncio.CancelledError as gone:
            why = self.stopped or (str(gone) or "cancelled from below")
            self._settle(index, prompt, "cancelled", asyncio.CancelledError(why), call, started)
        except Exception as error:  # noqa: BLE001  a row's failure is data, whatever it is
            self._settle(index, prompt, "error", error, call, started)
            if isinstance(error, LLMError) and error.verdict.fatal:
                self._give_up(error)
        else:
            now = self._loop.time() + self._wall
            self._report(
                Outcome(index, prompt, "ok", reply, None, call.attempts, call.queue_s, call.wait_s,
                        started + self._wall, now, call.wasted, call.wasted_usd)
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
        wasted = (None, None) if call is None else (call.wasted, call.wasted_usd)
        self._report(Outcome(index, prompt, status, None, error, *spent, begun, now, *wasted))

    def _report(self, outcome: Outcome) -> None:
        self._tasks.pop(outcome.index, None)
        self._prompts.pop(outcome.index, None)
        self._new.discard(outcome.index)
        del self._sent[outcome.index]
        if self.journal is not None and outcome.status != "cancelled":
            self.journal.keep(outcome, self._announce)  # it is reported when it is committed
        else:
            self._announce(outcome)
        self._make_room()

    def _announce(self, outcome: Outcome) -> None:
        self.settled += 1
        self.keep(outcome)
        self.bus.emit(Finished(outcome))
        self._make_room()

    @property
    def waits_for(self) -> str:
        """What the job waits for while nobody of it stands in line: source, journal or provider."""
        now, waited = self._loop.time(), self._source.waited.seconds
        (then, before), self._looked = self._looked, (now, waited)
        if self.journal is not None and self.journal.full:
            return "journal"
        return "source" if waited - before > SOURCE_BINDS * (now - then) else "provider"

    # -- back-pressure ------------------------------------------------------------------------------------

    def _full(self) -> bool:
        # Rows of this job only: those of others in the same line say nothing about when there is room here.
        if self.journal is not None and self.journal.full:
            return True
        return len(self._tasks) >= self._most_alive or len(self._new) >= self._ahead

    @property
    def _ahead(self) -> int:
        """Rows to have standing in line, so that a freed slot never waits for the feeder."""
        ground = self.ground
        return LIVE_ROWS if ground.slots is None else max(16, ground.slots.limit) * ground.rows_per_request

    @property
    def _most_alive(self) -> int:
        ground = self.ground
        return max(LIVE_ROWS, 0 if ground.slots is None else 4 * ground.slots.limit * ground.rows_per_request)

    def _make_room(self) -> None:
        # Half empty before it is filled again: the feeder wakes once for many rows.
        if not self._room.is_set() and len(self._new) * 2 <= self._ahead and len(self._tasks) < self._most_alive:
            self._room.set()

    def _admitted(self, event: Admitted) -> None:
        self._sent[event.index] += 1
        self._new.discard(event.index)
        self._make_room()

    def _following(self, event: Following) -> None:
        self._new.discard(event.index)  # a slot that comes free is not for it
        self._make_room()

    def _attempted(self, event: Attempted) -> None:
        self._sent[event.index] -= 1

    def _retrying(self, event: Retrying) -> None:
        if self.stopped is not None and event.index != self._kept:  # it was in flight when the job stopped: no next one
            self._tasks[event.index].cancel()

    # -- stopping -----------------------------------------------------------------------------------------

    def stop(self, reason: str, *, drain: bool = False) -> None:
        """Take no further rows and cancel those taken; with `drain`, requests in flight may end by themselves."""
        if self.stopped is None:
            self.stopped = reason
            self.bus.emit(Stopped(reason))
        for index, task in list(self._tasks.items()):
            if not (drain and self._sent[index] > 0):
                task.cancel()
        if self._feeder is not None:
            self._feeder.cancel()

    def keep_only(self, index: int) -> None:
        """Go on with one row alone; the others are cancelled."""
        self._kept, self.stopped = index, "another answer came first"
        for other, task in list(self._tasks.items()):
            if other != index:
                task.cancel()
        if self._feeder is not None:
            self._feeder.cancel()

    def drop(self, index: int) -> None:
        """Cancel one row, if it is under way."""
        if (task := self._tasks.get(index)) is not None:
            task.cancel("stopped by the user")

    def _give_up(self, error: LLMError) -> None:
        if self.stopped is None:
            reason = f"{type(error).__name__}: {error}"
            if self.load.total != 1:
                say(f"llmlab: the job stops early, rows already answered are kept. {reason}")
            self.stop(f"the job stopped at row {self.settled}. {reason}", drain=True)

    async def _write_off(self) -> None:
        """Mark the rows that were never taken."""
        async for index, item in self._source:
            self._settle(index, item, "cancelled", asyncio.CancelledError(self.stopped))
