import asyncio
import gc
import random
import threading
from collections.abc import Callable
from typing import Any

import httpx
import pytest

import llmlab
from llmlab.clock import run_virtual
from llmlab.errors import LabClosed, QueueFull
from llmlab.sim import Physics, Simulator
from llmlab.strategy import Strategy
from llmlab.types import Reply

ANSWER = {
    "model": "m",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "yes"}, "finish_reason": "stop"}],
}


class Door(httpx.AsyncBaseTransport):
    """Says when a request has come, and answers when it is opened; both from any thread."""

    def __init__(self, *, is_open: bool = True) -> None:
        self.came = threading.Semaphore(0)
        self.threads: list[str] = []
        self._open = threading.Event()
        if is_open:
            self._open.set()

    def open(self) -> None:
        self._open.set()

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        self.threads.append(threading.current_thread().name)
        self.came.release()
        await asyncio.get_running_loop().run_in_executor(None, self._open.wait)
        return httpx.Response(200, json=ANSWER, request=request)


def lab_of(transport: httpx.AsyncBaseTransport, **options: Any) -> llmlab.Lab:
    return llmlab.Lab("openai:m", api_key="k", transport=transport, **options)


def slow(seconds: float = 1.0, **options: Any) -> llmlab.Lab:
    """A lab whose answers take so many seconds each."""
    physics = Physics(rtt=0, ttft=seconds, itl=0, load=0, prefill=1e9, jitter=0)
    return llmlab.Lab("openai:m", transport=Simulator(physics=physics), seed=1, **options)


# -- beginning --------------------------------------------------------------------------------------------


def test_it_returns_a_job_at_once_and_begins_without_being_awaited() -> None:
    async def main() -> tuple[bool, Reply]:
        job = slow().submit("Hello")
        before = job.done
        await asyncio.sleep(2)  # as between two cells
        assert job.done
        return before, await job

    before, reply = run_virtual(main)
    assert not before
    assert reply.finish_reason == "stop"


def test_in_a_script_without_a_loop_it_begins_in_the_background() -> None:
    door = Door(is_open=False)
    job = lab_of(door).submit("Hello")
    assert door.came.acquire(timeout=10), "nobody waits for it, and yet it was sent"
    assert not job.done
    door.open()
    assert job.result().content == "yes"
    assert door.threads == ["llmlab-loop"]


def test_it_does_so_after_a_result_too() -> None:
    door = Door()
    lab = lab_of(door)
    assert lab.run("First").result().content == "yes"
    lab.submit("Second")
    assert door.came.acquire(timeout=10)
    assert door.came.acquire(timeout=10)
    assert lab.run("Third").result().content == "yes"


def test_with_a_thread_of_its_own_it_begins_there() -> None:
    door = Door()
    lab = lab_of(door, loop="thread")

    async def main() -> Reply:
        job = lab.submit("Hello")
        await asyncio.to_thread(door.came.acquire, timeout=10)
        return await job

    assert asyncio.run(main()).content == "yes"
    assert door.threads == ["llmlab-loop"]


def test_another_thread_submits_to_the_loop_at_work() -> None:
    door = Door()

    async def main() -> Reply:
        lab = lab_of(door)
        await lab.run("First")
        job = await asyncio.to_thread(lab.submit, "Second")
        assert (await asyncio.to_thread(job.result)).content == "yes"
        return await job

    assert asyncio.run(main()).content == "yes"
    assert set(door.threads) == {threading.current_thread().name}


def test_what_another_thread_submits_to_the_loop_of_a_result_is_done_before_that_returns() -> None:
    door, jobs = Door(is_open=False), list[Any]()
    lab = lab_of(door)

    def help_out() -> None:
        door.came.acquire(timeout=10)  # the first is at work in the main thread
        jobs.append(lab.submit("Second"))
        door.came.acquire(timeout=10)
        door.open()

    helper = threading.Thread(target=help_out)
    helper.start()
    lab.run("First").result()
    helper.join(timeout=10)
    assert [job.done for job in jobs] == [True]


def test_several_asyncio_runs_in_a_row_may_submit() -> None:
    door = Door()
    lab = lab_of(door)

    async def main() -> Reply:
        return await lab.submit("Hello")

    assert [asyncio.run(main()).content for _ in range(2)] == ["yes", "yes"]


def test_nobody_need_hold_the_job() -> None:
    door = Door(is_open=False)
    lab = lab_of(door)
    lab.submit("Hello")
    assert door.came.acquire(timeout=10)
    gc.collect()
    door.open()
    lab.close()
    assert lab.last is not None
    assert lab.last.progress.now.done == 1


# -- the bound --------------------------------------------------------------------------------------------


