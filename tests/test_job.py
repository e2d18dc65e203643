import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pandas as pd
import pytest

import llmlab
from llmlab.call import Call
from llmlab.clock import run_virtual
from llmlab.errors import AuthFailed, BadRequest, RateLimited, ServerError
from llmlab.feeder import LIVE_ROWS
from llmlab.frame import Rows, read_rows
from llmlab.job import Job
from llmlab.load import Ground
from llmlab.loops import Home
from llmlab.order import Order
from llmlab.policies.admit import Admit
from llmlab.policies.retry import Retry
from llmlab.rules.slots import Slots
from llmlab.sim.transport import Simulator
from llmlab.strategy import Strategy
from llmlab.types import Prompt, Reply
from tests.conftest import reply


class Endpoint:
    """Answers each row after some seconds; `fail` names rows and their errors."""

    def __init__(self, seconds: float = 1.0, fail: dict[int, Exception] | None = None) -> None:
        self.seconds, self.fail = seconds, fail or {}
        self.started: list[int] = []
        self.in_flight = self.most = 0

    async def __call__(self, call: Call) -> Reply:
        call.attempts += 1
        self.started.append(call.index)
        self.in_flight += 1
        self.most = max(self.most, self.in_flight)
        try:
            await asyncio.sleep(self.seconds)
        finally:
            self.in_flight -= 1
        if call.index in self.fail:
            raise self.fail[call.index]
        return reply(call.prompt.text.upper())


def make_job(source: Any, endpoint: Any, *, concurrency: int = 4, strategy: Strategy | None = None) -> Job[Any]:
    rows = source if isinstance(source, Rows) else read_rows(source)
    live = (strategy or Strategy.default(concurrency=concurrency)).fresh()
    return Job(
        "test",
        Order(rows, seed=1),
        home=Home(),
        open_ground=lambda: Ground(live.handler(endpoint), live.slots),
        finish=lambda job: job.frame,
    )


def patient(concurrency: int) -> Strategy:
    """Retries without a breaker, which would hold rows back while an endpoint fails on purpose."""
    return Strategy("patient", (Retry(), Admit((Slots(concurrency),))))


def run(source: Any, endpoint: Any, **settings: Any) -> pd.DataFrame:
    async def main() -> pd.DataFrame:
        frame: pd.DataFrame = await make_job(source, endpoint, **settings)
        return frame

    return run_virtual(main)


def letters(count: int) -> list[str]:
    return [f"p{n}" for n in range(count)]


def test_rows_come_out_in_input_order_whatever_ends_first() -> None:
    async def endpoint(call: Call) -> Reply:
        await asyncio.sleep(10 - call.index)
        return reply(call.prompt.text.upper())

    out = run(letters(10), endpoint, concurrency=10)
    assert out.content.tolist() == [f"P{n}" for n in range(10)]


def test_a_rows_failure_is_data_and_the_others_go_on() -> None:
    out = run(letters(5), Endpoint(fail={2: BadRequest("no", status=400)}))
    assert out.status.tolist() == ["ok", "ok", "error", "ok", "ok"]
    assert out.error[2] == "HTTP 400: no"
    assert out.error_type[2] == "BadRequest"
    assert pd.isna(out.content[2])


def test_even_a_bug_below_costs_its_own_row_only() -> None:
    out = run(letters(3), Endpoint(fail={1: ZeroDivisionError("oops")}))
    assert out.status.tolist() == ["ok", "error", "ok"]
    assert out.error_type[1] == "ZeroDivisionError"


def test_a_million_rows_never_become_a_million_tasks() -> None:
    most = 0

    def source() -> Iterator[str]:
        nonlocal most
        for n in range(5000):
            most = max(most, len(asyncio.all_tasks()))
            yield f"p{n}"

    out = run(source(), Endpoint(0.01), concurrency=8)
    assert len(out) == 5000
    assert most < 8 + 16 + 5


def test_a_generator_is_read_only_as_far_as_there_is_room() -> None:
    taken = 0

    def source() -> Iterator[str]:
        nonlocal taken
        for n in range(10_000):
            taken = n + 1
            yield f"p{n}"

    endpoint = Endpoint(1.0)

    async def main() -> None:
        job = make_job(source(), endpoint, concurrency=4)
        await asyncio.sleep(10.5)
        assert len(endpoint.started) - 30 < taken < len(endpoint.started) + 30
        job.cancel()
        await job

    run_virtual(main)


