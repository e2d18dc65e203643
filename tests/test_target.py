"""What a target tells a call, how targets move between loops, and budgets that hold over several of them."""

import asyncio
import threading
from typing import Any

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import llmlab
from llmlab.call import Call, Lane
from llmlab.clock import run_virtual
from llmlab.errors import BudgetSpent, ServerError, Unsendable
from llmlab.estimate import Estimator
from llmlab.loops import Home
from llmlab.policies.admit import Admit
from llmlab.prices import Price
from llmlab.providers import connect
from llmlab.rules.slots import Slots
from llmlab.rules.spend import Spend
from llmlab.sim.faults import Faults
from llmlab.sim.transport import Simulator
from llmlab.strategy import Strategy
from llmlab.target import Route, Target
from llmlab.types import Prompt, Reply
from tests.conftest import reply

PRICES = {"small": Price(1.0, 2.0)}


def target(name: str = "sim:small", strategy: Strategy | None = None, home: Home | None = None) -> Target:
    provider = connect(name, prices=PRICES)
    return Target(provider, strategy or Strategy.bare(), home or Home())


@pytest.mark.parametrize(("own", "model", "price"), [(None, "small", PRICES["small"]), ("big", "big", None)])
def test_a_call_knows_where_it_is_on_its_way_to_and_at_what_price(make_call, own, model: str, price) -> None:
    call = make_call()
    call.prompt = Prompt.of("x", model=own)
    answer = run_virtual(lambda: target()(call))
    assert (call.provider, call.model, call.price, answer.model) == ("sim", model, price, model)


def test_a_target_is_called_as_it_was_given_to_the_lab() -> None:
    assert (target().name, target("sim:x").name) == ("sim:small", "sim:x")
    assert [name for name, _ in Route(target("sim:a"), [target("sim:b")]).lines] == ["sim:a", "sim:b"]
    assert Route(target(strategy=Strategy("none", ()))).lines == ()


def test_on_another_loop_state_is_new_and_what_was_spent_stays_spent() -> None:
    one, spend, forgot = target(strategy=Strategy.bare(concurrency=3)), Spend(tokens=100), []
    one.limit_spending(spend)
    one.provider.sender.forget = lambda: forgot.append(1)  # type: ignore[method-assign]
    route = Route(one)
    seen = [one.line]

    async def main() -> None:
        for _ in range(2):
            route.bind()
            seen.append(one.line)
            assert one.line is not None
            assert one.line.budget is spend
            assert one.strategy == Strategy.bare(concurrency=3)

    run_virtual(main)
    run_virtual(main)
    assert [each is seen[0] for each in seen] == [True, True, True, False, False]
    assert len(forgot) == 1


def test_a_lab_that_was_moved_by_another_one_is_moved_altogether() -> None:
    """A falls back to C, and B to A: once B has taken A along, A must not think that C was there already."""
    home = Home()
    a = Route(target("sim:a", Strategy.bare().with_fallback(), home), [target("sim:c", home=home)])
    b = Route(target("sim:b", Strategy.bare().with_fallback()), [a.first])
    lines = []

    async def main() -> None:
        b.bind()
        a.bind()
        lines.append(a.others[0].line)

    run_virtual(main)
    run_virtual(main)
    assert lines[0] is not lines[1]


def test_a_lab_that_serves_as_a_target_has_its_own_targets_to_fall_back_to() -> None:
    dead = Simulator(faults=Faults.only("unavailable"))
    quick = Strategy.default(retry=llmlab.Retry(attempts=1))

    async def main() -> Reply:
        a = llmlab.Lab("openai:a", transport=dead, fallback="sim:c", strategy=quick)
        return await llmlab.Lab("openai:b", transport=dead, fallback=a, strategy=quick).run("Hello")

    assert run_virtual(main).model == "c"


def test_a_target_at_work_on_another_loop_is_refused_in_words() -> None:
    ready, done = threading.Event(), threading.Event()
    other = target()

    async def elsewhere() -> None:
        Route(other).bind()
        ready.set()
        await asyncio.to_thread(done.wait)

    async def here() -> None:
        Route(target(), [other]).bind()

    thread = threading.Thread(target=asyncio.run, args=(elsewhere(),))
    thread.start()
    try:
        ready.wait()
        with pytest.raises(RuntimeError, match="at work on another event loop"):
            asyncio.run(here())
    finally:
        done.set()
        thread.join()