def test_the_queue_is_bounded_and_who_was_taken_is_answered() -> None:
    async def main() -> tuple[list[Any], int]:
        lab, taken, refused = slow(concurrency=4, queue=10), list[Any](), 0
        for n in range(30):  # faster than any of them begins
            try:
                taken.append(lab.submit(f"Question {n}"))
            except QueueFull:
                refused += 1
        return await asyncio.gather(*taken), refused

    replies, refused = run_virtual(main)
    assert (len(replies), refused) == (14, 16), "four at work and ten in line"


def test_there_is_room_again_when_some_have_gone() -> None:
    async def main() -> int:
        lab = slow(concurrency=2, queue=3)
        jobs = [lab.submit(f"Question {n}") for n in range(5)]
        await asyncio.sleep(0.5)
        with pytest.raises(QueueFull):
            lab.submit("too many")
        await asyncio.sleep(1)
        jobs.append(lab.submit("late"))
        return len(await asyncio.gather(*jobs))

    assert run_virtual(main) == 6


def test_rows_of_a_batch_in_line_take_up_room_and_a_full_queue_may_show_only_there() -> None:
    async def main() -> list[str]:
        lab = slow(concurrency=4, queue=5, rpm=60)  # the rate holds back what the slots would let go
        await asyncio.gather(*(lab.run(f"Warm {n}") for n in range(4)))
        jobs = [lab.submit(f"Question {n}") for n in range(9)]
        ends = await asyncio.gather(*jobs, return_exceptions=True)
        return [type(each).__name__ for each in ends]

    ends = run_virtual(main)
    assert set(ends) <= {"Reply", "QueueFull"}
    assert ends.count("Reply") >= 5


def test_one_cancelled_before_it_began_leaves_its_room() -> None:
    async def main() -> int:
        lab = slow(concurrency=1, queue=1)
        for _ in range(20):
            job = lab.submit("Hello")
            job.cancel()
            await asyncio.gather(job, return_exceptions=True)
        return len(await asyncio.gather(lab.submit("one"), lab.submit("two")))

    assert run_virtual(main) == 2


def test_a_bad_prompt_or_priority_is_refused_before_anything_is_queued() -> None:
    with pytest.raises(TypeError, match="priority"):
        llmlab.Lab().submit("Hello", priority="high")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="missing"):
        llmlab.Lab().submit(None)  # type: ignore[arg-type]


def test_priorities_decide_who_goes_next() -> None:
    async def main() -> list[int]:
        lab, order = slow(concurrency=1), list[int]()
        first = lab.submit("at work")
        await asyncio.sleep(0.5)

        async def ask(priority: int) -> None:
            await lab.submit(f"Priority {priority}", priority=priority)
            order.append(priority)

        await asyncio.gather(first, *(ask(priority) for priority in (3, 1, 2, 0)))
        return order

    assert run_virtual(main) == [0, 1, 2, 3]


# -- the end ----------------------------------------------------------------------------------------------


VERBS: dict[str, Callable[[llmlab.Lab], object]] = {
    "submit": lambda lab: lab.submit("Hello"),
    "run": lambda lab: lab.run("Hello"),
    "run_many": lambda lab: lab.run_many(["Hello"]),
    "show": lambda lab: lab.show("Hello"),
}


@pytest.mark.parametrize("verb", VERBS)
def test_afterwards_every_verb_says_that_the_lab_is_closed(verb: str) -> None:
    async def main() -> None:
        lab = slow()
        await lab.drain()
        with pytest.raises(LabClosed, match="closed"):
            VERBS[verb](lab)

    run_virtual(main)


def test_a_stream_begun_afterwards_says_so_when_it_is_read() -> None:
    async def main() -> None:
        lab = slow()
        stream = lab.stream("Hello")
        await lab.aclose()
        with pytest.raises(LabClosed):
            async for _ in stream:
                pass

    run_virtual(main)


def test_draining_waits_for_all_that_was_begun_and_takes_nothing_more() -> None:
    async def main() -> tuple[list[bool], float]:
        lab = slow(concurrency=2)
        jobs: list[Any] = [lab.run_many([f"Row {n}" for n in range(6)]), lab.submit("Hello"), lab.run("Bye")]
        draining = asyncio.create_task(lab.drain())
        await asyncio.sleep(0.1)
        with pytest.raises(LabClosed):
            lab.submit("too late")
        await draining
        return [job.done for job in jobs], asyncio.get_running_loop().time()

    done, took = run_virtual(main)
    assert done == [True, True, True]
    assert took == pytest.approx(4, abs=0.2)