def test_slots_are_kept_filled_while_rows_sleep_in_back_off() -> None:
    class Flaky(Endpoint):
        async def __call__(self, call: Call) -> Reply:
            if call.attempts == 0 and call.index < 20:
                call.attempts += 1
                raise ServerError("boom", retry_after=60.0)
            return await super().__call__(call)

    async def main() -> tuple[int, pd.DataFrame]:
        endpoint = Flaky(1.0)
        job = make_job(letters(60), endpoint, strategy=patient(4))
        await asyncio.sleep(15)
        done = job.frame
        return len(done), await job

    done, out = run_virtual(main)
    assert done == 40, "the rows that do not sleep are all answered meanwhile"
    assert (out.status == "ok").all()


def test_rows_that_sleep_are_bounded_in_number() -> None:
    class Down(Endpoint):
        async def __call__(self, call: Call) -> Reply:
            call.attempts += 1
            raise ServerError("boom", retry_after=50.0)

    async def main() -> int:
        job = make_job((f"p{n}" for n in itertools.count()), Down(), concurrency=4)
        await asyncio.sleep(20)
        alive = len(asyncio.all_tasks())
        job.cancel()
        await job
        return alive

    assert run_virtual(main) <= LIVE_ROWS + 5


def test_an_asynchronous_source_is_taken_as_it_comes() -> None:
    async def source() -> AsyncIterator[str]:
        for n in range(5):
            await asyncio.sleep(10)
            yield f"p{n}"

    out = run(source(), Endpoint(1.0))
    assert out.content.tolist() == [f"P{n}" for n in range(5)]


def test_an_asynchronous_source_that_never_yields_can_be_stopped() -> None:
    async def source() -> AsyncIterator[str]:
        yield "first"
        await asyncio.Event().wait()
        yield "never"

    async def main() -> pd.DataFrame:
        job = make_job(source(), Endpoint(1.0))
        await asyncio.sleep(5)
        job.cancel()
        frame: pd.DataFrame = await job
        return frame

    assert run_virtual(main).content.tolist() == ["FIRST"]


def test_what_the_source_raises_ends_the_job_after_the_rows_taken_are_settled() -> None:
    def source() -> Iterator[str]:
        yield from letters(3)
        raise OSError("disk gone")

    async def main() -> pd.DataFrame:
        job = make_job(source(), Endpoint(5.0))
        with pytest.raises(OSError, match="disk gone"):
            await job
        return job.frame

    assert run_virtual(main).status.tolist() == ["ok", "ok", "ok"]


def test_a_bad_row_of_a_generator_is_an_error_in_its_place() -> None:
    out = run(iter(["a", None, 3, "d"]), Endpoint())
    assert out.status.tolist() == ["ok", "error", "error", "ok"]
    assert "missing" in out.error[1]
    assert out.attempts.tolist() == [1, 0, 0, 1]


def test_a_fatal_error_stops_the_job_and_keeps_what_is_done(capsys) -> None:
    endpoint = Endpoint(1.0, fail={6: AuthFailed("bad key", status=401, hint="check OPENAI_API_KEY")})
    out = run(letters(100), endpoint, concurrency=4)
    assert len(out) == 100
    assert out.status[:6].tolist() == ["ok"] * 6
    assert out.status[6] == "error"
    assert (out.status[8:] == "cancelled").all()
    assert out.prompt[99] == "p99"
    assert "check OPENAI_API_KEY" in out.error[99]
    assert len(endpoint.started) <= 12
    assert capsys.readouterr().err.count("llmlab: the job stops early") == 1


def test_requests_in_flight_when_a_fatal_error_comes_are_not_thrown_away() -> None:
    class Mixed(Endpoint):
        async def __call__(self, call: Call) -> Reply:
            if call.index == 0:
                await asyncio.sleep(1)
                raise AuthFailed("bad key")
            return await super().__call__(call)

    out = run(letters(10), Mixed(5.0), concurrency=4)
    assert out.status.tolist() == ["error", "ok", "ok", "ok"] + ["cancelled"] * 6


def test_a_cancelled_job_returns_its_frame_with_the_finished_rows() -> None:
    async def main() -> pd.DataFrame:
        job = make_job(pd.Series(letters(20), index=list("abcdefghijklmnopqrst")), Endpoint(1.0), concurrency=4)
        await asyncio.sleep(2.5)
        job.cancel()
        frame: pd.DataFrame = await job
        return frame

    out = run_virtual(main)
    assert out.index.tolist() == list("abcdefghijklmnopqrst")
    assert out.status.tolist() == ["ok"] * 8 + ["cancelled"] * 12


