import asyncio
import gc
import signal
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from llmlab.frame import read_rows
from llmlab.job import Job
from llmlab.load import Ground
from llmlab.loops import Home, running_loop, sigint_guard
from llmlab.order import Order
from llmlab.strategy import Strategy
from tests.conftest import reply


async def where() -> tuple[asyncio.AbstractEventLoop, threading.Thread]:
    return asyncio.get_running_loop(), threading.current_thread()


def test_without_a_loop_a_home_runs_one_of_its_own_and_keeps_it() -> None:
    home = Home()
    first, second = home.run(where), home.run(where)
    assert first == second
    assert first[1] is threading.main_thread()


def test_inside_a_running_loop_an_unbound_home_is_a_thread() -> None:
    home = Home()

    async def main() -> None:
        loop, thread = home.run(where)
        assert loop is not asyncio.get_running_loop()
        assert thread is not threading.current_thread()
        assert home.run(where) == (loop, thread)

    asyncio.run(main())


REENTRY = """
import asyncio
from llmlab.loops import Home

home = Home()
ticks = []

async def tick():
    while True:
        ticks.append(1)
        await asyncio.sleep(0)

async def nested():
    for _ in range(10):
        await asyncio.sleep(0)
    return "from within"

async def main():
    home.bind()
    ticker = asyncio.create_task(tick())
    answer = home.run(nested)
    ticker.cancel()
    return answer

print(asyncio.new_event_loop().run_until_complete(main()), len(ticks) >= 10)
"""


