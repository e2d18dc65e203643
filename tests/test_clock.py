import asyncio
import heapq
import random
import socket
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmlab.clock import EPOCH, TICK, Deadlock, VirtualClockLoop, run_virtual, wall_offset

NEAR = 0.01
"""Seconds that the virtual microsecond of each pass may add up to in these small programs."""


def now() -> float:
    return asyncio.get_running_loop().time()


# -- time -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seconds", [0.001, 1.0, 3600.0, 7 * 86_400.0])
def test_a_sleep_lasts_as_long_as_it_says(seconds: float) -> None:
    async def main() -> float:
        await asyncio.sleep(seconds)
        return now()

    assert run_virtual(main) == pytest.approx(seconds, abs=NEAR)


def test_time_begins_at_zero_in_every_run() -> None:
    async def main() -> float:
        began = now()
        await asyncio.sleep(5)
        return began

    assert [run_virtual(main) < NEAR for _ in range(3)] == [True] * 3


def test_a_simulated_hour_of_work_is_over_at_once() -> None:
    async def worker() -> None:
        for _ in range(360):
            await asyncio.sleep(10)

    async def main() -> float:
        await asyncio.gather(*(worker() for _ in range(10)))
        return now()

    began = time.perf_counter()
    assert run_virtual(main) == pytest.approx(3600, abs=1)
    assert time.perf_counter() - began < 5


def test_timers_fire_in_the_order_of_their_times() -> None:
    async def main() -> list[float]:
        order: list[float] = []

        async def one(seconds: float) -> None:
            await asyncio.sleep(seconds)
            order.append(seconds)

        await asyncio.gather(*(one(seconds) for seconds in (3, 0.5, 100_000, 2, 1)))
        return order

    assert run_virtual(main) == [0.5, 1, 2, 3, 100_000]


def test_a_cancelled_timer_does_not_move_time() -> None:
    async def main() -> float:
        asyncio.get_running_loop().call_later(1000, print).cancel()
        await asyncio.sleep(1)
        return now()

    assert run_virtual(main) == pytest.approx(1, abs=NEAR)


def workload(seed: int) -> Callable[[], Awaitable[Any]]:
    """A program with all kinds of waiting, that notes when what happened."""

    async def main() -> list[tuple[int, str, float]]:
        rng, notes = random.Random(seed), []
        gate, queue = asyncio.Semaphore(3), asyncio.Queue[int](2)

        async def work(n: int) -> None:
            async with gate:
                try:
                    async with asyncio.timeout(rng.uniform(0.5, 2)):
                        await asyncio.sleep(rng.expovariate(1))
                    await queue.put(n)
                    notes.append((n, "done", now()))
                except TimeoutError:
                    notes.append((n, "late", now()))

        async def drain() -> None:
            while True:
                await asyncio.sleep(0.2)
                await queue.get()

        drainer = asyncio.create_task(drain())
        await asyncio.gather(*(work(n) for n in range(60)))
        drainer.cancel()
        return notes

    return main


@pytest.mark.parametrize("seed", range(5))
def test_the_same_program_has_the_same_times_to_the_last_digit(seed: int) -> None:
    first, second = (run_virtual(workload(seed)) for _ in range(2))
    assert first == second


def test_another_seed_has_other_times() -> None:
    assert run_virtual(workload(1)) != run_virtual(workload(2))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(0.01, 100), min_size=1, max_size=40), st.integers(1, 6))
def test_a_queue_for_some_servers_takes_as_long_as_arithmetic_says(services: list[float], servers: int) -> None:
    """The same queue as a heap of the moments at which a server is free."""

    async def main() -> list[float]:
        gate, ends = asyncio.Semaphore(servers), [0.0] * len(services)

        async def serve(n: int) -> None:
            async with gate:
                await asyncio.sleep(services[n])
                ends[n] = now()

        await asyncio.gather(*(serve(n) for n in range(len(services))))
        return ends

    free, expected = [0.0] * servers, []
    for service in services:
        end = heapq.heappop(free) + service
        heapq.heappush(free, end)
        expected.append(end)
    # Ends closer together than the microsecond a pass costs may fall on one pass and change who goes next.
    assert sorted(run_virtual(main)) == pytest.approx(sorted(expected), abs=NEAR)


# -- asyncio works ----------------------------------------------------------------------------------------


def test_a_timeout_ends_what_takes_too_long() -> None:
    async def main() -> float:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(30):
                await asyncio.sleep(1000)
        return now()

    assert run_virtual(main) == pytest.approx(30, abs=NEAR)


def test_a_task_group_cancels_the_others_when_one_fails() -> None:
    async def fail() -> None:
        await asyncio.sleep(2)
        raise ValueError("boom")

    async def both() -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(asyncio.sleep(1000))
            group.create_task(fail())

    async def main() -> float:
        with pytest.raises(ExceptionGroup) as raised:
            await both()
        assert raised.group_contains(ValueError, match="boom")
        return now()

    assert run_virtual(main) == pytest.approx(2, abs=NEAR)


