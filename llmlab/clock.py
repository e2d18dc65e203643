"""Virtual time: an event loop whose clock jumps to the next timer instead of waiting for it.

The engine reads `loop.time()` and sleeps with asyncio only, so the very same code runs a simulated hour in
seconds. With nothing ready and no timer armed the loop would wait for ever; it raises `Deadlock` and says which task
waits for what. Each pass costs one virtual microsecond: a limiter that re-arms its timer at `now + 1e-15` would
otherwise never see time move.

Whatever happens outside of the loop would happen at a moment that differs from run to run, so it is refused: sockets,
names to look up, processes, threads, callbacks from other threads. One wish of another thread is heard (`ask`), at the
next pass: that the run should end.
"""

import asyncio
import selectors
import threading
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from typing import Any, NoReturn, TypeVar

T = TypeVar("T")

NO_IO = "a virtual run does no real I/O: use the simulated provider's transport"
NO_THREADS = "a virtual run uses no threads: time would jump ahead of them"
NO_PROCESSES = "a virtual run starts no processes: time would jump ahead of them"
SHOWN = 20
"""Tasks that a Deadlock names."""

TICK = 1e-6
EPOCH = 1_767_225_600.0  # 2026-01-01 UTC: wall-clock stamps of virtual runs are the same in every run


class Deadlock(RuntimeError):
    """Every task of a virtual run waits for something that no timer will bring."""


