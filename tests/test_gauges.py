import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import httpx
import pandas as pd
import pytest

import llmlab
from llmlab import gauges
from llmlab.call import Lane
from llmlab.clock import EPOCH, run_virtual
from llmlab.errors import LLMError
from llmlab.estimate import Estimator
from llmlab.events import Admitted, Bus, Finished, Retrying, Told
from llmlab.gauges import EVERY, KEPT, LIMITS, Gauges
from llmlab.job import Job
from llmlab.policies.admit import Admit
from llmlab.rules.slots import Slots
from llmlab.rules.spend import Spend
from llmlab.sim.faults import Faults
from llmlab.sim.physics import Physics
from llmlab.sim.transport import Simulator
from llmlab.types import Outcome, Reply
from tests.test_admit import Busy, Every

STEADY = Physics(rtt=1.0, ttft=0.0, itl=0.0, load=0.0, jitter=0.0)
"""Each request takes a second."""
ADMITTED = Admitted(0, 0.0, 0.0)
NOTHING = Outcome(0, None, "cancelled", None, None)


def prompts(count: int) -> list[str]:
    return [f"Question {n}" for n in range(count)]


def run(
    rows: Any,
    physics: Physics = STEADY,
    *,
    faults: Faults | None = None,
    meddle: Any = None,
    job: Any = None,
    **lab: Any,
) -> Job[Any]:
    """A job on the simulated provider in virtual time, done."""

    async def main() -> Job[Any]:
        await asyncio.sleep(10_000)  # a real loop's clock does not begin at 0 either
        simulator = Simulator(physics=physics, faults=faults, say=lambda ask: ask.text.split(":")[-1])
        started = llmlab.Lab("openai:m", transport=simulator, seed=1, **lab).run_many(
            rows() if callable(rows) else rows, **(job or {})
        )
        if meddle is not None:
            await meddle(started)
        await started
        return started

    return run_virtual(main)


async def trickle(count: int = 20, seconds: float = 2.0) -> AsyncIterator[str]:
    for n in range(count):
        await asyncio.sleep(seconds)
        yield f"Question {n}"


async def pause(job: Job[Any]) -> None:
    await asyncio.sleep(0.5)
    job.pause()
    await asyncio.sleep(100)
    job.resume()


LONG = ["x: " + "word " * 30_000, *prompts(10)]

CASES: dict[str, tuple[str, Callable[[], Job[Any]]]] = {
    "few slots": ("concurrency", lambda: run(prompts(60), concurrency=4)),
    "few slots and long answers": ("concurrency", lambda: run(prompts(12), Physics(rtt=30.0), concurrency=4)),
    "a rate of ours": ("rate limit", lambda: run(prompts(60), rpm=60)),
    "a rate of the provider's": ("rate limit", lambda: run(prompts(90), Physics(rpm=60, burst=1.0))),
    "an outage": ("provider", lambda: run(prompts(60), faults=Faults.outage(0.0, 120.0))),
    "a slow answer at the end": ("provider", lambda: run(LONG, Physics(itl=0.01), concurrency=4)),
    "slots enough": ("provider", lambda: run(prompts(30))),
    "a slow source": ("source", lambda: run(trickle)),
    "a source slow to begin": ("source", lambda: run(lambda: trickle(1, 50.0))),
    "a budget": ("budget", lambda: run(prompts(6), job={"budget_tokens": 300, "max_tokens": 250})),
    "paused": ("paused", lambda: run(prompts(200), meddle=pause)),
}


@pytest.mark.parametrize("case", CASES)
def test_a_job_says_what_bound_it(case: str) -> None:
    bound_by, story = CASES[case]
    job = story()
    assert job.bound_by == bound_by
    assert bound_by in set(job.limits.bound_by)


@pytest.mark.parametrize(("share", "bound_by"), [(0.95, "event loop"), (0.85, "concurrency")])
def test_who_computes_nearly_all_the_time_is_bound_by_it(monkeypatch, share: float, bound_by: str) -> None:
    monkeypatch.setattr(gauges, "cpu_seconds", lambda: share * asyncio.get_running_loop().time())
    assert run(prompts(30), concurrency=2).bound_by == bound_by


