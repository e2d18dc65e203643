"""A handle on running work: what all jobs have in common, whatever they do.

It may be awaited, asked for its result without `await`, and stopped, from the loop it lives on, from another one, or
from none.
"""

import asyncio
import contextlib
from collections.abc import Callable, Coroutine, Generator
from functools import partial
from typing import Any, Generic, TypeVar

from llmlab.loops import Home, running_loop, sigint_guard

T = TypeVar("T")


class Handle(Generic[T]):
    """Running work: `await` it, call `result()`, cancel it.

    Args:
        name: What it is, for people.
        home: The event loop it lives on.

    Raises:
        LabClosed: its lab takes nothing more.
    """

    def __init__(self, name: str, home: Home) -> None:
        home.roster.check_open()
        self.name = name
        self._home = home
        self._task: asyncio.Task[T] | None = None
        self._starter: asyncio.Handle | None = None
        self._stopped: str | None = None

    def _make(self) -> Coroutine[Any, Any, T]:
        """Get ready, on the home's loop; gives what is then to be run."""
        raise NotImplementedError

    def _stop(self, reason: str) -> None:
        """Bring it to an end soon; on the home's loop."""
        raise NotImplementedError

    def _settle(self) -> None:
        """Whoever awaited it has stopped waiting."""

    def _begin_by_itself(self) -> None:
        """Begin as soon as the loop gets its turn, if there is one."""
        self._home.roster.add(self)
        if self._home.elsewhere:
            self._home.call_soon(self._start)
        elif (loop := running_loop()) is not None:
            # Not at once: `lab.run_many(…).result()` in a notebook must find the lab unbound to the kernel's loop.
            self._starter = loop.call_soon(self._start_by_itself)

    # -- waiting ------------------------------------------------------------------------------------------

    def __await__(self) -> Generator[Any, None, T]:
        return self.wait().__await__()

    async def wait(self) -> T:
        """What `await job` does, as a coroutine."""
        try:
            return await self._wait()
        finally:
            self._settle()

    async def _wait(self) -> T:
        if self._home.elsewhere:
            loop = self._home.loop
            assert loop is not None  # noqa: S101  a home elsewhere has a loop
            waiting = asyncio.run_coroutine_threadsafe(self._join(), loop)
            with sigint_guard(partial(self._stop, "interrupted"), waiting.cancel, loop=loop):
                return await asyncio.wrap_future(waiting)
        return await self._join()

    def result(self) -> T:
        """Wait without `await`: in scripts, in notebooks, in threads. Returns what awaiting returns."""
        if self._task is None and self._starter is not None:
            self._starter.cancel()
        try:
            return self._home.run(self._join, stop=partial(self._stop, "interrupted"))
        except asyncio.CancelledError:
            if self._stopped == "interrupted":  # of a job that has nothing to give back, as `run`
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
            main = self._make()
            self._task = asyncio.get_running_loop().create_task(main, name=f"llmlab {self.name}")
        return self._task

    def _start_by_itself(self) -> asyncio.Task[T] | None:
        with contextlib.suppress(RuntimeError):  # the lab is at work on another loop: whoever waits is told
            return self._start()
        return None

    def begin(self) -> None:
        """Begin also where no event loop runs, without being waited for: on the lab's own loop, in another thread."""
        if self._task is None and not self._home.elsewhere and running_loop() is None:
            self._home.begin(self._start_by_itself)

    async def drained(self) -> None:
        """Wait as far as its lab waits for it at its end, on its own loop; one that has not begun begins."""
        await self.ended()

    async def ended(self) -> None:
        """Wait until it has ended, well or badly, on its own loop; one that has not begun begins."""
        task = self._start()
        await asyncio.wait([task])
        if self._stopped is not None:
            _ = task.cancelled() or task.exception()  # seen: whoever let go of it when it was stopped knows of it

    # -- looking and stopping -----------------------------------------------------------------------------

    @property
    def done(self) -> bool:
        """Whether it is over."""
        return self._task is not None and self._task.done()

    @property
    def paused(self) -> bool:
        """Whether the user has paused it."""
        return False

    @property
    def stopped(self) -> str | None:
        """Why it was stopped: cancelled, interrupted or an error in words. None: it was not."""
        return self._stopped

    def cancel(self) -> None:
        """Stop at once, from any thread; awaiting returns what is done by then."""
        self.halt("cancelled")

    def halt(self, reason: str) -> None:
        """Stop at once, from any thread; `stopped` says why."""
        self._home.call_soon(partial(self._stop, reason))

    def stop(self, reason: str) -> None:
        """Stop at once, on its own loop; `stopped` says why."""
        self._stop(reason)

    def on_loop(self, callback: Callable[[], object]) -> None:
        """Run `callback` on the event loop it lives on, from any thread."""
        self._home.call_soon(callback)