class _NoSelector(selectors.BaseSelector):
    """Polls nothing; hands the wanted waiting time to the loop's clock."""

    def __init__(self, advance: Callable[[float | None], None]) -> None:
        self._advance = advance

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        self._advance(timeout)
        return []

    def register(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:  # noqa: ARG002
        raise RuntimeError(NO_IO)

    def unregister(self, fileobj: Any) -> selectors.SelectorKey:
        raise KeyError(fileobj)

    def get_map(self) -> Mapping[Any, selectors.SelectorKey]:
        return {}


class VirtualClockLoop(asyncio.SelectorEventLoop):
    """An event loop in virtual time, from 0."""

    def __init__(self) -> None:
        self._now = 0.0
        self._asked: Callable[[], object] | None = None
        self._thread = threading.get_ident()
        super().__init__(_NoSelector(self._advance))

    def time(self) -> float:
        """Virtual seconds since the loop was made."""
        return self._now

    def ask(self, callback: Callable[[], object]) -> None:
        """Call `callback` on the loop at its next pass, from any thread; takes the place of one asked for before."""
        self._asked = callback

    def _advance(self, timeout: float | None) -> None:
        if self._asked is not None:
            asked, self._asked = self._asked, None
            asked()
        elif timeout is None:
            raise Deadlock(self._waiting())
        elif timeout > 0 and (scheduled := self._scheduled):  # type: ignore[attr-defined]
            self._now = max(self._now, scheduled[0].when())
        self._now += TICK

    def _waiting(self) -> str:
        tasks = sorted(asyncio.all_tasks(self), key=lambda task: task.get_name())
        lines = [f"  {task.get_name()}: {_where(task)}" for task in tasks[:SHOWN]]
        more = [f"  and {len(tasks) - SHOWN} more"] if len(tasks) > SHOWN else []
        return "virtual time stands still, these tasks wait for what never comes:\n" + "\n".join(lines + more)

    # -- what does not exist here -------------------------------------------------------------------------

    def _make_self_pipe(self) -> None: ...

    def _close_self_pipe(self) -> None: ...

    def _write_to_self(self) -> None: ...

    def run_forever(self) -> None:
        """Run until stopped, in this thread."""
        self._thread = threading.get_ident()
        super().run_forever()

    def call_soon_threadsafe(self, callback: Any, *args: Any, context: Any = None) -> asyncio.Handle:  # type: ignore[override]
        """As `call_soon`; refused from another thread: it would come at another moment in every run."""
        if threading.get_ident() != self._thread:
            raise RuntimeError(
                "a virtual run hears no other thread: what it says would come at another moment each time"
            )
        return self.call_soon(callback, *args, context=context)

    def run_in_executor(self, *_: Any, **__: Any) -> Any:  # type: ignore[override]
        """Refuse: time would jump ahead of the thread."""
        raise RuntimeError(NO_THREADS)

    async def getaddrinfo(self, *_: Any, **__: Any) -> NoReturn:
        """Refuse: names are looked up on the network."""
        raise RuntimeError(NO_IO)

    async def getnameinfo(self, *_: Any, **__: Any) -> NoReturn:
        """Refuse: names are looked up on the network."""
        raise RuntimeError(NO_IO)

    async def create_connection(self, *_: Any, **__: Any) -> NoReturn:
        """Refuse: a connection is real."""
        raise RuntimeError(NO_IO)

    async def create_datagram_endpoint(self, *_: Any, **__: Any) -> NoReturn:
        """Refuse: a socket is real."""
        raise RuntimeError(NO_IO)

    async def create_unix_connection(self, *_: Any, **__: Any) -> NoReturn:
        """Refuse: a connection is real."""
        raise RuntimeError(NO_IO)

    async def subprocess_exec(self, *_: Any, **__: Any) -> NoReturn:
        """Refuse: time would jump ahead of the process."""
        raise RuntimeError(NO_PROCESSES)

    async def subprocess_shell(self, *_: Any, **__: Any) -> NoReturn:
        """Refuse: time would jump ahead of the process."""
        raise RuntimeError(NO_PROCESSES)


def _where(task: asyncio.Task[Any]) -> str:
    """The coroutines a task waits in, outermost first, and for what: its own frame alone says little."""
    coro, names, line = task.get_coro(), [], 0
    others: dict[str, Any] = {}
    while (frame := getattr(coro, "cr_frame", None)) is not None:
        names.append(frame.f_code.co_qualname)
        others = frame.f_locals
        line, coro = frame.f_lineno, coro.cr_await  # type: ignore[union-attr]
    where = f"{' > '.join(names)}, line {line}" if names else repr(coro)
    awaited = [each.get_name() for each in _awaited(task, others) if not each.done()]
    return f"{where}, waits for {', '.join(sorted(awaited)[:SHOWN])}" if awaited else where


def _awaited(task: asyncio.Task[Any], innermost: Mapping[str, Any]) -> Iterator[asyncio.Task[Any]]:
    """The tasks a task waits for: one itself, those of a gather, or those of `asyncio.wait` or a TaskGroup."""
    future = getattr(task, "_fut_waiter", None)
    group = getattr(innermost.get("self"), "_tasks", ())
    candidates: Iterable[Any] = (future, *getattr(future, "_children", ()), *_some(innermost.get("fs")), *_some(group))
    return (each for each in candidates if isinstance(each, asyncio.Task))


def _some(things: object) -> Iterable[Any]:
    return things if isinstance(things, set | frozenset | list | tuple) else ()


def run_virtual(main: Callable[[], Awaitable[T]]) -> T:
    """Run `main()` in virtual time on a fresh loop in this thread, which must have no running loop."""

    async def entry() -> T:
        return await main()

    with asyncio.Runner(loop_factory=VirtualClockLoop) as runner:
        return runner.run(entry())


def wall_offset() -> float:
    """Seconds to add to the running loop's time to get Unix time (a fixed epoch in virtual runs)."""
    loop = asyncio.get_running_loop()
    if isinstance(loop, VirtualClockLoop):
        return EPOCH
    return time.time() - loop.time()


class Stopwatch:
    """Adds up seconds of the running loop's time: `with watch: await …`; not to be entered twice at once."""

    def __init__(self) -> None:
        self._before = 0.0
        self._since: float | None = None

    def __enter__(self) -> None:
        self._since = asyncio.get_running_loop().time()

    def __exit__(self, *_: object) -> None:
        self._before, self._since = self.seconds, None

    @property
    def seconds(self) -> float:
        """Seconds so far, those of the time that runs included."""
        if self._since is None:
            return self._before
        return self._before + asyncio.get_running_loop().time() - self._since


def cpu_seconds() -> float | None:
    """Seconds that this thread has computed so far; None in virtual time, where that means nothing."""
    if isinstance(asyncio.get_running_loop(), VirtualClockLoop):
        return None
    return time.thread_time()
