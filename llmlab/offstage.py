"""A virtual run on a thread of its own: whatever loop asked for it, a notebook's too, goes on undisturbed.

asked for             where it runs             how it is heard of
`await stage.wait()`  the stage's own thread    the waiting loop is called back once, at the end
cancelled             -                         looked for at each pass of the virtual loop, by `ask`
progress              -                         plain counters of whoever gave `main`, to be looked at
"""

import asyncio
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from typing import Generic, TypeVar

from llmlab.clock import VirtualClockLoop

T = TypeVar("T")


class Offstage(Generic[T]):
    """One run of `main()` in virtual time, on a daemon thread that begins at once.

    Args:
        main: Called on the thread, on its loop.
        name: The thread's.
    """

    def __init__(self, main: Callable[[], Awaitable[T]], *, name: str = "llmlab-virtual") -> None:
        self._main = main
        self._loop = VirtualClockLoop()
        self._task: asyncio.Task[T] | None = None
        self._gone = False
        self._done: Future[T] = Future()
        self._done.set_running_or_notify_cancel()  # who waits may be cancelled, and the run is not over by that
        threading.Thread(target=self._run, name=name, daemon=True).start()

    async def wait(self) -> T:
        """Wait for the end, from any loop; who is cancelled meanwhile cancels the run and waits until it is over.

        Returns:
            What `main()` returns.

        Raises:
            RuntimeError: the running loop is virtual itself, and would jump ahead of the thread.
        """
        if isinstance(asyncio.get_running_loop(), VirtualClockLoop):
            self.cancel()
            raise RuntimeError("this is a virtual run already: another one inside it would stand still")  # noqa: TRY004
        waiting = asyncio.wrap_future(self._done)
        try:
            return await asyncio.shield(waiting)
        except asyncio.CancelledError:
            self.cancel()
            await asyncio.wait([waiting])
            _ = waiting.cancelled() or waiting.exception()  # seen: nobody else will ask
            raise

    def cancel(self) -> None:
        """Cancel the run soon, from any thread."""
        self._gone = True
        self._loop.ask(self._cancel)

    def _cancel(self) -> None:
        if self._task is not None:
            self._task.cancel()

    def _run(self) -> None:
        try:
            with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
                result = runner.run(self._entry())
        except BaseException as error:  # noqa: BLE001  whatever it is, who waits must hear of it
            self._done.set_exception(error)
        else:
            self._done.set_result(result)

    async def _entry(self) -> T:
        if self._gone:
            raise asyncio.CancelledError
        self._task = asyncio.current_task()
        return await self._main()
