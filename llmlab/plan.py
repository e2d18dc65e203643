"""Rows that follow from the answers to earlier ones, as a source for a feeder: what chains and trees are made of.

A script is a generator that yields what it asks, (position, row), and is sent the row's Outcome. A plan is made of
levels of scripts. All scripts of a level run side by side; the next level is made when all of this one are over.

    the feeder has room for a row      it gets
    a script under way asks            that: what was begun is brought to its end first
    none does                          the first row of the next script
    there is no next one               nothing, until an answer comes, and then the next level

So there are no tasks to be cancelled and no futures that nobody looks at, and of a level of a million scripts only
those are held that have rows under way. The journal needs to know nothing of it: a row is known by what it asks.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Generator, Iterable, Iterator
from typing import Self, TypeAlias

from llmlab.clock import Stopwatch
from llmlab.types import Item, Outcome

Script: TypeAlias = Generator[tuple[int, Item], Outcome, None]
"""Yields a row with its position, which no other row has, and is sent what became of it."""
Level: TypeAlias = Iterable[Script] | AsyncIterable[Script]


class Plan:
    """A source of rows that grows while they are answered.

    Args:
        levels: Scripts that run side by side, level by level; each level is asked for when the one before is over.
    """

    def __init__(self, levels: Iterable[Level]) -> None:
        self._levels = iter(levels)
        self._scripts: Iterator[Script] | AsyncIterator[Script] | None = None  # of the present level; None: all begun
        self._coming: asyncio.Future[Script | None] | None = None  # the script that an asynchronous level is asked for
        self._ready: deque[tuple[int, Item, Script]] = deque()
        self._asked: dict[int, Script] = {}
        self._news = asyncio.Event()
        self._over = False
        self._trouble: BaseException | None = None  # the source's own
        self._halt: Callable[[str], object] = str
        self._before_waiting: Callable[[], Awaitable[object]] | None = None
        self.waited = Stopwatch()
        """For how long the user's own source was waited for; not for answers."""
        self.stopped = False
        """Whether the job was stopped: no further level is begun."""
        self.error: Exception | None = None
        """What a script has raised: the job's own failure."""

    def open(self, *, halt: Callable[[str], object], before_waiting: Callable[[], Awaitable[object]]) -> None:
        """Be told how to stop the job, and what is to be done before answers are waited for."""
        self._halt, self._before_waiting = halt, before_waiting

    # -- rows ---------------------------------------------------------------------------------------------

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> tuple[int, Item]:
        while not self._ready:
            self._news.clear()
            if self._trouble is not None:
                raise self._trouble
            if self._over:
                raise StopAsyncIteration
            if not self._go_on():
                await self._wait()
        position, item, script = self._ready.popleft()
        self._asked[position] = script
        return position, item

    def _go_on(self) -> bool:
        """Begin the next script, or the next level; False if something must be waited for."""
        if isinstance(self._scripts, AsyncIterator):
            if self._coming is None:
                self._coming = asyncio.ensure_future(anext(self._scripts, None))
                self._coming.add_done_callback(self._came)
            return False
        if self._scripts is not None:
            with self.waited:
                script = next(self._scripts, None)
            self._begin(script)
            return True
        if self._asked:
            return False
        self._next_level()
        return True

    def _begin(self, script: Script | None) -> None:
        if script is None:
            self._scripts = None
        else:
            self._resume(script, None)

    def _next_level(self) -> None:
        level = None if self.stopped else next(self._levels, None)
        if level is None:
            self._over = True
        else:
            self._scripts = aiter(level) if isinstance(level, AsyncIterable) else iter(level)

    def _came(self, coming: asyncio.Future[Script | None]) -> None:
        self._coming = None
        self._news.set()
        if coming.cancelled():
            self._scripts = None
            if not self.stopped:
                self._trouble = RuntimeError("the source of the prompts was cancelled from within")
        elif (error := coming.exception()) is not None:
            self._trouble = error
        else:
            self._begin(coming.result())

    async def _wait(self) -> None:
        for _ in range(2):  # most sources need no more; and who reads rows back likes to read many
            await asyncio.sleep(0)
            if self._news.is_set():
                return
        if self._before_waiting is not None:
            await self._before_waiting()
        if self._coming is None:
            await self._news.wait()
            return
        with self.waited:
            await self._news.wait()

    # -- answers ------------------------------------------------------------------------------------------

    def answered(self, outcome: Outcome) -> None:
        """Go on with the script that has asked for this."""
        script = self._asked.pop(outcome.index, None)
        if script is not None:
            self._resume(script, outcome)
        self._news.set()

    def _resume(self, script: Script, outcome: Outcome | None) -> None:
        try:
            position, item = next(script) if outcome is None else script.send(outcome)
        except StopIteration:
            return
        except Exception as error:  # noqa: BLE001  whatever it is, it ends the job and is raised there
            self.error = self.error or error
            self._halt(f"{type(error).__name__}: {error}")
            return
        self._ready.append((position, item, script))

    # -- the end ------------------------------------------------------------------------------------------

    def stop(self) -> None:
        """Begin no further level: the job was stopped."""
        self.stopped = True

    async def aclose(self) -> None:
        """Let go of the user's source."""
        if self._coming is not None:
            self._coming.cancel()
            await asyncio.wait([self._coming])