def test_a_cell_that_computes_while_the_job_runs_is_found_out() -> None:
    async def answer(_: httpx.Request) -> httpx.Response:
        await asyncio.sleep(0.02)
        return httpx.Response(200, json={"choices": [{"message": {"content": "a"}, "finish_reason": "stop"}]})

    async def hog() -> None:
        while True:
            end = time.thread_time() + 0.01
            while time.thread_time() < end:
                pass
            await asyncio.sleep(0)

    async def main() -> tuple[str | None, float]:
        began, cpu = time.perf_counter(), time.thread_time()
        computing = asyncio.create_task(hog())
        job = llmlab.Lab("openai:m", transport=httpx.MockTransport(answer), api_key="k", concurrency=2).run_many(
            prompts(20)
        )
        await job
        computing.cancel()
        return job.bound_by, (time.thread_time() - cpu) / (time.perf_counter() - began)

    bound_by, share = asyncio.run(main())
    assert bound_by == "event loop" or share < 0.95  # another process has taken this one's time


# -- the frame --------------------------------------------------------------------------------------------


def check_dtypes(frame: pd.DataFrame) -> None:
    assert {name: str(dtype) for name, dtype in frame.dtypes.items()} == {each.name: each.dtype for each in LIMITS}


def test_the_frame_has_its_columns_before_the_start_during_the_run_and_after_the_end() -> None:
    async def main() -> None:
        job = llmlab.Lab(seed=1, concurrency=2).run_many(prompts(30))
        assert (len(job.limits), job.bound_by) == (0, None)
        check_dtypes(job.limits)
        seen = 0
        async for _ in job:
            check_dtypes(job.limits)
            assert len(job.limits) >= seen
            seen = len(job.limits)
        assert seen > 3
        last = job.limits
        check_dtypes(last)
        assert last["at"].is_monotonic_increasing
        assert set(last.limit) == {2}
        assert last.in_flight.max() == 2
        assert last.waiting.max() > 2
        assert set(last.breaker) == {"closed"}
        await asyncio.sleep(10)
        assert len(job.limits) == len(last)

    run_virtual(main)


def test_each_target_has_rows_of_its_own() -> None:
    down = Faults.outage(0.0, 60.0)

    async def main() -> pd.DataFrame:
        lab = llmlab.Lab("openai:a", transport=Simulator(faults=down), fallback="sim:b", seed=1, budget_tokens=100_000)
        job = lab.run_many(prompts(100))
        await job
        return job.limits

    limits = run_virtual(main)
    assert set(limits.target) == {"openai:a", "sim:b"}
    assert "open" in set(limits[limits.target == "openai:a"].breaker)
    assert set(limits[limits.target == "sim:b"].breaker) == {"closed"}
    assert limits[limits.target == "openai:a"].spent_tokens.is_monotonic_increasing


def test_a_pause_asked_for_is_shown_until_it_is_over() -> None:
    job = run(prompts(40), faults=Faults.only("rate_limited", 0.3))
    paused = job.limits.paused_ms.dropna()
    assert 1000 < paused.max() <= 2000
    assert job.limits.paused_ms.isna().any()


# -- sampling ---------------------------------------------------------------------------------------------


class Line:
    """What gauges look at."""

    def __init__(self, held_by: str | None = None) -> None:
        self.held_by, self.waiting = held_by, 1
        self.by_lane: dict[Lane, str] = {}

    def waits_for(self, lane: Lane) -> str | None:
        return self.by_lane.get(lane)

    def gauge(self, _: float) -> dict[str, float | str]:
        return {"waiting": self.waiting}


def watched(story: Callable[[Bus, Gauges, Line], Awaitable[None]], idle: str = "source", **named: Any) -> Gauges:
    """Gauges of one line, after a story in virtual time."""

    async def main() -> Gauges:
        bus, line = Bus(), Line()
        made = Gauges(bus, [("a", line), ("b", Line())], lambda: idle, **named)  # type: ignore[list-item]
        await story(bus, made, line)
        bus.emit(Told("a", None))  # on its way when the job ends
        made.close()
        closed = len(made.frame())
        await asyncio.sleep(1.0)
        assert len(made.frame()) == closed
        return made

    return run_virtual(main)


def test_a_day_keeps_no_more_samples_than_a_minute_and_covers_it_evenly() -> None:
    async def story(bus: Bus, _: Gauges, __: Line) -> None:
        for _second in range(86_400):
            await asyncio.sleep(1.0)
            bus.emit(ADMITTED)

    frame = watched(story).frame()
    assert KEPT / 2 < len(frame) / 2 <= KEPT
    at = frame[frame.target == "a"]["at"].astype("int64") / 1e6 - EPOCH
    assert at.diff().max() < 3 * 86_400 / KEPT * 2
    assert at.iloc[0] < 60
    assert at.iloc[-1] > 86_000


