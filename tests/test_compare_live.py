"""`lab.compare(live=True)`: on the lab's own provider and loop, at a price that is said first."""

from typing import Any

import pandas as pd
import pytest

import llmlab
from llmlab import Strategy
from llmlab.clock import run_virtual
from llmlab.sim import Faults, Physics, Simulator

TWO = {"bare": Strategy.bare(), "default": Strategy.default()}
PROMPTS = [f"question {n}" for n in range(20)]
PRICED = {"small": (1.0, 10.0)}


def simulated(**fields: Any) -> llmlab.Lab:
    simulator = Simulator(physics=Physics(), faults=fields.pop("faults", None))
    return llmlab.Lab(transport=simulator, progress=False, **fields)


def live(lab: llmlab.Lab, strategies: Any = None, **fields: Any) -> Any:
    """A live comparison on a virtual loop: it runs on the lab's own, so a simulated provider does."""

    async def main() -> Any:
        job = lab.compare(strategies or TWO, **{"prompts": PROMPTS, "live": True, **fields})
        await job
        return job

    return run_virtual(main)


def test_every_prompt_is_sent_once_per_strategy_and_seed() -> None:
    lab = simulated()
    job = live(lab, seeds=[1, 2])
    assert lab.target.provider.transport.requests == 80  # type: ignore[union-attr]
    assert job.frame.ok.tolist() == [20] * 4
    assert job.frame.attrs["scenario"] == "live"
    assert len(job.rows) == 80


def test_what_only_a_simulated_provider_knows_is_missing() -> None:
    job = live(simulated(faults=Faults.only("error_in_stream", 0.5), prices=PRICED), stream=True, confirm=True)
    assert job.frame.calls_in_outage.isna().all()
    assert job.frame.failed[0] > 0
    assert (job.frame.wasted_tokens >= 0).all()


def test_the_price_is_said_before_anything_is_sent(capsys: pytest.CaptureFixture[str]) -> None:
    lab = simulated(prices=PRICED)
    with pytest.raises(ValueError, match=r"compare\(live=True\) would send 40 requests to sim:small, about .*\$0\.1"):
        live(lab)
    assert lab.target.provider.transport.requests == 0  # type: ignore[union-attr]
    live(lab, confirm=True)
    assert "compare sends 40 requests to sim:small" in capsys.readouterr().err


def test_what_costs_nothing_needs_no_yes(capsys: pytest.CaptureFixture[str]) -> None:
    live(simulated())
    assert "at no cost" in capsys.readouterr().err


def test_a_server_elsewhere_needs_a_yes_even_without_a_price() -> None:
    lab = llmlab.Lab("openai:m", base_url="https://llm.example/v1", api_key="k", progress=False)
    with pytest.raises(ValueError, match="at a price that is not known; pass confirm=True"):
        lab.compare(TWO, prompts=PROMPTS, live=True)


def test_a_server_on_this_machine_needs_none() -> None:
    lab = llmlab.Lab("openai:m", base_url="http://127.0.0.1:9/v1", progress=False)
    assert repr(lab.compare(TWO, prompts=PROMPTS, live=True)) == "<Comparison: 0 trials, 0/40 rows, not started>"


def test_a_budget_ends_it_with_the_trials_that_are_over() -> None:
    lab = simulated(prices=PRICED)
    strategies = {"a": Strategy.default(), "b": Strategy.default(), "c": Strategy.default()}
    job = live(lab, strategies, budget_usd=0.04)
    assert job.stopped == "the budget is spent"
    assert job.frame.strategy.tolist() == ["a", "b"]
    assert job.rows.cost_usd.sum() <= 0.04
    assert set(job.rows.strategy) == {"a", "b", "c"}, "what was paid for is there"


def test_a_budget_needs_strategies_that_can_keep_to_it() -> None:
    with pytest.raises(ValueError, match="'bare' cannot keep to a budget"):
        live(simulated(prices=PRICED), budget_usd=1.0)


def test_the_lab_s_own_fallbacks_are_those_of_a_strategy_with_one() -> None:
    off = simulated(faults=Faults.only("unavailable"), fallback=[simulated()])
    quick = llmlab.Retry(attempts=2, base=0.01)
    gives_up = llmlab.Breaker(give_up_after=0)
    strategies = {
        "with": Strategy.default(retry=quick, breaker=gives_up, fallback=llmlab.Fallback()),
        "without": Strategy.default(retry=quick, breaker=gives_up),
    }
    assert live(off, strategies).frame.ok.tolist() == [20, 0]


def test_the_labels_of_the_input_are_kept() -> None:
    out = live(simulated(), prompts=pd.DataFrame({"x": ["a", "b"]}, index=["p", "q"]), template="Say {x}").rows
    assert out.index.tolist() == ["p", "q", "p", "q"]
    assert out.prompt.tolist() == ["Say a", "Say b"] * 2
