"""Budgets and typed answers of batches."""

import dataclasses
from typing import Any

import pytest

from llmlab.clock import run_virtual
from llmlab.errors import BudgetSpent
from llmlab.sim.batches import BatchPace
from tests.batch.labs import both, make_lab, make_sim

PROMPTS = [f"prompt {n}" for n in range(30)]


@dataclasses.dataclass
class Label:
    mood: str
    score: int


@both
def test_a_batch_that_might_pass_the_budget_is_not_sent(dialect: str) -> None:
    async def main() -> None:
        sim = make_sim()
        lab = make_lab(sim, dialect, max_tokens=1000)
        with pytest.raises(BudgetSpent, match="a batch of 30 rows"):
            await lab.submit_batch(PROMPTS, budget_usd=0.1)
        assert sim.stats()["batch"]["requests"] == 0
        assert set((await lab.submit_batch(PROMPTS, budget_usd=0.2)).status) == {"ok"}, "at half the price it fits"

    run_virtual(main)


@both
def test_a_batch_counts_in_the_labs_budget(dialect: str) -> None:
    async def main() -> Any:
        sim = make_sim(BatchPace(failing=0.2))
        lab = make_lab(sim, dialect, budget_tokens=100_000)
        frame = await lab.submit_batch(PROMPTS)
        budget = lab._budget
        assert budget is not None
        return frame, sim.stats()["tokens"], budget

    frame, tokens, budget = run_virtual(main)
    assert (
        budget.spent_tokens
        == tokens["input"] + tokens["output"]
        == frame.input_tokens.sum() + frame.output_tokens.sum()
    )
    assert (budget.reserved_tokens, budget.in_use) == (0.0, 0)


@both
def test_what_nobody_has_waited_for_counts_as_what_it_may_cost(dialect: str) -> None:
    async def main() -> Any:
        lab = make_lab(make_sim(BatchPace(start=1000)), dialect, budget_tokens=100_000, max_tokens=1000)
        job = lab.submit_batch(PROMPTS)
        await job.submitted()
        job.stop("interrupted")
        await job
        budget = lab._budget
        assert budget is not None
        return budget

    budget = run_virtual(main)
    assert 30_000 < budget.spent_tokens < 31_000
    assert budget.reserved_tokens == 0


@both
def test_answers_are_read_into_what_was_asked_for(dialect: str) -> None:
    async def main() -> Any:
        lab = make_lab(make_sim(), dialect)
        job = lab.submit_batch(PROMPTS, schema=Label)
        frame = await job
        again = await lab.attach_batch(str(job.id), PROMPTS, schema=Label)
        return frame, again, await lab.run_many(PROMPTS, schema=Label)

    frame, again, plain = run_virtual(main)
    assert set(frame.status) == {"ok"}
    assert list(frame.columns) == list(plain.columns)
    assert list(frame.mood) == list(again.mood) == list(plain.mood)
    assert str(frame.score.dtype) == "Int64"


@both
def test_an_answer_that_does_not_fit_is_paid_for_kept_and_asked_for_again(dialect: str) -> None:
    turn = {"bad": True}

    async def main() -> Any:
        sim = make_sim(
            say=lambda ask: "no JSON at all" if turn["bad"] and "prompt 7" in ask.text else '{"mood":"good","score":3}'
        )
        job = make_lab(sim, dialect).submit_batch(PROMPTS, schema=Label)
        first = await job
        turn["bad"] = False
        return first, await job.resubmit(), sim.stats()["tokens"]

    first, second, tokens = run_virtual(main)
    assert list(first.index[first.status == "error"]) == [7]
    assert (first.error_type[7], first.content[7]) == ("SchemaMismatch", "no JSON at all")
    assert first.cost_usd[7] > 0
    assert (second.status[7], second.attempts[7], second.score[7]) == ("ok", 2, 3)
    assert second.output_tokens.sum() == tokens["output"], "both answers to the row are on the bill"
    bill = (3.0 * tokens["input"] + 12.0 * tokens["output"]) / 1e6 / 2
    assert second.cost_usd.sum() == pytest.approx(bill)


@both
def test_the_id_and_the_schema_give_the_typed_columns_back(dialect: str) -> None:
    async def main() -> Any:
        sim = make_sim()
        job = make_lab(sim, dialect).submit_batch(PROMPTS, schema=Label)
        frame = await job
        return frame, await make_lab(sim, dialect).attach_batch(str(job.id), schema=Label)

    frame, again = run_virtual(main)
    assert list(again.columns) == list(frame.columns)
    assert list(again.score) == list(frame.score)
    assert again.dtypes[["mood", "score"]].equals(frame.dtypes[["mood", "score"]])


@both
def test_answers_taken_up_by_the_id_that_do_not_fit_are_errors(dialect: str) -> None:
    async def main() -> Any:
        sim = make_sim()
        job = make_lab(sim, dialect).submit_batch(PROMPTS)
        await job
        return await make_lab(sim, dialect).attach_batch(str(job.id), schema=Label)

    again = run_virtual(main)
    assert set(again.error_type) == {"SchemaMismatch"}
    assert again.content.notna().all()