def test_a_rule_that_tells_much_for_a_while_does_not_end_the_looking() -> None:
    async def story(bus: Bus, _: Gauges, line: Line) -> None:
        for _n in range(20 * KEPT):
            bus.emit(Told("a", None))
            await asyncio.sleep(0)
        await asyncio.sleep(1.0)
        line.held_by = "concurrency"
        for _second in range(100):
            await asyncio.sleep(1.0)
            bus.emit(ADMITTED)

    made = watched(story)
    assert made.bound_by == "concurrency"
    assert len(made.frame()) / 2 <= KEPT + 1


@pytest.mark.parametrize("event", [ADMITTED, Retrying(0, 1, 0.0, LLMError()), Finished(NOTHING), Told("a", None)])
def test_what_happens_is_looked_at_at_once_and_once_more_a_moment_later(event: object) -> None:
    """Rows join the line behind the one that was admitted, and of that nobody tells."""

    async def story(bus: Bus, made: Gauges, line: Line) -> None:
        for n in range(2):
            line.held_by = None
            bus.emit(event)  # type: ignore[arg-type]
            await asyncio.sleep(EVERY / 2)
            assert len(made.frame()) == 4 * n + 2
            line.held_by = "concurrency"
            await asyncio.sleep(100)
            assert len(made.frame()) == 4 * n + 4
            assert made.binds_now == "concurrency"

    assert watched(story).bound_by == "concurrency"


def test_what_a_rule_tells_is_looked_at_when_its_change_is_complete() -> None:
    async def story(bus: Bus, made: Gauges, line: Line) -> None:
        bus.emit(Told("a", None))
        line.held_by = "provider"
        await asyncio.sleep(0)
        assert made.frame().bound_by.tolist() == ["provider", "provider"]

    watched(story)


def test_only_what_the_jobs_own_rows_wait_for_counts() -> None:
    """The line is the lab's: other jobs stand in it, too."""
    lane, other = Lane(), Lane()

    async def story(bus: Bus, made: Gauges, line: Line) -> None:
        line.held_by, line.by_lane = "concurrency", {other: "concurrency"}
        bus.emit(ADMITTED)
        await asyncio.sleep(10)
        assert made.binds_now == "source"
        line.by_lane[lane] = "rate limit"
        bus.emit(ADMITTED)
        assert made.binds_now == "rate limit"

    assert watched(story, lane=lane).bound_by == "source"


def test_the_line_says_what_each_lane_waits_for(make_call) -> None:
    rich, poor = Lane(), Lane(budgets=(Spend(tokens=300),))
    gate = Admit((Slots(1), Every(100.0)), Estimator())

    async def main() -> None:
        tasks = [asyncio.create_task(gate(make_call(i, lane=poor), Busy(50.0))) for i in range(2)]
        await asyncio.sleep(0.1)
        assert (gate.held_by, gate.waits_for(poor), gate.waits_for(rich)) == ("budget", "budget", None)
        tasks += [asyncio.create_task(gate(make_call(2, lane=rich), Busy()))]
        await asyncio.sleep(0.1)
        assert (gate.waits_for(poor), gate.waits_for(rich)) == ("budget", "concurrency")
        poor.held = True
        assert gate.waits_for(poor) == "paused"
        poor.held = False
        await asyncio.wait(tasks[:2])
        assert (gate.held_by, gate.waits_for(rich)) == ("rate limit", "rate limit")
        await asyncio.wait(tasks)
        assert (gate.held_by, gate.waits_for(rich)) == (None, None)

    run_virtual(main)


def test_the_gauges_of_a_job_that_is_over_stand_still() -> None:
    async def main() -> None:
        job = llmlab.Lab(seed=1, concurrency=1).run_many(prompts(5))
        await job
        assert job._gauges is not None
        assert job.bound_by == "concurrency"
        assert job.limits.bound_by.iloc[-1] == "provider"
        then = job._gauges.now
        await asyncio.sleep(5)
        assert job._gauges.now == then
        assert job._gauges.binds_now == job.bound_by
        assert job._gauges.own()["in_flight"] == 0

    run_virtual(main)


def test_a_job_whose_strategy_has_no_line_has_no_limits_and_is_bound_all_the_same() -> None:
    async def main() -> Job[Any]:
        job = llmlab.Lab(strategy=llmlab.Strategy("none", ())).run_many(prompts(3))
        await job
        return job

    job = run_virtual(main)
    assert (len(job.limits), job.bound_by) == (0, "provider")
    assert isinstance(job.last and job.last.reply, Reply)
