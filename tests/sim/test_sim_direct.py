"""The simulated provider without httpx in between: the same as with it, to the last digit."""

import asyncio
from typing import Any

import pandas as pd
import pytest

from llmlab.clock import run_virtual
from llmlab.frame import read_rows
from llmlab.job import Job
from llmlab.load import Ground
from llmlab.loops import Home
from llmlab.order import Order
from llmlab.providers import connect
from llmlab.providers.http import Request
from llmlab.sim import Faults, Physics, Simulator
from llmlab.strategy import Strategy
from llmlab.target import Route, Target
from llmlab.trial import direct


def frames(provider: Any, *, stream: bool) -> tuple[pd.DataFrame, pd.DataFrame]:
    async def main() -> tuple[pd.DataFrame, pd.DataFrame]:
        home = Home()
        route = Route(Target(provider, Strategy.default(), home))

        def ground() -> Ground:
            route.bind()
            return Ground(route.first, route.first.strategy.slots, route.lines)

        rows = read_rows([f"question {n}" for n in range(200)])
        order = Order(rows, stream=stream, seed=1)
        job: Job[Any] = Job("x", order, home=home, open_ground=ground, finish=lambda job: job.frame)
        return await job, job.attempts

    return run_virtual(main)


@pytest.mark.parametrize("stream", [False, True])
def test_what_comes_of_a_request_is_the_same_as_through_httpx(stream: bool) -> None:
    def simulator() -> Simulator:
        return Simulator(seed=3, physics=Physics(rpm=1200), faults=Faults.mixed(0.3))

    plain = frames(connect("sim:small", transport=simulator()), stream=stream)
    fast = frames(direct("sim:small", simulator(), None), stream=stream)
    for one, other in zip(plain, fast, strict=True):
        pd.testing.assert_frame_equal(one, other, check_exact=True)
    assert plain[1].error_type.nunique() > 5


def test_other_addresses_are_served_too() -> None:
    provider = direct("sim:small", Simulator(), None)

    async def main() -> tuple[int, bytes]:
        answer = await provider.sender.send(Request("GET", provider.url.join("/v1/models")), None)
        return answer.status, await answer.read()

    status, body = run_virtual(main)
    assert status == 200
    assert b"sim-small" in body
    asyncio.run(provider.sender.aclose())
