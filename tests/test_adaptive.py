import asyncio

import pandas as pd
import pytest

import llmlab
from llmlab.clock import run_virtual
from llmlab.rules.adaptive import Adaptive
from llmlab.rules.classic import AIMD, Fixed
from llmlab.rules.elastic import Elastic
from llmlab.sim.physics import Physics
from llmlab.sim.transport import Simulator


def run(concurrency: object, physics: Physics, rows: int = 3000) -> tuple[pd.DataFrame, float, llmlab.Lab, Simulator]:
    simulator = Simulator(seed=1, physics=physics)

    async def main() -> tuple[pd.DataFrame, float, llmlab.Lab, Simulator]:
        lab = llmlab.Lab("openai:m", transport=simulator, concurrency=concurrency, seed=1)  # type: ignore[arg-type]
        out = await lab.run_many([f"Question {n}" for n in range(rows)])
        return out, asyncio.get_running_loop().time(), lab, simulator

    result: tuple[pd.DataFrame, float, llmlab.Lab, Simulator] = run_virtual(main)
    return result


CAPPED = Physics(slots=48, load=0.0, queue=100_000)


def test_auto_comes_close_to_the_best_number_by_hand_without_queueing_at_the_provider() -> None:
    best, by_hand, _, _ = run(48, CAPPED, rows=8000)
    found, by_itself, _, simulator = run("auto", CAPPED, rows=8000)
    assert (found.status == "ok").all()
    assert by_itself <= by_hand / 0.95
    assert found.latency_ms.median() <= 1.3 * best.latency_ms.median()
    assert simulator.stats()["max_in_flight"] < 3 * 48


def test_under_a_rate_limit_auto_keeps_to_it_and_uses_it() -> None:
    out, ended, _, simulator = run("auto", Physics(slots=1000, rpm=900, burst=10, load=0.0), rows=1500)
    assert (out.status == "ok").all()
    assert simulator.stats()["by_status"].get("429", 0) <= 5
    assert 1500 / (ended / 60) >= 0.9 * 900


def test_each_decision_is_kept_with_its_reason() -> None:
    _, _, lab, _ = run("auto", CAPPED, rows=600)
    rule = lab.strategy.slots
    assert isinstance(rule, Adaptive)
    assert len(rule.controller.decisions) > 3
    assert all(decision.reason for decision in rule.controller.decisions)


def test_controllers_are_values_that_can_be_compared() -> None:
    assert Elastic() == Elastic()
    assert AIMD(initial=5) != AIMD()
    out, _, lab, simulator = run(Fixed(7), CAPPED, rows=100)
    assert (out.status == "ok").all()
    assert lab.concurrency == 7
    assert simulator.stats()["max_in_flight"] == 7


def test_a_number_set_by_hand_holds_while_a_job_runs() -> None:
    simulator = Simulator(physics=CAPPED)

    async def main() -> None:
        lab = llmlab.Lab("openai:m", transport=simulator, concurrency="auto")
        job = lab.run_many([f"Question {n}" for n in range(400)])
        await asyncio.sleep(3)
        lab.concurrency = 5
        await asyncio.sleep(10)
        assert simulator.stats()["in_flight"] == 5
        await job

    run_virtual(main)


def test_no_slot_leaks_when_a_job_is_cancelled() -> None:
    async def main() -> None:
        lab = llmlab.Lab("openai:m", transport=Simulator(), concurrency="auto")
        for _ in range(5):
            job = lab.run_many([f"Question {n}" for n in range(100)])
            await asyncio.sleep(1)
            job.cancel()
            await job
        assert lab.strategy.slots is not None
        assert lab.strategy.slots.in_use == 0

    run_virtual(main)


@pytest.mark.parametrize("wrong", ["much", 0, 2.5, True])
def test_a_senseless_concurrency_is_refused(wrong: object) -> None:
    with pytest.raises((TypeError, ValueError), match="concurrency"):
        llmlab.Lab(concurrency=wrong)  # type: ignore[arg-type]