def test_a_job_cancelled_before_its_first_step_loses_no_row() -> None:
    async def main() -> pd.DataFrame:
        job = make_job(letters(5), Endpoint(1.0))
        job.cancel()
        frame: pd.DataFrame = await job
        return frame

    assert run_virtual(main).status.tolist() == ["cancelled"] * 5


def test_rows_cancelled_in_the_moment_they_are_taken_are_in_the_frame() -> None:
    async def main() -> pd.DataFrame:
        job = make_job(letters(50), Endpoint(1.0))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        job.cancel()
        frame: pd.DataFrame = await job
        return frame

    out = run_virtual(main)
    assert len(out) == 50
    assert set(out.status) == {"cancelled"}


def test_cancelling_whoever_waits_cancels_the_job_and_leaves_no_task() -> None:
    async def main() -> None:
        endpoint = Endpoint(100.0)
        job = make_job(letters(50), endpoint)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(5):
                await job
        assert endpoint.in_flight == 0
        assert len(asyncio.all_tasks()) == 1
        assert len(job.frame) == 50

    run_virtual(main)


def test_a_job_starts_by_itself_when_the_loop_gets_its_turn() -> None:
    async def main() -> None:
        job = make_job(letters(4), Endpoint(1.0))
        assert repr(job) == "<Job test: 0/4 rows, not started>"
        await asyncio.sleep(0.5)
        assert repr(job) == "<Job test: 0/4 rows, running>"
        await asyncio.sleep(1)
        assert job.done
        assert repr(job) == "<Job test: 4/4 rows, done>"

    run_virtual(main)


def test_a_job_can_be_awaited_more_than_once() -> None:
    async def main() -> None:
        job = make_job(letters(3), Endpoint())
        first, second = await asyncio.gather(job.wait(), job.wait())
        pd.testing.assert_frame_equal(first, second)
        pd.testing.assert_frame_equal(first, await job)

    run_virtual(main)


def test_iterating_gives_rows_as_they_are_settled() -> None:
    async def endpoint(call: Call) -> Reply:
        await asyncio.sleep(10 - call.index)
        return reply()

    async def main() -> list[int]:
        return [outcome.index async for outcome in make_job(letters(5), endpoint, concurrency=5)]

    assert run_virtual(main) == [4, 3, 2, 1, 0]


def test_a_frame_is_there_while_the_job_runs() -> None:
    async def main() -> list[str]:
        job = make_job(pd.Series(letters(8), index=range(10, 18)), Endpoint(1.0), concurrency=2)
        await asyncio.sleep(1.5)
        part = job.frame
        await job
        assert part.index.tolist() == [10, 11]
        return list(part.status)

    assert run_virtual(main) == ["ok", "ok"]


def test_times_are_on_the_rows_account() -> None:
    out = run(letters(4), Endpoint(2.0), concurrency=2)
    assert out.queue_ms.round(-1).tolist() == [0, 0, 2000, 2000]
    assert (out.finished_at - out.started_at).dt.total_seconds().round().tolist() == [2, 2, 4, 4]


def test_the_same_seed_gives_the_same_frame_to_the_last_digit() -> None:
    class Flaky(Endpoint):
        async def __call__(self, call: Call) -> Reply:
            await asyncio.sleep(0.1)
            if call.attempts < 2:
                call.attempts += 1
                raise ServerError("boom")
            return await super().__call__(call)

    first, second = (run(letters(200), Flaky(1.0), strategy=patient(16)) for _ in range(2))
    pd.testing.assert_frame_equal(first, second)
    assert first.wait_ms.nunique() > 100


def test_a_strategy_without_a_line_still_bounds_the_rows_alive() -> None:
    endpoint = Endpoint(1.0)
    out = run(letters(LIVE_ROWS + 500), endpoint, strategy=Strategy("none", ()))
    assert len(out) == LIVE_ROWS + 500
    assert endpoint.most == LIVE_ROWS


@pytest.mark.parametrize("empty", [[], pd.Series([], dtype="str"), iter(())])
def test_no_rows_give_an_empty_frame_with_all_columns(empty: Any) -> None:
    out = run(empty, Endpoint())
    assert len(out) == 0
    assert out.attempts.dtype == "int64"


