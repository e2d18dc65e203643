"""A virtual run on a thread of its own, seen from a loop in real time."""

import asyncio
import threading
import time

import pytest

from llmlab.clock import Deadlock, VirtualClockLoop, run_virtual
from llmlab.offstage import Offstage


async def an_hour() -> float:
    for _ in range(3600):
        await asyncio.sleep(1)
    return asyncio.get_running_loop().time()


def test_a_simulated_hour_passes_while_the_loop_that_asked_goes_on() -> None:
    async def main() -> tuple[float, int]:
        ticks = 0

        async def tick() -> None:
            nonlocal ticks
            while True:
                await asyncio.sleep(0)
                ticks += 1

        ticking = asyncio.create_task(tick())
        hour = await Offstage(an_hour).wait()
        ticking.cancel()
        return hour, ticks

    began = time.perf_counter()
    hour, ticks = asyncio.run(main())
    assert 3600 <= hour < 3601
    assert time.perf_counter() - began < 30
    assert ticks > 10


def test_it_runs_on_a_thread_and_a_virtual_loop_of_its_own() -> None:
    async def where() -> tuple[int, bool]:
        return threading.get_ident(), isinstance(asyncio.get_running_loop(), VirtualClockLoop)

    async def main() -> tuple[int, bool]:
        return await Offstage(where).wait()

    thread, virtual = asyncio.run(main())
    assert thread != threading.get_ident()
    assert virtual


def test_what_it_raises_comes_out() -> None:
    async def fails() -> None:
        raise LookupError("gone")

    async def main() -> None:
        with pytest.raises(LookupError, match="gone"):
            await Offstage(fails).wait()

    asyncio.run(main())


def test_a_deadlock_comes_out() -> None:
    async def stuck() -> None:
        await asyncio.Event().wait()

    async def main() -> None:
        with pytest.raises(Deadlock, match=r"Event\.wait"):
            await Offstage(stuck).wait()

    asyncio.run(main())


def test_who_is_cancelled_cancels_the_run_and_waits_for_its_end() -> None:
    cleaned: list[bool] = []

    async def for_ever() -> None:
        try:
            for _ in range(10**9):
                await asyncio.sleep(1)
        finally:
            await asyncio.sleep(5)
            cleaned.append(True)

    async def main() -> None:
        waiting = asyncio.create_task(Offstage(for_ever).wait())
        await asyncio.sleep(0.01)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert cleaned == [True]

    asyncio.run(main())


def test_it_can_be_cancelled_before_it_has_begun() -> None:
    async def main() -> None:
        stage = Offstage(an_hour)
        stage.cancel()
        with pytest.raises(asyncio.CancelledError):
            await stage.wait()

    asyncio.run(main())


def test_a_run_that_stands_still_can_be_cancelled() -> None:
    """Between two passes there is none that looks: the one that finds nothing to do hears the wish first."""

    async def stubborn() -> None:
        while True:
            try:
                await asyncio.sleep(3600)
            except asyncio.CancelledError:
                return

    async def main() -> None:
        stage = Offstage(stubborn)
        await asyncio.sleep(0.01)
        stage.cancel()
        await stage.wait()

    asyncio.run(main())


def test_a_virtual_run_inside_a_virtual_run_is_refused() -> None:
    async def main() -> None:
        with pytest.raises(RuntimeError, match="virtual run already"):
            await Offstage(an_hour).wait()

    run_virtual(main)
