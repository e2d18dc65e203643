"""Which event loop a Lab lives on, and how code without `await` reaches it.

A lab's line, connections and jobs belong to one loop. `Home` finds it:

    first use                                   home
    inside a running loop (notebook, async)     that loop
    `job.result()` and no loop runs             a loop of its own, run as long as the call lasts
    `job.result()` inside a running loop        one private daemon thread with a loop
    `lab.submit()` and no loop runs             the same thread
    `loop="thread"`                             the same thread, from the start

A home whose loop was closed (a second `asyncio.run`) moves to the next one. `job.result()` on the very loop that
runs the caller re-enters it with nest-asyncio2, which patches asyncio for the whole process and makes later
task switches slower, so it happens at that moment only.
"""

import asyncio
import contextlib
import contextvars
import signal
import threading
import weakref
from collections.abc import Callable, Coroutine, Iterator
from contextvars import ContextVar
from functools import partial
from typing import Any, Literal, TypeVar

from llmlab.nested import nest
from llmlab.roster import Roster

T = TypeVar("T")
Main = Callable[[], Coroutine[Any, Any, T]]

WINDING_UP = 5
"""Tries to bring a broken run to its end."""


def running_loop() -> asyncio.AbstractEventLoop | None:
    """The loop that runs in this thread, if any."""
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


class Home:
    """The one loop a Lab lives on.

    Args:
        where: "caller": the loop of the first use; "thread": a private loop in a daemon thread.
    """

    def __init__(self, where: Literal["caller", "thread"] = "caller") -> None:
        self._where = where
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()
        self._own: asyncio.AbstractEventLoop | None = None  # runs only while `result()` waits in this thread
        self._guests: set[asyncio.Task[Any]] = set()  # work that other threads wait for
        self._bound: asyncio.AbstractEventLoop | None = None
        self.loop: asyncio.AbstractEventLoop | None = None
        self.roster = Roster()
        """The jobs that live here."""

    def bind(self) -> bool:
        """Make the running loop the home; True if work was done on another one before.

        Raises:
            RuntimeError: the home is another loop, and it runs.
        """
        here = asyncio.get_running_loop()
        if self._bound is here:
            return False
        if self.loop is not None and self.loop is not here and self.loop.is_running():
            raise RuntimeError(
                "this Lab is at work on another event loop: use one Lab per loop, or Lab(loop='thread') for all"
            )
        if self._own is not here:
            self._drop_own()
        moved = self._bound is not None
        self.loop = self._bound = here
        return moved

    @property
    def elsewhere(self) -> bool:
        """Whether the home is a private thread, and this is another one."""
        if self._where == "thread":
            self._start_thread()
        return self._thread is not None and threading.current_thread() is not self._thread

    def call_soon(self, callback: Callable[[], object]) -> None:
        """Run `callback` on the home's loop, from any thread; at once where no loop runs that it could disturb."""
        idle = self._thread is None and self.loop is not None and not self.loop.is_running()
        if self.loop is None or self.loop.is_closed() or idle or running_loop() is self.loop:
            callback()
        else:
            self.loop.call_soon_threadsafe(callback)

    def begin(self, start: Callable[[], "asyncio.Task[Any] | None"]) -> None:
        """Have `start()` begin a task without anybody waiting for it, though no loop runs in this thread.

        It begins where the home's loop runs, or when that next does; a home without one gets its private thread.
        """
        with self._lock:
            if self.loop is not None and self.loop.is_closed():
                self.loop = self._thread = None
            self._drop_own()
        self._start_thread()
        loop = self.loop
        assert loop is not None  # noqa: S101  a thread's loop exists once the thread has started

        def begin() -> None:
            task = start()
            if task is not None:  # a `result()` in another thread, whose loop this may be, stays until it has ended
                self._guests.add(task)
                task.add_done_callback(self._guests.discard)

        loop.call_soon_threadsafe(begin)

    def run(self, main: Main[T], *, stop: Callable[[], object] | None = None) -> T:
        """Run `main()` on the home's loop and wait for it, whatever runs in this thread.

        Args:
            main: Makes the coroutine.
            stop: Called on the home's loop at the first Ctrl-C; a second one cancels.
        """
        here = running_loop()
        if self.loop is not None and self.loop.is_closed():
            self.loop = self._thread = None
        if here is not None and self.loop is here:
            return _reenter(here, main)
        if here is not None and not self.elsewhere:
            self._drop_own()
            self._start_thread()
        if here is None and self.loop is None and threading.current_thread() is not threading.main_thread():
            self._start_thread()  # several threads may come: a loop of one of them could not serve the others
        if self.elsewhere or (self.loop is not None and self.loop.is_running()):
            return self._run_there(main, stop)
        return self._run_here(main)

    def close(self, main: Main[None]) -> None:
        """Run `main()`, which closes something, if there is a loop that still can run, or a job that still has to."""
        if self.roster.left or (self.loop is not None and not self.loop.is_closed()):
            self.run(main)

    def _run_here(self, main: Main[T]) -> T:
        if self.loop is None:
            self.loop = self._own = asyncio.new_event_loop()
            weakref.finalize(self, _close, self._own)
        task = self.loop.create_task(main())
        try:
            result = self.loop.run_until_complete(task)
        except BaseException:
            self._wind_up(task)
            raise
        while self._guests:
            self.loop.run_until_complete(asyncio.wait(tuple(self._guests)))
        return result

    def _wind_up(self, task: asyncio.Task[Any]) -> None:
        """Bring a task to its end that a KeyboardInterrupt has left in the middle of things."""
        task.cancel()
        for _ in range(WINDING_UP):
            with contextlib.suppress(KeyboardInterrupt, SystemExit):  # they come out of each task that sees them
                if self.loop is not None and not task.done():
                    self.loop.run_until_complete(asyncio.wait([task]))

    def _run_there(self, main: Main[T], stop: Callable[[], object] | None) -> T:
        loop = self.loop
        assert loop is not None  # noqa: S101  a thread's loop exists once the thread has started
        context = contextvars.copy_context()
        box: dict[str, asyncio.Task[T]] = {}
        done = threading.Event()

        def start() -> None:
            task = box["task"] = loop.create_task(main(), context=context)
            self._guests.add(task)
            task.add_done_callback(self._guests.discard)
            task.add_done_callback(lambda _: done.set())

        def cancel() -> None:
            box["task"].cancel()

        loop.call_soon_threadsafe(start)
        with sigint_guard(stop or cancel, cancel, loop=loop):
            done.wait()
        return box["task"].result()

    def _drop_own(self) -> None:
        if self._own is not None and not self._own.is_running():
            _close(self._own)
            if self.loop is self._own:
                self.loop = None
            self._own = None

    def _start_thread(self) -> None:
        with self._lock:
            if self._thread is not None or (self.loop is not None and not self.loop.is_closed()):
                return
            loop = self.loop = asyncio.new_event_loop()
            self._thread = threading.Thread(target=_serve, args=(loop,), name="llmlab-loop", daemon=True)
            self._thread.start()
            weakref.finalize(self, _stop, loop)


