"""Stopping, cancelling, pausing a batch."""

import asyncio
from typing import Any

import pytest

from llmlab.clock import run_virtual
from llmlab.errors import LLMError, ServerError
from llmlab.policies.retry import Retry
from llmlab.sim.batches import BatchPace
from llmlab.sim.faults import Faults
from llmlab.strategy import Strategy
from tests.batch.labs import both, make_lab, make_sim
from tests.batch.meddler import PROMPTS, count_batches


@both
def test_a_stop_while_a_batch_is_being_made_waits_for_its_id(dialect: str) -> None:
    async def main() -> Any:
        sim = make_sim(BatchPace(start=100))
        sim.world.physics = sim.world.physics.instant(rtt=5.0)
        job = make_lab(sim, dialect).submit_batch(PROMPTS, most_rows=10)
        await asyncio.sleep(7)  # the second request of the first batch is under way
        job.stop("interrupted")
        frame = await job
        return frame, job.id, count_batches(sim, dialect)

    frame, name, batches = run_virtual(main)
    assert name is not None
    assert "+" not in name
    assert batches == 1
    assert set(frame.status) == {"cancelled"}


@both
def test_a_second_cancel_waits_no_longer(dialect: str) -> None:
    async def main() -> Any:
        loop = asyncio.get_running_loop()
        job = make_lab(make_sim(BatchPace(start=100, cancelling=500)), dialect).submit_batch(PROMPTS)
        await job.submitted()
        job.cancel()
        await asyncio.sleep(20)
        assert not job.done
        job.cancel()
        frame = await job
        return frame, loop.time()

    frame, now = run_virtual(main)
    assert now < 60
    assert set(frame.status) == {"cancelled"}


@both
def test_a_cancel_before_anything_was_sent_sends_nothing(dialect: str) -> None:
    async def main() -> Any:
        sim = make_sim()
        job = make_lab(sim, dialect).submit_batch(PROMPTS)
        job.cancel()
        frame = await job
        with pytest.raises(asyncio.CancelledError):
            await job.submitted()
        return frame, job.id, sim.stats()["batch"]["requests"]

    frame, name, requests = run_virtual(main)
    assert (set(frame.status), name, requests) == ({"cancelled"}, None, 0)


@both
def test_a_cancel_that_comes_too_late_is_none(dialect: str) -> None:
    async def main() -> Any:
        job = make_lab(make_sim(BatchPace(start=0, finish=0)), dialect).submit_batch(PROMPTS)
        await job.submitted()
        await asyncio.sleep(3)  # it has ended, and nobody has looked yet
        job.cancel()
        return await job

    assert set(run_virtual(main).status) == {"ok"}


def test_a_paused_job_sends_nothing() -> None:
    async def main() -> Any:
        sim = make_sim()
        job = make_lab(sim).submit_batch(PROMPTS)
        await job.submitted()
        job.pause()
        await asyncio.sleep(100)
        before = sim.stats()["batch"]["requests"]
        await asyncio.sleep(1000)
        after = sim.stats()["batch"]["requests"]
        assert job.look().state == "paused"
        job.resume()
        return before, after, await job

    before, after, frame = run_virtual(main)
    assert before == after
    assert set(frame.status) == {"ok"}


def test_who_waits_for_the_id_hears_that_nothing_could_be_submitted() -> None:
    async def main() -> None:
        sim = make_sim(faults=Faults.only("server_error"))
        lab = make_lab(sim, strategy=Strategy.default(retry=Retry(attempts=2)))
        job = lab.submit_batch(PROMPTS)
        with pytest.raises(ServerError):
            await job.submitted()
        with pytest.raises(LLMError):
            await job
        assert set(job.frame.error_type) == {"ServerError"}

    run_virtual(main)


def test_a_job_cannot_be_resubmitted_while_it_is_under_way() -> None:
    async def main() -> None:
        job = make_lab(make_sim()).submit_batch(PROMPTS)
        with pytest.raises(RuntimeError, match="still under way"):
            job.resubmit()
        await job

    run_virtual(main)


def test_nothing_to_resubmit_is_a_job_that_is_done_at_once() -> None:
    async def main() -> Any:
        sim = make_sim()
        job = make_lab(sim).submit_batch(PROMPTS)
        first, requests = await job, sim.stats()["batch"]["requests"]
        second = await job.resubmit()
        return first, second, sim.stats()["batch"]["requests"] - requests

    first, second, requests = run_virtual(main)
    assert list(first.content) == list(second.content)
    assert requests == 0
