"""A comparison while it runs: awaited, waited for, cancelled, interrupted; and what cannot run in virtual time."""

import asyncio
import os
import sys
import threading
import time
from typing import Any

import pandas as pd
import pytest

import llmlab
from llmlab import Strategy
from llmlab.clock import Deadlock, VirtualClockLoop
from tests.comparing import TWO, compared


@pytest.fixture
def lab() -> llmlab.Lab:
    return llmlab.Lab(progress=False)


def test_it_can_be_awaited_while_the_loop_goes_on_and_the_lab_stays_where_it_was(lab: llmlab.Lab) -> None:
    async def main() -> tuple[int, pd.DataFrame]:
        ticks = 0

        async def tick() -> None:
            nonlocal ticks
            while True:
                await asyncio.sleep(0.001)
                ticks += 1

        ticking = asyncio.create_task(tick())
        out = await lab.compare(TWO, n=400)
        ticking.cancel()
        return ticks, out

    ticks, out = asyncio.run(main())
    assert ticks > 5
    assert len(out) == 2
    assert lab._home.loop is None, "a virtual run does not bind it"


def test_result_works_inside_a_running_loop(lab: llmlab.Lab) -> None:
    async def main() -> int:
        return len(lab.compare(TWO, n=10).result())

    assert asyncio.run(main()) == 2


def test_it_begins_by_itself_and_tells_how_far_it_is(lab: llmlab.Lab) -> None:
    async def main() -> Any:
        job = lab.compare(TWO, n=20)
        assert "not started" in repr(job)
        while not job.done:
            await asyncio.sleep(0.01)
        return job

    job = asyncio.run(main())
    assert job.progress.now.done == job.progress.now.total == 40
    assert len(job.frame) == 2
    assert repr(job) == "<Comparison: 2 trials, 40/40 rows, done>"
    assert lab.last is job


def stopped_after_one(lab: llmlab.Lab, stop: Any) -> Any:
    async def main() -> Any:
        job = lab.compare(TWO, n=1500, seeds=range(50))
        waiting = asyncio.ensure_future(job.wait())
        while len(job.frame) < 1:
            await asyncio.sleep(0.01)
        stop(job)
        began = time.perf_counter()
        out = await waiting
        assert time.perf_counter() - began < 5
        assert 1 <= len(out) < 100
        return job

    return asyncio.run(main())


def test_a_cancelled_comparison_keeps_the_trials_that_are_over(lab: llmlab.Lab) -> None:
    job = stopped_after_one(lab, lambda job: job.cancel())
    assert job.stopped == "cancelled"
    for thread in [each for each in threading.enumerate() if each.name == "llmlab-virtual"]:
        thread.join(1)
        assert not thread.is_alive()
    assert "stopped: cancelled" in repr(job)


@pytest.mark.skipif(sys.platform == "win32", reason="os.kill with SIGINT ends the process there")
def test_ctrl_c_keeps_the_trials_that_are_over(lab: llmlab.Lab) -> None:
    job = stopped_after_one(lab, lambda _: os.kill(os.getpid(), 2))
    assert job.stopped == "interrupted"


def test_a_line_of_progress_is_shown_if_wanted(lab: llmlab.Lab, capsys: pytest.CaptureFixture[str]) -> None:
    lab.compare(TWO, n=20, progress=True).result()
    assert "40/40" in capsys.readouterr().err
    lab.compare(TWO, n=20).result()
    assert not capsys.readouterr().err


def test_a_deadlock_ends_it_and_says_who_waits_for_what(lab: llmlab.Lab) -> None:
    class Never:
        async def __call__(self, call: Any, inner: Any) -> Any:
            await asyncio.Event().wait()
            return await inner(call)

    with pytest.raises(Deadlock, match=r"row 0: .*Never.__call__ > Event\.wait, line"):
        compared(lab, {"stuck": Strategy("stuck", (Never(),))}, n=3)


def test_real_threads_inside_are_a_row_s_clear_error(lab: llmlab.Lab) -> None:
    class Threaded:
        async def __call__(self, call: Any, inner: Any) -> Any:
            assert isinstance(asyncio.get_running_loop(), VirtualClockLoop)
            await asyncio.to_thread(time.sleep, 0)
            return await inner(call)

    job = lab.compare({"threaded": Strategy("threaded", (Threaded(),))}, n=2)
    assert job.result().failed.tolist() == [2]
    assert job.rows.error.str.contains("a virtual run uses no threads").all()