def test_a_home_bound_to_the_running_loop_is_reentered_while_its_other_tasks_go_on() -> None:
    # In a process of its own: the patch is never undone.
    done = subprocess.run(  # noqa: S603
        [sys.executable, "-c", REENTRY], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stdout == "from within True\n", done.stderr


def test_a_home_moves_when_its_loop_is_closed() -> None:
    home = Home()

    async def main() -> bool:
        return home.bind()

    assert [asyncio.run(main()), asyncio.run(main())] == [False, True]


def test_a_home_does_not_move_from_a_loop_at_work() -> None:
    home = Home()

    async def elsewhere() -> None:
        home.bind()
        with pytest.raises(RuntimeError, match="another event loop"):
            await asyncio.to_thread(asyncio.run, bind())

    async def bind() -> None:
        home.bind()

    asyncio.run(elsewhere())


def test_a_home_leaves_no_loop_and_no_thread_behind() -> None:
    home = Home("thread")
    assert home.elsewhere
    loop, thread = home.run(where)
    del home
    gc.collect()
    thread.join(5)
    assert not thread.is_alive()
    assert loop.is_closed()


def test_an_error_comes_back_from_the_thread() -> None:
    async def fails() -> None:
        raise ZeroDivisionError("there")

    with pytest.raises(ZeroDivisionError, match="there"):
        Home("thread").run(fails)


# -- interrupts -------------------------------------------------------------------------------------------


def interrupt_soon(times: int = 1) -> None:
    loop = asyncio.get_running_loop()
    for n in range(times):
        loop.call_later(0.02 * (n + 1), signal.raise_signal, signal.SIGINT)


def never_job() -> Job[Any]:
    async def never(_: object) -> Any:
        await asyncio.Event().wait()

    strategy = Strategy.bare(concurrency=2).fresh()
    return Job(
        "test",
        Order(read_rows(["a", "b", "c"])),
        home=Home(),
        open_ground=lambda: Ground(strategy.handler(never), strategy.slots),
        finish=lambda job: job.frame,
    )


def test_an_interrupt_returns_the_partial_frame_at_once() -> None:
    async def main() -> list[str]:
        job = never_job()
        interrupt_soon()
        out = await job
        assert len(asyncio.all_tasks()) == 1
        return list(out.status)

    assert asyncio.run(main()) == ["cancelled"] * 3


def test_an_interrupt_of_a_result_without_await_does_the_same() -> None:
    job = never_job()
    timer = threading.Timer(0.1, signal.raise_signal, [signal.SIGINT])

    def interrupt() -> None:
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    timer = threading.Timer(0.1, interrupt)
    timer.start()
    assert list(job.result().status) == ["cancelled"] * 3
    timer.join()


def test_the_interrupt_handler_is_put_back() -> None:
    before = signal.getsignal(signal.SIGINT)

    async def main() -> None:
        inside = signal.getsignal(signal.SIGINT)
        with sigint_guard(lambda: None, lambda: None):
            with sigint_guard(lambda: None, lambda: None):
                assert signal.getsignal(signal.SIGINT) != inside
            assert signal.getsignal(signal.SIGINT) != inside
        assert signal.getsignal(signal.SIGINT) == inside

    asyncio.run(main())
    assert signal.getsignal(signal.SIGINT) == before


def test_runs_that_end_in_any_order_leave_no_handler_behind() -> None:
    async def main() -> None:
        inside = signal.getsignal(signal.SIGINT)
        first, second = sigint_guard(lambda: None, lambda: None), sigint_guard(lambda: None, lambda: None)
        first.__enter__()
        second.__enter__()
        first.__exit__(None, None, None)
        assert signal.getsignal(signal.SIGINT) != inside
        second.__exit__(None, None, None)
        assert signal.getsignal(signal.SIGINT) == inside

    asyncio.run(main())


def test_first_interrupt_stops_second_cancels_third_raises() -> None:
    async def main() -> list[str]:
        heard: list[str] = []
        with sigint_guard(lambda: heard.append("stop"), lambda: heard.append("cancel")):
            for _ in range(2):
                signal.raise_signal(signal.SIGINT)
            await asyncio.sleep(0)
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
        return heard

    assert asyncio.run(main()) == ["stop", "cancel"]


def test_in_a_thread_interrupts_are_left_alone() -> None:
    before = signal.getsignal(signal.SIGINT)

    async def main() -> None:
        with sigint_guard(lambda: None, lambda: None):
            assert signal.getsignal(signal.SIGINT) == before

    thread = threading.Thread(target=asyncio.run, args=(main(),))
    thread.start()
    thread.join()


def test_running_loop_says_whether_one_runs_here() -> None:
    assert running_loop() is None

    async def main() -> bool:
        return running_loop() is asyncio.get_running_loop()

    assert asyncio.run(main())


_: Callable[[], Awaitable[object]] = where


# -- several threads --------------------------------------------------------------------------------------


def answering_job(home: Home, seconds: float = 0.01) -> Job[Any]:
    async def answer(_: object) -> Any:
        await asyncio.sleep(seconds)
        return reply()

    strategy = Strategy.bare(concurrency=2).fresh()
    return Job(
        "test",
        Order(read_rows(["a", "b"])),
        home=home,
        open_ground=lambda: (home.bind(), Ground(strategy.handler(answer), strategy.slots))[1],
        finish=lambda job: list(job.frame.status),
    )


@pytest.mark.parametrize("where", ["caller", "thread"])
def test_results_may_be_asked_for_from_many_threads(where: Any) -> None:
    for _ in range(10):
        home = Home(where)
        with ThreadPoolExecutor(8) as pool:
            results = list(pool.map(lambda _, home=home: answering_job(home).result(), range(16), timeout=20))
        assert results == [["ok", "ok"]] * 16


def test_a_thread_that_asks_while_the_main_thread_runs_the_loop_is_served_to_the_end() -> None:
    home = Home()
    box: list[Any] = []
    second = threading.Timer(0.05, lambda: box.append(answering_job(home, 0.2).result()))
    second.start()
    assert answering_job(home, 0.1).result() == ["ok", "ok"]
    second.join(5)
    assert box == [["ok", "ok"]]


def test_a_result_in_a_script_and_then_inside_an_async_function() -> None:
    home = Home()

    async def main() -> Any:
        return answering_job(home).result()

    assert answering_job(home).result() == asyncio.run(main()) == ["ok", "ok"]


def test_work_moves_to_the_loop_that_runs_now() -> None:
    home = Home()
    moved: list[bool] = []

    async def note() -> None:
        moved.append(home.bind())

    asyncio.run(note())
    home.run(note)
    home.run(note)
    asyncio.run(note())
    assert moved == [False, True, False, True]


# -- interrupts, continued --------------------------------------------------------------------------------

INTERRUPTED = """
import asyncio, os, signal, sys, threading, time
import httpx, llmlab

class Never(httpx.AsyncBaseTransport):
    async def handle_async_request(self, request):
        await asyncio.Event().wait()

times, how, where = int(sys.argv[1]), sys.argv[2], sys.argv[3]
lab = llmlab.Lab("openai:m", api_key="k", transport=Never(), loop=where)

def interrupt():
    for _ in range(times):
        time.sleep(0.3)
        os.kill(os.getpid(), signal.SIGINT)

async def main():
    return await lab.run_many(["a", "b", "c"])

threading.Timer(0.3, interrupt).start()
out = lab.run_many(["a", "b", "c"]).result() if how == "result" else asyncio.run(main())
print(out.status.tolist())
"""


@pytest.mark.parametrize("where", ["caller", "thread"])
@pytest.mark.parametrize("how", ["result", "await"])
def test_ctrl_c_in_a_script_gives_the_partial_frame(how: str, where: str) -> None:
    done = subprocess.run(  # noqa: S603
        [sys.executable, "-c", INTERRUPTED, "1", how, where], capture_output=True, text=True, timeout=30, check=False
    )
    assert done.stdout == "['cancelled', 'cancelled', 'cancelled']\n", done.stderr


def test_ctrl_c_while_one_prompt_is_answered_is_a_keyboard_interrupt() -> None:
    code = INTERRUPTED.replace('lab.run_many(["a", "b", "c"]).result()', 'lab.run("a").result()')
    done = subprocess.run(  # noqa: S603
        [sys.executable, "-c", code, "1", "result", "caller"], capture_output=True, text=True, timeout=30, check=False
    )
    assert done.stderr.rstrip().endswith("KeyboardInterrupt")


def test_a_keyboard_interrupt_out_of_a_task_leaves_no_handler_and_no_frozen_heap() -> None:
    before = signal.getsignal(signal.SIGINT)

    def source() -> Any:
        yield "a"
        raise KeyboardInterrupt

    async def never(_: object) -> Any:
        await asyncio.Event().wait()

    strategy = Strategy.bare().fresh()
    job: Job[Any] = Job(
        "test",
        Order(read_rows(source())),
        home=Home(),
        open_ground=lambda: Ground(strategy.handler(never), strategy.slots),
        finish=lambda job: job.frame,
    )
    with pytest.raises(KeyboardInterrupt):
        job.result()
    assert signal.getsignal(signal.SIGINT) == before
    assert gc.get_freeze_count() == 0
