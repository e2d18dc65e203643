"""What the end of a lab means to its batches: they go on at the provider."""

import asyncio
from typing import Any

import pandas as pd
import pytest

from llmlab.clock import run_virtual
from llmlab.errors import LabClosed
from tests.batch.labs import both, make_lab, make_sim

TEXTS = [f"Question {n}" for n in range(20)]


@both
def test_leaving_the_block_waits_until_it_is_submitted_and_the_next_lab_takes_it_up(dialect: str) -> None:
    sim = make_sim()

    async def main() -> tuple[float, bool, str | None, pd.DataFrame, pd.DataFrame]:
        loop = asyncio.get_running_loop()
        async with make_lab(sim, dialect) as lab:
            job = lab.submit_batch(TEXTS)
        left = loop.time()
        partial = await job
        return left, job.done, job.id, partial, await make_lab(sim, dialect).attach_batch(job.id or "", TEXTS)

    left, done, known_as, partial, out = run_virtual(main)
    assert left < 60, "not as long as the provider takes"
    assert done
    assert known_as
    assert len(partial) == 20
    assert (out.status == "ok").all()
    assert sim.stats()["batch"]["rows"] == 20, "worked on once"


@both
def test_closing_by_cancelling_stops_looking_at_once(dialect: str) -> None:
    async def main() -> tuple[float, Any]:
        lab = make_lab(make_sim(), dialect)
        job = lab.submit_batch(TEXTS)
        await job.submitted()
        began = asyncio.get_running_loop().time()
        await lab.aclose(cancel=True)
        with pytest.raises(LabClosed):
            lab.submit_batch(TEXTS)
        return asyncio.get_running_loop().time() - began, job

    took, job = run_virtual(main)
    assert took < 1
    assert job.id
