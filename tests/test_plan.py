"""A plan: rows that follow from the answers to earlier ones, level by level, as a source for a feeder."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from llmlab.call import Call
from llmlab.clock import Stopwatch, run_virtual
from llmlab.frame import Rows
from llmlab.job import Job
from llmlab.load import Ground
from llmlab.loops import Home
from llmlab.order import Order
from llmlab.plan import Plan, Script
from llmlab.source import Source
from llmlab.strategy import Strategy
from llmlab.types import Prompt, Reply
from tests.conftest import reply


class Endpoint:
    """Answers after a second; keeps which rows were asked at the same time."""

    def __init__(self) -> None:
        self.started: list[tuple[float, int]] = []

    async def __call__(self, call: Call) -> Reply:
        self.started.append((round(asyncio.get_running_loop().time()), call.index))
        await asyncio.sleep(1)
        return reply(call.prompt.text.upper())


def job_of(levels: Any, endpoint: Any, *, concurrency: int = 4, total: int | None = None) -> Job[Any]:
    live = Strategy.bare(concurrency=concurrency).fresh()
    return Job(
        "test",
        Order(Rows(Plan(levels), None, total), seed=1),
        home=Home(),
        open_ground=lambda: Ground(live.handler(endpoint), live.slots),
        finish=lambda job: job.frame,
    )


def run(levels: Any, endpoint: Any, **settings: Any) -> Any:
    async def main() -> Any:
        return await job_of(levels, endpoint, **settings)

    return run_virtual(main)


def asks(position: int, text: str = "p") -> Script:
    yield position, Prompt.of(text)


def test_a_level_begins_when_the_one_before_is_over() -> None:
    endpoint = Endpoint()
    run([[asks(0), asks(1)], [asks(2), asks(3), asks(4)], [asks(5)]], endpoint)
    assert endpoint.started == [(0, 0), (0, 1), (1, 2), (1, 3), (1, 4), (2, 5)]


def test_a_level_may_be_made_of_the_answers_to_the_one_before() -> None:
    heard: list[str] = []

    def hears(position: int, text: str) -> Script:
        outcome = yield position, Prompt.of(text)
        assert outcome.reply is not None
        heard.append(outcome.reply.content)

    def levels() -> Iterator[list[Script]]:
        yield [hears(0, "a"), hears(1, "b")]
        yield [hears(2, "+".join(heard))]

    assert run(levels(), Endpoint()).content.tolist() == ["A", "B", "A+B"]


def test_empty_levels_and_scripts_that_ask_nothing_are_no_trouble() -> None:
    def nothing() -> Script:
        return
        yield

    assert len(run([[], [nothing()], [], [asks(0)], []], Endpoint())) == 1
    assert len(run([], Endpoint())) == 0


def test_positions_are_the_scripts_own() -> None:
    assert run([[asks(2, "c"), asks(0, "a"), asks(1, "b")]], Endpoint()).prompt.tolist() == ["a", "b", "c"]


def test_what_was_begun_is_brought_to_its_end_first() -> None:
    endpoint = Endpoint()

    def two(start: int) -> Script:
        yield start, Prompt.of("first")
        yield start + 1, Prompt.of("second")

    run([(two(2 * n) for n in range(50))], endpoint, concurrency=1)
    order = [index for _, index in endpoint.started]
    late = [order.index(2 * n + 1) - order.index(2 * n) for n in range(50)]
    assert max(late) <= 20, "as far as rows are taken ahead, so that a freed slot never waits"


def test_an_asynchronous_level_is_read_while_answers_come() -> None:
    endpoint = Endpoint()

    async def level() -> AsyncIterator[Script]:
        for n in range(3):
            await asyncio.sleep(10)
            yield asks(n)

    run([level(), [asks(3)]], endpoint)
    assert endpoint.started == [(10, 0), (20, 1), (30, 2), (31, 3)]


def test_a_script_that_raises_stops_the_job_and_what_is_in_flight_ends_by_itself() -> None:
    def fails() -> Script:
        yield 0, Prompt.of("a")
        raise KeyError("mine")

    plan_of: list[Any] = [[fails(), *(asks(n) for n in range(1, 50))], [asks(50)]]
    out = run(plan_of, Endpoint(), total=51)
    assert out.status.value_counts().to_dict() == {"cancelled": 46, "ok": 4}
    assert "mine" in out.error.iloc[-1]
    assert len(out) == 50, "no further level is begun"


def test_after_a_stop_every_row_of_the_level_is_marked_and_no_further_level_begins() -> None:
    async def main() -> Any:
        job = job_of([(asks(n) for n in range(3000)), [asks(3000)]], Endpoint(), total=3001)
        asyncio.get_running_loop().call_later(1.5, job.cancel)
        return await job

    out = run_virtual(main)
    assert out.index.tolist() == list(range(3000))
    assert (out.status == "ok").sum() == 4


def test_a_source_cancelled_from_within_is_the_jobs_failure() -> None:
    async def level() -> AsyncIterator[Script]:
        yield asks(0)
        raise asyncio.CancelledError

    async def main() -> None:
        with pytest.raises(RuntimeError, match="cancelled from within"):
            await job_of([level()], Endpoint())

    run_virtual(main)


# -- what plans are beside ----------------------------------------------------------------------------------


def test_a_source_numbers_its_rows_and_knows_how_long_it_was_waited_for() -> None:
    async def slow() -> AsyncIterator[Prompt]:
        for text in "ab":
            await asyncio.sleep(5)
            yield Prompt.of(text)

    async def main() -> tuple[list[tuple[int, str]], float]:
        source, found = Source(slow()), []
        async for position, item in source:
            assert isinstance(item, Prompt)
            found.append((position, item.text))
            await asyncio.sleep(100)
        return found, source.waited.seconds

    found, seconds = run_virtual(main)
    assert found == [(0, "a"), (1, "b")]
    assert seconds == pytest.approx(10, abs=0.01)


def test_a_stopwatch_counts_the_time_that_runs() -> None:
    async def main() -> list[float]:
        watch, seen = Stopwatch(), []
        for _ in range(2):
            with watch:
                await asyncio.sleep(3)
                seen.append(watch.seconds)
            await asyncio.sleep(50)
        return [*seen, watch.seconds]

    assert run_virtual(main) == pytest.approx([3, 6, 6], abs=0.01)