def test_closing_by_cancelling_leaves_nobody_hanging() -> None:
    async def main() -> tuple[list[Any], Any, float]:
        lab = slow(10.0, concurrency=2)
        batch = asyncio.ensure_future(lab.run_many([f"Row {n}" for n in range(6)]).wait())
        await asyncio.sleep(15)
        single = [asyncio.ensure_future(lab.submit(f"Question {n}").wait()) for n in range(3)]
        await asyncio.sleep(1)
        await lab.aclose(cancel=True)
        return await asyncio.gather(*single, return_exceptions=True), await batch, asyncio.get_running_loop().time()

    singles, frame, took = run_virtual(main)
    assert [type(each) for each in singles] == [LabClosed] * 3
    assert frame.status.tolist() == ["ok", "ok", "cancelled", "cancelled", "cancelled", "cancelled"]
    assert frame.error[2] == "the lab was closed"
    assert took == pytest.approx(16, abs=0.2)


def test_a_timeout_ends_a_drain_by_cancelling_what_is_left() -> None:
    async def main() -> tuple[list[Any], float]:
        lab = slow(10.0, concurrency=1)
        jobs = [lab.submit(f"Question {n}") for n in range(3)]
        await lab.drain(timeout=15)
        took = asyncio.get_running_loop().time()
        return await asyncio.gather(*jobs, return_exceptions=True), took

    ends, took = run_virtual(main)
    assert [type(each) for each in ends] == [Reply, LabClosed, LabClosed]
    assert took == pytest.approx(15, abs=0.2)


def test_leaving_the_block_waits_and_a_failure_in_it_cancels() -> None:
    async def main() -> tuple[Reply, Any]:
        async with slow() as lab:
            good = lab.submit("Hello")
        late = list[Any]()

        async def fail() -> None:
            async with slow(100.0) as lab:
                late.append(lab.submit("Hello"))
                await asyncio.sleep(1)
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            await fail()
        assert asyncio.get_running_loop().time() < 5
        return await good, (await asyncio.gather(*late, return_exceptions=True))[0]

    good, late = run_virtual(main)
    assert good.content
    assert isinstance(late, LabClosed)


def test_a_script_has_the_same_block() -> None:
    door = Door()
    with lab_of(door) as lab:
        job, other = lab.submit("Hello"), lab.run("never waited for")
    assert (job.done, other.done) == (True, True)
    assert job.result().content == "yes"
    with pytest.raises(LabClosed):
        lab.run("Hello")


def test_closing_from_another_loop_closes_where_the_lab_lives() -> None:
    door = Door()
    lab = lab_of(door, loop="thread")
    job = lab.submit("Hello")
    asyncio.run(lab.aclose())
    assert job.done
    lab.close()  # a second time is nothing


def test_a_lab_that_was_never_used_closes_and_so_does_one_whose_loop_is_gone() -> None:
    door = Door()
    lab_of(door).close()
    asyncio.run(lab_of(door).aclose())
    lab = lab_of(door)

    async def main() -> None:
        await lab.submit("Hello")

    asyncio.run(main())
    lab.close()


def test_a_paused_job_holds_the_end_up_and_it_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    async def main() -> float:
        lab = slow()
        job = lab.run_many(["Row"])
        job.pause()
        asyncio.get_running_loop().call_later(30, job.resume)
        await lab.aclose()
        return asyncio.get_running_loop().time()

    assert run_virtual(main) == pytest.approx(31, abs=0.2)
    assert "1 paused job:" in capsys.readouterr().err


@pytest.mark.parametrize("seed", range(5))
def test_however_it_ends_every_caller_has_an_answer_or_an_error(seed: int) -> None:
    """Callers come at random; some leave; the lab is drained or cancelled in the middle of it."""
    rng = random.Random(seed)

    async def main() -> tuple[list[Any], Any]:
        simulator = Simulator(seed=seed, physics=Physics(rpm=300))
        lab = llmlab.Lab("openai:m", transport=simulator, seed=seed, strategy=Strategy.default(concurrency=3, queue=20))

        async def ask(n: int) -> Reply:
            await asyncio.sleep(rng.uniform(0, 20))
            async with asyncio.timeout(None if n % 5 else 1.0):
                return await lab.submit(f"Question {n}", priority=n % 4)

        callers = [asyncio.ensure_future(ask(n)) for n in range(60)]
        batch = lab.run_many([f"Row {n}" for n in range(40)])
        await asyncio.sleep(10)
        await lab.aclose(cancel=bool(seed % 2), timeout=5)
        return await asyncio.wait_for(asyncio.gather(*callers, return_exceptions=True), 20), await batch

    ends, frame = run_virtual(main)
    assert {type(each).__name__ for each in ends} <= {"Reply", "LabClosed", "QueueFull", "TimeoutError"}
    assert sum(isinstance(each, Reply) for each in ends) > 5
    assert len(frame) == 40
    assert set(frame.status) <= {"ok", "cancelled"}
