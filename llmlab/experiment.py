"""A job made of trials: the same work done several times, and what is measured of it.

A trial in virtual time runs on a thread of its own (`llmlab.offstage`), so that the loop that waits goes on; one on a
real provider runs on the lab's loop. Its events are forwarded to the experiment's bus, where plain counters listen that
anybody may look at. A stop ends the trial at work; those before it are kept.
"""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from typing import Any, TypeVar

from llmlab.events import Attempted, Bus, Finished, Retrying
from llmlab.frame import Frame
from llmlab.frontend import frontend
from llmlab.handle import Handle
from llmlab.loops import Home
from llmlab.offstage import Offstage
from llmlab.progress import Progress, TextBar

T = TypeVar("T")


class Experiment(Handle[Frame]):
    """A handle on running trials: `await` it, call `result()`, cancel it, look at its `frame` and its `rows`.

    Args:
        name: What it is, for people.
        home: The event loop it lives on.
        open_ground: Called on that loop as it begins.
        virtual: Whether the trials run in virtual time.
        total: Rows in all; None if unknown.
        progress: Show a line of progress. None: where there is somebody to look.
    """

    def __init__(
        self,
        name: str,
        home: Home,
        *,
        open_ground: Callable[[], object],
        virtual: bool,
        total: int | None,
        progress: bool | None,
    ) -> None:
        super().__init__(name, home)
        self.virtual = virtual
        """Whether the trials run in virtual time."""
        self.bus = Bus()
        """Finished, Attempted and Retrying events of all trials, on the loop or thread on which each runs."""
        self.progress = Progress(self.bus, total)
        """The counts so far."""
        self._open = open_ground
        self._shown = frontend() != "none" if progress is None else progress
        self._trial: asyncio.Task[Any] | None = None
        self._begin_by_itself()

    @property
    def frame(self) -> Frame:
        """What was measured so far, one row per trial that is over."""
        raise NotImplementedError

    @property
    def rows(self) -> Frame:
        """The rows behind it, those of a trial that was stopped included."""
        raise NotImplementedError

    async def _run(self) -> None:
        """Perform the trials."""
        raise NotImplementedError

    # -- inside -------------------------------------------------------------------------------------------

    def _make(self) -> Coroutine[Any, Any, Frame]:
        self._open()
        return self._main()

    async def _main(self) -> Frame:
        bar = TextBar(self.progress) if self._shown else None
        drawing = None if bar is None else asyncio.create_task(bar.run())
        try:
            await self._run()
        finally:
            if bar is not None and drawing is not None:
                drawing.cancel()
                bar.close()
        return self.frame

    async def _perform(self, trial: Callable[[], Awaitable[T]]) -> T | None:
        """Run a trial to its end; None if the experiment is stopped before."""
        if self._stopped is not None:
            return None
        run = Offstage(trial).wait if self.virtual else partial(_awaited, trial)
        self._trial = asyncio.create_task(run())
        try:
            await asyncio.wait([self._trial])
        except asyncio.CancelledError:
            self._trial.cancel()
            await asyncio.wait([self._trial])
            raise
        result: T | None = None if self._trial.cancelled() and self._stopped is not None else self._trial.result()
        return result

    def listen(self, bus: Bus) -> None:
        """Forward a trial's events."""
        bus.subscribe(self.bus.emit, Finished, Attempted, Retrying)

    def _stop(self, reason: str) -> None:
        if self._stopped is None:
            self._stopped = reason
        if self._trial is not None:
            self._trial.cancel()

    def __repr__(self) -> str:
        now = self.progress.now
        of = "" if now.total is None else f"/{now.total}"
        state = "not started" if self._task is None else "running"
        if self.done:
            state = "done" if self._stopped is None else f"stopped: {self._stopped}"
        return f"<{type(self).__name__}: {len(self.frame)} trials, {now.done}{of} rows, {state}>"


async def _awaited(trial: Callable[[], Awaitable[T]]) -> T:
    return await trial()