def test_after_a_fatal_error_nothing_in_flight_is_tried_again() -> None:
    """Rows in flight may end; those that end badly do not go through all their retries first."""

    class Throttled(Endpoint):
        async def __call__(self, call: Call) -> Reply:
            call.attempts += 1
            await asyncio.sleep(0.1 if call.index == 1 else 0.5)
            raise AuthFailed("bad key") if call.index == 1 else RateLimited("slow", retry_after=60.0)

    async def main() -> tuple[float, pd.DataFrame]:
        out = await make_job(letters(3), Throttled())
        return asyncio.get_running_loop().time(), out

    ended, out = run_virtual(main)
    assert ended < 1
    assert out.attempts.tolist() == [1, 1, 1]
    assert out.status.tolist() == ["cancelled", "error", "cancelled"]


def test_a_slow_source_does_not_hold_up_the_answers() -> None:
    ticks: list[int] = []
    seen: list[int] = []

    def source() -> Iterator[str]:
        for n in range(8):
            deadline = time.perf_counter() + 0.02
            while time.perf_counter() < deadline:
                pass
            seen.append(len(ticks))
            yield f"p{n}"

    async def tick() -> None:
        while True:
            ticks.append(1)
            await asyncio.sleep(0)

    async def main() -> None:
        ticker = asyncio.create_task(tick())
        await make_job(source(), Endpoint(0.0), concurrency=100)
        ticker.cancel()

    asyncio.run(main())
    assert len(set(seen)) > 6, "the loop had its turn between slow rows"


@pytest.mark.parametrize("sized", [True, False])
def test_a_source_that_cancels_its_job_has_no_further_row_sent(sized: bool) -> None:
    endpoint = Endpoint(1.0)

    async def main() -> pd.DataFrame:
        def items() -> Iterator[Prompt]:
            for n in range(30):
                if n == 3:
                    job.cancel()
                yield Prompt.of(f"p{n}")

        job = make_job(Rows(items(), None, 30 if sized else None), endpoint, concurrency=30)
        frame: pd.DataFrame = await job
        return frame

    out = run_virtual(main)
    assert len(out) == (30 if sized else 4)
    assert set(out.status) == {"cancelled"}
    assert len(endpoint.started) <= 3


def test_a_source_that_is_cancelled_from_within_is_an_error_and_not_its_end() -> None:
    def source() -> Iterator[str]:
        yield "a"
        raise asyncio.CancelledError

    async def main() -> None:
        job = make_job(source(), Endpoint())
        with pytest.raises(RuntimeError, match="cancelled from within"):
            await job
        assert job.frame.status.tolist() == ["ok"]

    run_virtual(main)


def test_a_row_cancelled_from_below_says_so() -> None:
    async def endpoint(_: Call) -> Reply:
        raise asyncio.CancelledError

    assert run(["a"], endpoint).error.tolist() == ["cancelled from below"]


def test_a_look_at_a_job_that_gave_up_says_what_for() -> None:
    async def main() -> None:
        job = llmlab.Lab("openai:m", transport=Simulator(keys=["another"]), api_key="k").run_many(["a", "b"])
        out = await job
        assert set(out.error_type) == {"AuthFailed"}
        assert job.stopped is not None
        assert "AuthFailed" in job.stopped
        assert (job.look().state, job.look().notes) == ("stopped", [job.stopped])

    run_virtual(main)


def test_a_look_at_a_job_whose_source_broke_says_so() -> None:
    def source() -> Iterator[str]:
        yield "a"
        raise ValueError("it broke")

    async def main() -> None:
        job = llmlab.Lab("openai:m", transport=Simulator(), api_key="k").run_many(source())
        with pytest.raises(ValueError, match="it broke"):
            await job
        assert (job.look().state, job.look().notes) == ("failed", ["ValueError: it broke"])
        assert len(job.frame) == 1

    run_virtual(main)


def test_a_look_at_a_job_that_the_user_stopped_needs_no_reason() -> None:
    async def main() -> None:
        job = llmlab.Lab("openai:m", transport=Simulator(), api_key="k").run_many(["a", "b"])
        await asyncio.sleep(0.01)
        job.cancel()
        await job
        assert (job.stopped, job.look().state, job.look().notes) == ("cancelled", "stopped", [])

    run_virtual(main)
