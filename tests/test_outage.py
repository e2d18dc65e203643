"""The whole stack on the virtual clock, against a provider with 40 requests/s that is down for 30 s."""

import asyncio

import pandas as pd
import pytest

import llmlab
from llmlab.clock import run_virtual
from llmlab.rules.breaker import Breaker
from llmlab.sim.faults import Faults, Outage
from llmlab.sim.physics import Physics
from llmlab.sim.transport import Simulator
from llmlab.strategy import Strategy

ROWS = 3000
IDEAL = ROWS / 40 + 30


def run(strategy: Strategy, *, outage: float = 30.0, seed: int = 1) -> tuple[pd.DataFrame, float, Simulator]:
    physics = Physics(slots=400, rpm=2400, burst=10, ttft=0.5, load=0, reply_tokens=30)
    simulator = Simulator(seed=seed, physics=physics, faults=Faults(windows=(Outage(20, outage),)))

    async def main() -> tuple[pd.DataFrame, float]:
        lab = llmlab.Lab("openai:m", transport=simulator, strategy=strategy, seed=seed)
        out = await lab.run_many([f"Question {n}" for n in range(ROWS)])
        return out, asyncio.get_running_loop().time()

    return *run_virtual(main), simulator


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_an_outage_costs_its_own_length_and_hardly_an_attempt(seed: int) -> None:
    out, ended, simulator = run(Strategy.default(concurrency=200, rpm=2400), seed=seed)
    assert (out.status == "ok").all()
    assert ended <= 1.08 * IDEAL
    assert out.attempts.sum() == simulator.requests <= 1.15 * ROWS


def test_a_limit_the_provider_names_in_its_headers_is_kept_to_without_being_told() -> None:
    out, _, simulator = run(Strategy.default(concurrency=200))
    assert (out.status == "ok").all()
    assert simulator.stats()["by_status"].get("429", 0) == 0


def test_bare_concurrency_loses_rows_to_the_same_outage() -> None:
    out, _, _ = run(Strategy.bare(concurrency=200))
    assert (out.status == "ok").sum() < 0.9 * ROWS


def test_no_row_pays_with_its_attempts_for_a_long_outage() -> None:
    out, ended, _ = run(Strategy.default(concurrency=200), outage=400.0)
    assert (out.status == "ok").all()
    assert out.attempts.max() <= 12
    assert ended < 400 + 75 + 150


def test_a_provider_that_stays_down_ends_the_job_with_what_is_done(capsys) -> None:
    strategy = Strategy.default(concurrency=200, breaker=Breaker(give_up_after=120))
    out, ended, _ = run(strategy, outage=1e6)
    assert len(out) == ROWS
    assert (out.status[:700] == "ok").all()
    assert "ProviderDown" in set(out.error_type.dropna())
    assert ended < 20 + 120 + 60
    assert "down for" in capsys.readouterr().err


def test_a_flaky_provider_without_limits_does_not_choke_the_rate() -> None:
    """One request in five goes wrong, some with a stray 429: that is no limit to be learned."""
    simulator = Simulator(seed=1, faults=Faults.mixed(0.2))

    async def main() -> tuple[pd.DataFrame, float]:
        lab = llmlab.Lab("openai:m", transport=simulator, seed=1)
        out = await lab.run_many([f"Question {n}: what is {n} squared?" for n in range(400)], stream=True)
        return out, asyncio.get_running_loop().time()

    out, ended = run_virtual(main)
    assert (out.status == "ok").all()
    assert ended < 60
