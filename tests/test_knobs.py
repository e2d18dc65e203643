"""What may be turned in a strategy by hand, and `lab.use`, which puts another one in its place."""

import random
from pathlib import Path

import pytest

import llmlab
from llmlab import Admit, Rate, Retry, Slots, Strategy
from llmlab.clock import run_virtual
from llmlab.knobs import JITTERS, OWN, Knobs
from llmlab.sim import Faults, Physics, Simulator


def own(n: int, previous: float, rng: random.Random) -> float:  # noqa: ARG001
    return 2.5


def test_knobs_stand_as_the_strategy_has_them() -> None:
    assert Knobs.of(Strategy.default(rpm=90)) == Knobs(90, 6, "full", rated=True)
    assert Knobs.of(Strategy.bare()) == Knobs(None, None, None, rated=False)
    assert Knobs.of(Strategy.default(retry=Retry(backoff="openai"))).jitter == "openai"
    assert Knobs.of(Strategy.default(retry=Retry(backoff=own))).jitter == OWN


@pytest.mark.parametrize("jitter", JITTERS)
def test_a_strategy_gets_them_and_keeps_the_rest(jitter: str) -> None:
    mine = Strategy("mine", (Retry(attempts=3, cap=7.0), Admit((Slots(5), Rate(tpm=1000)))))
    turned = Knobs(120, 4, jitter, rated=True).on(mine)
    assert Knobs.of(turned) == Knobs(120, 4, jitter, rated=True)
    assert turned.slots is not None
    assert turned.slots.limit == 5
    retry = turned.policies[0]
    assert isinstance(retry, Retry)
    assert retry.cap == 7.0
    assert retry.seconds(1, 0.0, random.Random(1)) >= 0
    assert Knobs.of(mine) == Knobs(None, 3, "full", rated=True), "the user's own was changed"


def test_as_they_stand_they_change_nothing_and_a_backoff_of_ones_own_stays() -> None:
    mine = Strategy.default(retry=Retry(backoff=own))
    assert Knobs.of(mine).on(mine) == mine
    kept = next(each for each in Knobs(60, 2, OWN, rated=True).on(mine).policies if isinstance(each, Retry))
    assert (kept.attempts, kept.seconds(1, 0.0, random.Random(1))) == (2, 2.5)


# -- lab.use ----------------------------------------------------------------------------------------------


def test_a_lab_takes_another_strategy_between_jobs_and_not_while_one_is_at_work() -> None:
    async def main() -> None:
        flaky = Simulator(physics=Physics.instant(ttft=0.1), faults=Faults.parse("server_error:1"))
        lab = llmlab.Lab("openai:m", api_key="k", transport=flaky, strategy=Strategy.bare(), progress=False)
        assert (await lab.run_many(["a"])).attempts.tolist() == [1]
        lab.use(Strategy.default(retry=Retry(attempts=3), concurrency=7))
        assert lab.concurrency == 7
        job = lab.run_many(["a"])
        with pytest.raises(RuntimeError, match="1 of this lab's jobs have not ended"):
            lab.use(Strategy.bare())
        assert (await job).attempts.tolist() == [3]
        with pytest.raises(TypeError, match="strategy must be a Strategy"):
            lab.use("bare")  # type: ignore[arg-type]

    run_virtual(main)


def test_cache_budget_and_fallbacks_stay(tmp_path: Path) -> None:
    simulator = Simulator(physics=Physics.instant())
    lab = llmlab.Lab("openai:m", api_key="k", transport=simulator, cache=tmp_path / "cache.sqlite", progress=False,
                     budget_tokens=100_000, fallback=llmlab.Lab(progress=False))  # fmt: skip
    lab.run_many(["a"]).result()
    lab.use(Strategy.default(concurrency=3))
    assert lab.run_many(["a"]).result().cache_hit.tolist() == [True]
    assert simulator.requests == 1
    assert lab.strategy.fallback is not None
    assert lab.target.line is not None
    assert lab.target.line.budget is not None
    with pytest.raises(ValueError, match="cannot keep to a budget"):
        lab.use(Strategy.bare())
    assert lab.concurrency == 3
    lab.close()