def test_closing_a_lab_closes_its_own_connections_only() -> None:
    home, closed = Home(), list[str]()
    route = Route(target("sim:a", home=home), [target("sim:b", home=home), target("sim:c")])
    for each in route.targets:

        async def aclose(name: str = each.name) -> None:
            closed.append(name)

        each.provider.sender.aclose = aclose  # type: ignore[method-assign]
    run_virtual(route.aclose)
    assert closed == ["sim:a", "sim:b"]


@pytest.mark.parametrize("bad", [Strategy("none", ()), Strategy.bare()])
@pytest.mark.parametrize("last", [False, True])
def test_a_budget_needs_estimates_at_all_targets(bad: Strategy, last: bool) -> None:
    targets = [target("sim:a", Strategy.default()), target("sim:b", bad)]
    if not last:
        targets.reverse()
    Route(targets[0], targets[1:])
    with pytest.raises(ValueError, match=f"{bad.name}' cannot keep to a budget at sim:b: it has no Admit with an Est"):
        targets[0].check_budget()


# -- budgets ----------------------------------------------------------------------------------------------


def gate(slots: int = 9, budget: Spend | None = None) -> Admit:
    made = Admit((Slots(slots),), Estimator())
    made.budget = budget
    return made


async def second(_: Call) -> Reply:
    await asyncio.sleep(1.0)
    return reply()


def asking(make_call: Any, index: int, tokens: int, *budgets: Spend, **fields: Any) -> Call:
    """A call that uses at most `tokens`, and a quarter more than the 7 that are guessed for its input."""
    call: Call = make_call(index, lane=fields.pop("lane", None) or Lane(budgets=budgets), **fields)
    call.prompt = Prompt.of("", max_tokens=tokens)
    return call


async def settled(*tasks: Any) -> list[Any]:
    return await asyncio.gather(*tasks, return_exceptions=True)


def test_a_lane_whose_budget_is_spent_holds_nobody_else(make_call) -> None:
    line, poor = gate(slots=1), Spend(tokens=150)
    calls = [asking(make_call, 0, 100, poor), asking(make_call, 1, 100, poor), *map(make_call, range(2, 6))]

    async def main() -> tuple[float, list[Any]]:
        out = await settled(*(line(call, second) for call in calls))
        return asyncio.get_running_loop().time(), out

    took, out = run_virtual(main)
    assert [type(each) for each in out] == [Reply, BudgetSpent, Reply, Reply, Reply, Reply]
    assert took == pytest.approx(5.0, abs=0.01)


def test_what_is_reserved_holds_a_row_back_until_it_is_given_back(make_call) -> None:
    line, budget = gate(), Spend(tokens=150)
    calls = [asking(make_call, i, 100, budget) for i in range(2)]

    async def cheap(call: Call) -> Reply:
        call.usage = llmlab.Usage(5, 5)
        return await second(call)

    out = run_virtual(lambda: settled(*(line(call, cheap) for call in calls)))
    assert [type(each) for each in out] == [Reply, Reply]
    assert budget.spent_tokens == 20.0
    assert calls[1].queue_s == pytest.approx(1.0, abs=0.01)


def test_a_request_too_dear_takes_nobody_of_its_lane_with_it(make_call) -> None:
    """All calls of `lab.run` of one priority share a lane, and are nobody's fault but their own."""
    line, lane = gate(slots=1), Lane(budgets=(Spend(tokens=1000),))
    calls = [asking(make_call, i, tokens, lane=lane) for i, tokens in enumerate([50, 5000, 60, 7000, 70])]
    out = run_virtual(lambda: settled(*(line(call, second) for call in calls)))
    assert [type(each) for each in out] == [Reply, BudgetSpent, Reply, BudgetSpent, Reply]
    assert "5009" in str(out[1])
    assert "7009" in str(out[3])


def test_of_two_budgets_the_one_that_holds_is_the_one_that_refuses(make_call) -> None:
    """What another request was told by a budget says nothing about this one."""
    line, job, lab = gate(), Spend(tokens=150), Spend(tokens=300)
    large, small = asking(make_call, 0, 200, job), asking(make_call, 2, 100, lab, job)

    async def main() -> list[Any]:
        with pytest.raises(BudgetSpent):
            await line(large, second)
        return await settled(line(asking(make_call, 1, 200, lab), second), line(small, second))

    assert [type(each) for each in run_virtual(main)] == [Reply, BudgetSpent]
    assert small.queue_s == pytest.approx(1.0, abs=0.01)


