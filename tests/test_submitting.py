"""`lab.submit`: begun at once, bounded."""

import asyncio
import gc
import threading
from typing import Any

import pytest

import llmlab
from llmlab.clock import run_virtual
from llmlab.errors import QueueFull
from llmlab.types import Reply
from tests.slow_door import Door, lab_of, slow

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