def _serve(loop: asyncio.AbstractEventLoop) -> None:
    asyncio.set_event_loop(loop)
    try:
        loop.run_forever()
    finally:
        _close(loop)


def _close(loop: asyncio.AbstractEventLoop) -> None:
    """Close a loop of our own: first what still runs on it, then its async generators (the open connections)."""
    if loop.is_closed() or loop.is_running():
        return
    if running_loop() is not None:  # a thread can only run one loop at a time
        helper = threading.Thread(target=_close, args=(loop,))
        helper.start()
        helper.join()
        return
    loop.run_until_complete(asyncio.sleep(0))  # calls still on their way may make tasks
    tasks = asyncio.all_tasks(loop)
    for task in tasks:
        task.cancel()
    if tasks:
        loop.run_until_complete(asyncio.wait(tasks))
    loop.run_until_complete(loop.shutdown_asyncgens())
    loop.close()


def _stop(loop: asyncio.AbstractEventLoop) -> None:
    if not loop.is_closed():
        loop.call_soon_threadsafe(loop.stop)


def _reenter(loop: asyncio.AbstractEventLoop, main: Main[T]) -> T:
    nest(loop)
    return loop.run_until_complete(main())


class _Interrupts:
    """The runs that Ctrl-C speaks to. One handler for all, put in place by the first and removed by the last."""

    def __init__(self) -> None:
        self._runs: list[Iterator[Callable[[], object]]] = []
        self._previous: Any = None

    def enter(self, answers: Iterator[Callable[[], object]]) -> None:
        if not self._runs:
            self._previous = signal.signal(signal.SIGINT, self._handle)
        self._runs.append(answers)

    def leave(self, answers: Iterator[Callable[[], object]]) -> None:
        self._runs.remove(answers)
        if not self._runs:
            signal.signal(signal.SIGINT, signal.SIG_DFL if self._previous is None else self._previous)

    def _handle(self, _signum: int, _frame: object) -> None:
        for answer in [next(run, None) for run in self._runs]:
            if answer is None:
                raise KeyboardInterrupt
            answer()


_interrupts = _Interrupts()


heeds_interrupts: ContextVar[bool] = ContextVar("heeds_interrupts", default=True)
"""Whether an interrupt is meant for what is waited for here; a server's requests leave it to the server."""


@contextlib.contextmanager
def sigint_guard(
    stop: Callable[[], object], cancel: Callable[[], object], *, loop: asyncio.AbstractEventLoop | None = None
) -> Iterator[None]:
    """Answer Ctrl-C and the notebook's Stop while a run is waited for in the main thread.

    The first interrupt calls `stop` on the loop (the running one by default), the second `cancel`, the third
    raises KeyboardInterrupt. The kernel's own interrupt would only be seen at the loop's next event.
    """
    if not heeds_interrupts.get() or threading.current_thread() is not threading.main_thread():
        yield
        return
    there = loop or asyncio.get_running_loop()
    # call_soon_threadsafe, because it wakes a loop that waits for its next event
    answers = iter([partial(there.call_soon_threadsafe, answer) for answer in (stop, cancel)])
    _interrupts.enter(answers)
    try:
        yield
    finally:
        _interrupts.leave(answers)