def test_a_budget_shared_by_two_lines_is_noticed_when_it_is_given_back_in_the_other_one(make_call) -> None:
    here, there, budget = gate(), gate(), Spend(tokens=150)
    calls = [asking(make_call, i, 100, budget) for i in range(3)]

    async def cheap(call: Call) -> Reply:
        call.usage = llmlab.Usage(5, 5)
        return await second(call)

    async def main() -> list[Any]:
        asked = [asyncio.create_task(line(call, cheap)) for line, call in zip((there, here, here), calls, strict=True)]
        await asyncio.sleep(0)
        paused = asyncio.create_task(here(make_call(9, lane=Lane(held=True)), cheap))  # is no reason not to look
        out = await settled(*asked)
        paused.cancel()
        return out

    assert [type(each) for each in run_virtual(main)] == [Reply, Reply, Reply]
    assert budget.spent_tokens == 30.0


@pytest.mark.parametrize("own", [True, False])
def test_only_the_budget_of_another_lab_is_a_reason_to_try_the_next_target(make_call, own: bool) -> None:
    """The lab that serves as a target has its own; a row's own budget goes along with it."""
    budget = Spend(tokens=10)
    line, call = gate(budget=budget), asking(make_call, 0, 100, *([budget] if own else [Spend(tokens=9999)]))
    (error,) = run_virtual(lambda: settled(line(call, second)))
    assert isinstance(error, BudgetSpent)
    assert (error.verdict.fallback, error.verdict.fatal) == (not own, True)


def test_a_budget_of_the_line_and_of_the_lane_is_charged_once(make_call) -> None:
    budget = Spend(tokens=10_000)
    run_virtual(lambda: gate(budget=budget)(asking(make_call, 0, 100, budget), second))
    assert budget.spent_tokens == 100 + 1.25 * 7


def test_a_model_without_a_price_cannot_go_but_another_targets_may(make_call) -> None:
    (error,) = run_virtual(lambda: settled(gate()(asking(make_call, 0, 100, Spend(usd=1.0)), second)))
    assert isinstance(error, Unsendable)
    assert error.verdict.fallback
    assert "Lab(prices={model: (input, output)})" in str(error)


def test_dollars_are_reserved_for_the_longest_answer_allowed(make_call) -> None:
    budget = Spend(usd=1.0)

    async def look(_: Call) -> Reply:
        assert budget.reserved_usd == pytest.approx((1.25 * 7 * 1.0 + 1000 * 2.0) / 1e6)
        return reply()

    call = asking(make_call, 0, 1000, budget, price=PRICES["small"])
    run_virtual(lambda: gate()(call, look))
    assert budget.spent_usd == pytest.approx(2008.75e-6)


@pytest.mark.parametrize("error", [None, ServerError("broken")])
def test_only_a_complete_answer_teaches_and_a_bound_never_goes_below_the_first_guess(make_call, error) -> None:
    line, budget = gate(), Spend(tokens=10_000)
    reserved: list[float] = []

    async def look(call: Call) -> Reply:
        reserved.append(budget.reserved_tokens)
        call.usage = llmlab.Usage(1, 500)
        if error is not None:
            raise error
        return reply()

    async def main() -> None:
        for index in range(2):
            await settled(line(make_call(index, lane=Lane(budgets=(budget,))), look))

    run_virtual(main)
    guess = line.estimator.cost(Prompt.of("prompt 0"), "").guess if line.estimator else 0.0
    assert reserved == [1.25 * guess + 256, 1.25 * guess + (500 if error is None else 256)]


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 1000), st.integers(500, 20_000))
def test_a_job_with_targets_stops_before_its_budget_is_passed(seed: int, tokens: int) -> None:
    """Attempts of all targets count, failed ones too."""
    flaky = Faults.only("cut", 0.15) | Faults.only("unavailable", 0.1)

    async def main() -> tuple[pd.DataFrame, pd.DataFrame]:
        lab = llmlab.Lab(
            "anthropic:a",
            transport=Simulator(seed=seed, faults=flaky),
            fallback=llmlab.Lab("anthropic:b", transport=Simulator(seed=seed + 1, faults=flaky)),
            strategy=Strategy.default(retry=llmlab.Retry(attempts=2), concurrency=8),
            seed=seed,
        )
        job = lab.run_many(["What is tea?"] * 150, max_tokens=60, budget_tokens=tokens, stream=True)
        return await job, job.attempts

    out, attempts = run_virtual(main)
    used = attempts.input_tokens.sum() + attempts.output_tokens.sum()
    assert used <= tokens
    assert len(out) == 150
    if out.status.eq("cancelled").any():
        assert used > tokens - 80  # less than what the next request may use
