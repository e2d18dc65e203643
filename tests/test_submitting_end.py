"""The end of a lab with submitted prompts: nobody is left hanging."""

import asyncio
import random
from collections.abc import Callable
from typing import Any

import pytest

import llmlab
from llmlab.clock import run_virtual
from llmlab.errors import LabClosed
from llmlab.sim import Physics, Simulator
from llmlab.strategy import Strategy
from llmlab.types import Reply
from tests.slow_door import Door, lab_of, slow

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
