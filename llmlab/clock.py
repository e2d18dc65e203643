"""Virtual time: an event loop whose clock jumps to the next timer instead of waiting for it.

The engine reads `loop.time()` and sleeps with asyncio only, so the very same code runs a simulated hour in
seconds. The loop does no real I/O, and a call from another thread does not wake it. With nothing ready and no
timer armed it would wait for ever; it raises `Deadlock` and names the tasks that wait. Each pass costs one virtual
microsecond: a limiter that re-arms its timer at `now + 1e-15` would otherwise never see time move.
"""

import asyncio
import selectors
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeVar

T = TypeVar("T")

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
        raise RuntimeError("a virtual run does no real I/O: use the simulated provider's transport")

    def unregister(self, fileobj: Any) -> selectors.SelectorKey:
        raise KeyError(fileobj)

    def get_map(self) -> Mapping[Any, selectors.SelectorKey]:
        return {}


class VirtualClockLoop(asyncio.SelectorEventLoop):
    """An event loop in virtual time, from 0."""

    def __init__(self) -> None:
        self._now = 0.0
        super().__init__(_NoSelector(self._advance))

    def time(self) -> float:
        """Virtual seconds since the loop was made."""
        return self._now

    def _advance(self, timeout: float | None) -> None:
        if timeout is None:
            raise Deadlock(self._waiting())
        scheduled = self._scheduled  # type: ignore[attr-defined]
        if timeout > 0 and scheduled:
            self._now = max(self._now, scheduled[0].when())
        self._now += TICK

    def _waiting(self) -> str:
        tasks = sorted(asyncio.all_tasks(self), key=lambda task: task.get_name())
        lines = [f"  {task.get_name()}: {_where(task)}" for task in tasks[:20]]
        return "virtual time stands still, these tasks wait for what never comes:\n" + "\n".join(lines)

    def _make_self_pipe(self) -> None: ...

    def _close_self_pipe(self) -> None: ...

    def _write_to_self(self) -> None: ...

    def run_in_executor(self, *_: Any, **__: Any) -> Any:  # type: ignore[override]
        """Refuse: time would jump ahead of the thread."""
        raise RuntimeError("a virtual run uses no threads: time would jump ahead of them")


def _where(task: asyncio.Task[Any]) -> str:
    """The coroutines a task waits in, outermost first: its own frame alone says little."""
    coro, names, line = task.get_coro(), [], 0
    while (frame := getattr(coro, "cr_frame", None)) is not None:
        names.append(frame.f_code.co_qualname)
        line, coro = frame.f_lineno, coro.cr_await  # type: ignore[union-attr]
    return f"{' > '.join(names)}, line {line}" if names else repr(coro)


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


def cpu_seconds() -> float | None:
    """Seconds that this thread has computed so far; None in virtual time, where that means nothing."""
    if isinstance(asyncio.get_running_loop(), VirtualClockLoop):
        return None
    return time.thread_time()
