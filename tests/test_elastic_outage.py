"""What `concurrency="auto"` makes of failures that have nothing to do with how many calls are in flight."""

import asyncio
from functools import cache

import pytest

import llmlab
from llmlab.clock import run_virtual
from llmlab.rules.adapt import Decision
from llmlab.rules.adaptive import Adaptive
from llmlab.sim.faults import Faults
from llmlab.sim.physics import Physics
from llmlab.sim.transport import Simulator

SEEDS = range(4)
ROWS = 1000
Ran = tuple[float, float, list[Decision]]


@cache
def run(concurrency: int | str, faults: str, seed: int, rpm: float | None = None) -> Ran:
    """Share of rows answered, virtual seconds and what was decided."""
    physics = Physics(rpm=rpm, burst=10)
    simulator = Simulator(seed=seed, physics=physics, faults=Faults.parse(faults))

    async def main() -> Ran:
        lab = llmlab.Lab("openai:m", transport=simulator, concurrency=concurrency, seed=seed)  # type: ignore[arg-type]
        out = await lab.run_many([f"Question {n}" for n in range(ROWS)])
        rule = lab.strategy.slots
        decisions = list(rule.controller.decisions) if isinstance(rule, Adaptive) else []
        return (out.status == "ok").mean(), asyncio.get_running_loop().time(), decisions

    return run_virtual(main)


@pytest.mark.parametrize("seed", SEEDS)
def test_after_an_outage_it_finds_back_to_what_it_had(seed: int) -> None:
    answered, _, decisions = run("auto", "outage:10+20", seed)
    before = max(each.limit for each in decisions if each.at < 10)
    assert answered == 1
    assert any(each.limit >= before for each in decisions if 30 < each.at < 60)


@pytest.mark.parametrize("seed", SEEDS)
def test_one_outage_costs_one_cut_however_many_probes_find_it_still_there(seed: int) -> None:
    _, _, decisions = run("auto", "outage:10+60", seed)
    assert sum(each.reason.startswith("overload") for each in decisions if 10 <= each.at < 72) <= 1


@pytest.mark.parametrize(
    ("faults", "rpm"), [("overloaded:0.1", None), ("mixed:0.1", None), ("mixed:0.05,outage:20+20", 1200)]
)
def test_with_stray_failures_it_takes_no_more_than_a_number_by_hand(faults: str, rpm: float | None) -> None:
    """It begins with 8 in flight and has to find the rest; over all seeds, as luck with a breaker's probes weighs."""
    found, by_hand = ([run(each, faults, seed, rpm) for seed in SEEDS] for each in ("auto", 32))
    assert all(answered == 1 for answered, _, _ in found)
    assert sum(seconds for _, seconds, _ in found) < 1.3 * sum(seconds for _, seconds, _ in by_hand)
