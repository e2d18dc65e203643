"""Pilot runs in virtual time, for the tests of the twin: each is run once and kept."""

from functools import cache

import pandas as pd

import llmlab
from llmlab.clock import run_virtual
from llmlab.job import Job
from llmlab.sim.faults import Faults
from llmlab.sim.physics import Physics
from llmlab.sim.transport import Simulator

HOSTED = Physics(jitter=0.3, load=0.0004)
"""Twice as slow at 32 in flight as alone, with a tail."""

HASTY = llmlab.Strategy("hasty", (llmlab.Retry(throttled=200), llmlab.Admit((llmlab.Slots(32),))))
"""Learns nothing from 429s."""


@cache
def job(
    concurrency: int,
    rows: int,
    *,
    seed: int = 0,
    physics: Physics = HOSTED,
    faults: str = "",
    stream: bool = False,
    hasty: bool = False,
    priced: bool = False,
) -> Job[pd.DataFrame]:
    """A finished job of prompts of several lengths."""

    async def main() -> Job[pd.DataFrame]:
        simulator = Simulator(seed=seed, physics=physics, faults=Faults.parse(faults))
        async with llmlab.Lab(
            "openai:m", transport=simulator, api_key="k", concurrency=concurrency, seed=seed, progress=False,
            strategy=HASTY if hasty else None, prices={"m": (1.0, 2.0)} if priced else None,
        ) as lab:  # fmt: skip
            prompts = [f"{concurrency} {seed} {row}: " + "word " * (row * 7 % 60) for row in range(rows)]
            running = lab.run_many(prompts, stream=stream)
            await running
            return running

    return run_virtual(main)


def out(concurrency: int, rows: int, **options: object) -> pd.DataFrame:
    """Its result."""
    return job(concurrency, rows, **options).frame