def test_a_queue_hands_over_between_a_slow_and_a_fast_side() -> None:
    async def main() -> tuple[list[int], float]:
        queue = asyncio.Queue[int](1)
        got: list[int] = []

        async def produce() -> None:
            for n in range(5):
                await queue.put(n)

        async def consume() -> None:
            for _ in range(5):
                await asyncio.sleep(10)
                got.append(await queue.get())

        await asyncio.gather(produce(), consume())
        return got, now()

    got, took = run_virtual(main)
    assert got == [0, 1, 2, 3, 4]
    assert took == pytest.approx(50, abs=NEAR)


def test_an_event_wakes_all_who_wait_at_the_moment_it_is_set() -> None:
    async def main() -> list[float]:
        event = asyncio.Event()

        async def wait() -> float:
            await event.wait()
            return now()

        waiting = [asyncio.create_task(wait()) for _ in range(3)]
        await asyncio.sleep(7)
        event.set()
        return list(await asyncio.gather(*waiting))

    assert run_virtual(main) == pytest.approx([7, 7, 7], abs=NEAR)


def test_wait_for_as_completed_and_shield_keep_time() -> None:
    async def main() -> list[float]:
        first = await next(iter(asyncio.as_completed([asyncio.sleep(n, n) for n in (3, 1, 2)])))
        task = asyncio.create_task(asyncio.sleep(10))
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.shield(task), 4)
        at = now()
        await task
        return [first, at, now()]

    assert run_virtual(main) == pytest.approx([1, 5, 11], abs=NEAR)


def test_what_main_raises_comes_out() -> None:
    async def main() -> None:
        await asyncio.sleep(1)
        raise OSError("disk gone")

    with pytest.raises(OSError, match="disk gone"):
        run_virtual(main)


def test_tasks_left_behind_are_cancelled_and_generators_closed() -> None:
    closed: list[str] = []

    async def left() -> None:
        try:
            await asyncio.sleep(1000)
        finally:
            closed.append("task")

    async def numbers() -> AsyncIterator[int]:
        try:
            while True:
                yield 1
        finally:
            await asyncio.sleep(1)
            closed.append("generator")

    generator = numbers()

    async def main() -> None:
        task = asyncio.create_task(left(), name="left")
        await anext(generator)
        assert not task.done()

    run_virtual(main)
    assert sorted(closed) == ["generator", "task"]


# -- time never stands still ------------------------------------------------------------------------------


@pytest.mark.parametrize("step", [1e-15, 1e-12, 1e-9, 0.0, -1.0])
@pytest.mark.parametrize("already", [0.0, 86_400.0, 1e6])
def test_a_timer_re_armed_at_almost_now_still_gets_there(step: float, already: float) -> None:
    """A limiter that waits for what rounding has left of its debt: `now + 1e-15` is `now`."""

    async def main() -> int:
        await asyncio.sleep(already)
        loop, passes = asyncio.get_running_loop(), 0
        due, done = now() + 0.001, asyncio.Event()

        def again() -> None:
            nonlocal passes
            passes += 1
            if loop.time() >= due:
                done.set()
            else:
                loop.call_at(loop.time() + step, again)

        again()
        await done.wait()
        return passes

    assert run_virtual(main) <= 0.001 / TICK + 2


def test_polling_without_sleeping_moves_time() -> None:
    async def main() -> int:
        passes = 0
        while now() < 100 * TICK:
            passes += 1
            await asyncio.sleep(0)
        return passes

    assert run_virtual(main) <= 101


# -- what would wait for ever -----------------------------------------------------------------------------


async def stuck_in_the_middle() -> None:
    await asyncio.Event().wait()


def test_a_deadlock_names_what_waits_and_where() -> None:
    async def main() -> None:
        blocked = asyncio.create_task(asyncio.Queue[int]().get(), name="consumer")
        await asyncio.sleep(1)
        await stuck_in_the_middle()
        await blocked

    with pytest.raises(Deadlock) as raised:
        run_virtual(main)
    said = str(raised.value)
    assert "consumer: Queue.get, line " in said
    assert "main > stuck_in_the_middle > Event.wait, line " in said


def test_a_deadlock_says_which_task_waits_for_which() -> None:
    async def never() -> None:
        await asyncio.Event().wait()

    async def main() -> None:
        async with asyncio.TaskGroup() as group:
            last = group.create_task(never(), name="last")
            group.create_task(asyncio.wait([last]), name="waiter")
            group.create_task(outer(last), name="gatherer")
            await last

    async def outer(last: asyncio.Task[None]) -> None:
        await asyncio.gather(last)

    with pytest.raises(Deadlock) as raised:
        run_virtual(main)
    said = {line.split(":")[0].strip(): line for line in str(raised.value).splitlines()[1:]}
    assert "Event.wait, line" in said["last"]
    assert said["waiter"].endswith(", waits for last")
    assert said["gatherer"].endswith(", waits for last")
    assert sum(line.endswith(", waits for last") for line in said.values()) == 3, "and main itself"


