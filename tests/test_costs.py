"""What a job has cost: every attempt counts, whether or not it brought an answer."""

import asyncio
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import llmlab
from llmlab.clock import run_virtual
from llmlab.sim import Faults, Simulator

PRICES = {"m": (1.0, 10.0)}  # dollars per million tokens


def run(
    rows: int = 60, *, faults: Faults | None = None, strategy: llmlab.Strategy | None = None, **options: Any
) -> tuple[pd.DataFrame, Any]:
    """Streamed by the Anthropic dialect, where a broken answer has named its input tokens already."""

    async def main() -> tuple[pd.DataFrame, Any]:
        simulator = Simulator(seed=3, faults=faults or Faults())
        live = strategy or llmlab.Strategy.default(concurrency=8)
        lab = llmlab.Lab("anthropic:m", transport=simulator, prices=PRICES, seed=1, strategy=live)
        job = lab.run_many([f"question {n}" for n in range(rows)], stream=True, **options)
        return await job, job

    return run_virtual(main)


def bill(frame: pd.DataFrame) -> float:
    return float((frame.input_tokens.sum() * 1.0 + frame.output_tokens.sum() * 10.0) / 1e6)


BROKEN = Faults(rates={"cut": 0.3})


def test_tokens_and_money_of_failed_attempts_are_in_the_rows_and_in_the_totals() -> None:
    out, job = run(faults=BROKEN)
    attempts = job.attempts
    wasted = attempts[attempts.status == "error"]
    assert (out.status == "ok").all()
    assert len(wasted) > 10
    assert wasted.input_tokens.notna().all()
    assert out.input_tokens.sum() == attempts.input_tokens.sum()
    assert out.output_tokens.sum() == attempts.output_tokens.sum()
    assert out.cost_usd.sum() == pytest.approx(attempts.cost_usd.sum()) == pytest.approx(bill(out))
    total = llmlab.summary(out)
    assert total.cost_usd == pytest.approx(bill(attempts))
    assert total.input_tokens == attempts.input_tokens.sum()


def test_a_row_that_failed_for_good_has_cost_something_all_the_same() -> None:
    once = llmlab.Strategy.default(retry=llmlab.Retry(attempts=1))
    out, _ = run(rows=3, faults=Faults(rates={"cut": 1.0}), strategy=once)
    assert (out.status == "error").all()
    assert (out.input_tokens > 0).all()
    assert (out.cost_usd > 0).all()
    assert llmlab.summary(out).cost_usd == pytest.approx(bill(out))


def test_the_progress_shows_the_same_bill() -> None:
    out, job = run(faults=BROKEN)
    assert job.progress.now.cost_usd == pytest.approx(bill(out))
    assert job.look().cost_usd == pytest.approx(bill(out))


@pytest.fixture
def journal(tmp_path: Path) -> str:
    return str(tmp_path / "run.sqlite")


def test_a_journal_gives_the_same_bill_back(journal: str) -> None:
    async def main() -> tuple[pd.DataFrame, pd.DataFrame]:
        lab = llmlab.Lab(
            "anthropic:m", transport=Simulator(seed=3, faults=BROKEN), prices=PRICES, seed=1, loop="thread"
        )
        out = await lab.run_many([f"question {n}" for n in range(20)], stream=True, journal=journal)
        again = await lab.run_many([f"question {n}" for n in range(20)], stream=True, journal=journal)
        return out, again

    out, again = asyncio.run(main())
    read = llmlab.journal.read(journal)
    for frame in (again, read):
        assert frame.input_tokens.tolist() == out.input_tokens.tolist()
        assert frame.cost_usd.sum() == pytest.approx(out.cost_usd.sum())


# -- budgets ----------------------------------------------------------------------------------------------


def test_a_budget_in_dollars_is_not_passed_and_the_rows_answered_are_kept() -> None:
    cap = 0.02
    out, job = run(rows=200, faults=BROKEN, budget_usd=cap, max_tokens=120)
    assert 0.5 * cap < job.attempts.cost_usd.sum() <= cap
    assert set(out.status) == {"ok", "error", "cancelled"}
    assert (out.status == "ok").sum() > 10
    spent = out[out.status == "error"]
    assert set(spent.error_type) <= {"BudgetSpent"}
    assert "budget" in job.events[job.events.event == "stopped"].detail.iloc[-1]


def test_a_budget_in_tokens_is_not_passed() -> None:
    out, job = run(rows=200, faults=BROKEN, budget_tokens=3000, max_tokens=120)
    used = job.attempts.input_tokens.sum() + job.attempts.output_tokens.sum()
    assert 1500 < used <= 3000
    assert (out.status == "ok").sum() > 10


def test_a_budget_that_is_large_enough_stops_nothing() -> None:
    out, _ = run(rows=50, budget_usd=10.0)
    assert (out.status == "ok").all()


def test_a_labs_budget_holds_over_all_its_jobs() -> None:
    async def main() -> tuple[float, list[str]]:
        lab = llmlab.Lab(
            "anthropic:m", transport=Simulator(seed=3), prices=PRICES, budget_usd=0.01, max_tokens=100, concurrency=4
        )
        jobs = [lab.run_many([f"{name} {n}" for n in range(60)]) for name in ("a", "b")]
        outs = [await job for job in jobs]
        return sum(out.cost_usd.sum() for out in outs), [str(set(out.status)) for out in outs]

    spent, statuses = run_virtual(main)
    assert 0.005 < spent <= 0.01
    assert all("cancelled" in each for each in statuses)


def test_a_budget_in_dollars_needs_a_price_before_anything_is_sent() -> None:
    simulator = Simulator()
    lab = llmlab.Lab("openai:nobody-lists-this", transport=simulator)
    with pytest.raises(ValueError, match="budget_usd needs the price of 'nobody-lists-this': Lab"):
        lab.run_many(["a"], budget_usd=1.0)
    assert simulator.requests == 0


@pytest.mark.parametrize(
    ("budget", "complaint"),
    [
        ({"budget_usd": 0}, "usd must be"),
        ({"budget_usd": "5"}, "usd must be"),
        ({"budget_tokens": 1.5}, "tokens must be"),
    ],
)
def test_a_budget_that_is_none_is_refused(budget: dict[str, Any], complaint: str) -> None:
    lab = llmlab.Lab("openai:m", transport=Simulator(), prices=PRICES)
    with pytest.raises((TypeError, ValueError), match=complaint):
        lab.run_many(["a"], **budget)


def test_a_strategy_without_estimates_cannot_keep_to_a_budget() -> None:
    lab = llmlab.Lab("openai:m", transport=Simulator(), strategy=llmlab.Strategy.bare(), prices=PRICES)
    with pytest.raises(ValueError, match="'bare' cannot keep to a budget"):
        lab.run_many(["a"], budget_tokens=1000)