def test_a_deadlock_of_many_names_some() -> None:
    async def main() -> None:
        await asyncio.gather(*(asyncio.Event().wait() for _ in range(1000)))

    with pytest.raises(Deadlock) as raised:
        run_virtual(main)
    assert 10 < len(str(raised.value).splitlines()) < 30


def test_a_deadlock_is_left_by_the_way_of_cancellation() -> None:
    cleaned: list[str] = []

    async def main() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            cleaned.append("main")

    with pytest.raises(Deadlock):
        run_virtual(main)
    assert cleaned == ["main"]


def test_a_timer_far_away_is_no_deadlock() -> None:
    async def main() -> bool:
        event = asyncio.Event()
        asyncio.get_running_loop().call_later(1e7, event.set)
        return await event.wait()

    assert run_virtual(main)


# -- what a virtual run refuses ---------------------------------------------------------------------------


def test_threads_are_refused() -> None:
    async def main() -> None:
        with pytest.raises(RuntimeError, match="uses no threads"):
            await asyncio.to_thread(time.sleep, 0)
        with pytest.raises(RuntimeError, match="uses no threads"):
            asyncio.get_running_loop().run_in_executor(None, time.sleep, 0)

    before = threading.active_count()
    run_virtual(main)
    assert threading.active_count() == before


def test_looking_up_a_host_is_refused() -> None:
    async def main() -> None:
        with pytest.raises(RuntimeError, match="does no real I/O"):
            await asyncio.open_connection("localhost", 9)

    run_virtual(main)


def test_sockets_are_refused() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        here, there = socket.socketpair()
        with here, there:
            here.setblocking(False)  # noqa: FBT003
            with pytest.raises(RuntimeError, match="does no real I/O: use the simulated provider"):
                await loop.sock_recv(here, 1)
            with pytest.raises(RuntimeError, match="does no real I/O"):
                loop.add_reader(here, print)

    run_virtual(main)


@pytest.mark.parametrize(
    ("refused", "why"),
    [
        (lambda loop: loop.create_connection(asyncio.Protocol, "127.0.0.1", 9), "no real I/O"),
        (lambda loop: loop.create_unix_connection(asyncio.Protocol, "/nowhere"), "no real I/O"),
        (lambda loop: loop.create_datagram_endpoint(asyncio.DatagramProtocol, ("127.0.0.1", 9)), "no real I/O"),
        (lambda loop: loop.getaddrinfo("localhost", 80), "no real I/O"),
        (lambda loop: loop.getnameinfo(("127.0.0.1", 80)), "no real I/O"),
        (lambda _: asyncio.create_subprocess_exec("true"), "starts no processes"),
        (lambda _: asyncio.create_subprocess_shell("true"), "starts no processes"),
    ],
)
def test_what_happens_outside_of_the_loop_is_refused(refused: Callable[[Any], Any], why: str) -> None:
    async def main() -> None:
        with pytest.raises(RuntimeError, match=why):
            await refused(asyncio.get_running_loop())

    run_virtual(main)


def test_another_thread_is_not_heard() -> None:
    said: list[str] = []

    def other(loop: asyncio.AbstractEventLoop) -> None:
        try:
            loop.call_soon_threadsafe(print)
        except RuntimeError as error:
            said.append(str(error))

    async def main() -> None:
        loop = asyncio.get_running_loop()
        thread = threading.Thread(target=other, args=(loop,))
        thread.start()
        thread.join()
        heard = asyncio.Event()
        loop.call_soon_threadsafe(heard.set)  # its own thread is
        await heard.wait()

    run_virtual(main)
    assert "hears no other thread" in said[0]


def test_there_is_nothing_to_take_away_from_a_loop_without_files() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        assert not loop.remove_reader(0)
        assert not loop.remove_writer(0)
        with pytest.raises(KeyError):
            loop._selector.unregister(0)  # type: ignore[attr-defined]

    run_virtual(main)


def test_a_server_is_refused() -> None:
    async def main() -> None:
        with socket.socket() as listening:
            listening.bind(("127.0.0.1", 0))
            with pytest.raises(RuntimeError, match="does no real I/O"):
                await asyncio.start_server(lambda *_: None, sock=listening)

    run_virtual(main)


# -- wall time --------------------------------------------------------------------------------------------


def test_the_wall_clock_of_a_virtual_run_is_the_same_in_every_run() -> None:
    async def main() -> float:
        await asyncio.sleep(3)
        return now() + wall_offset()

    first, second = run_virtual(main), run_virtual(main)
    assert first == second == pytest.approx(EPOCH + 3, abs=NEAR)


def test_the_wall_clock_of_a_real_run_is_the_real_one() -> None:
    async def main() -> float:
        return now() + wall_offset()

    assert asyncio.run(main()) == pytest.approx(time.time(), abs=2)


def test_the_epoch_is_the_start_of_2026() -> None:
    assert time.gmtime(EPOCH)[:6] == (2026, 1, 1, 0, 0, 0)


def test_a_virtual_loop_is_closed_like_any_other() -> None:
    loop = VirtualClockLoop()
    loop.run_until_complete(asyncio.sleep(1))
    loop.close()
    assert loop.is_closed()
