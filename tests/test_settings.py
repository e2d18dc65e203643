import asyncio
from typing import Any

import pytest

import llmlab
from llmlab.call import PRIORITIES, Lane
from llmlab.clock import run_virtual
from llmlab.errors import QueueFull, ServerError
from llmlab.loops import Home
from llmlab.policies.admit import Admit
from llmlab.policies.cache import Cache
from llmlab.policies.fallback import Fallback
from llmlab.policies.retry import Retry
from llmlab.rules.adaptive import Adaptive
from llmlab.rules.breaker import Breaker
from llmlab.rules.slots import Slots
from llmlab.rules.spend import Spend
from llmlab.settings import budget_of, check_priority, limit_of, live_strategy, open_route
from llmlab.sim.physics import Physics
from llmlab.sim.transport import Simulator
from llmlab.strategy import Strategy
from llmlab.target import Route
from llmlab.types import Reply
from tests.conftest import Script
from tests.test_admit import Busy

NOTHING: dict[str, Any] = {"rpm": None, "tpm": None, "queue": None}


def route(fallback: Any = (), strategy: Strategy | None = None, **named: Any) -> Route:
    given = {"base_url": None, "api_key": None, "transport": None, "prices": None, "seed": 1, "cache": None}
    live = strategy or Strategy.default()
    return open_route("sim:a", live, home=Home(), fallback=fallback, spill=strategy is None, **(given | named))


def patience(of: Route) -> list[float]:
    """Seconds of an outage that each target waits for."""
    rules = [rule for each in of.targets if each.line is not None for rule in each.line.rules]
    return [rule.give_up_after for rule in rules if isinstance(rule, Breaker)]


# -- targets ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fallback", "names"),
    [
        ((), ["sim:a"]),
        ("sim:b", ["sim:a", "sim:b"]),
        (["sim:b", "sim:c"], ["sim:a", "sim:b", "sim:c"]),
        (iter(["sim:b"]), ["sim:a", "sim:b"]),
    ],
)
def test_the_targets_are_those_given_in_that_order(fallback: Any, names: list[str]) -> None:
    assert [each.name for each in route(fallback).targets] == names


def test_a_lab_as_a_target_keeps_its_own_limits_and_connections() -> None:
    lab = llmlab.Lab("sim:b", concurrency=3)
    made = route([lab, "sim:c"])
    assert made.others[0] is lab.target
    assert made.others[0].line is lab.strategy.admit
    assert made.others[1].home is made.first.home is not lab.target.home
    assert lab.concurrency == 3


@pytest.mark.parametrize("wrong", [["sim:b", 4], [None], b"sim", [Strategy.bare()]])
def test_what_is_no_target_is_refused(wrong: Any) -> None:
    with pytest.raises(TypeError, match="fallback must be 'provider:model' or a Lab, or several of them, not"):
        route(wrong)


def test_only_the_last_target_waits_for_an_outage_to_end() -> None:
    assert patience(route()) == [600.0]
    assert patience(route("sim:b")) == [0.0, 600.0]
    assert patience(route(["sim:b", "sim:c"])) == [0.0, 0.0, 600.0]
    assert patience(route(["sim:b", "sim:c"], Strategy.default())) == [600.0] * 3  # a strategy of one's own is kept to


def test_what_holds_for_a_row_as_a_whole_stands_above_the_targets_and_the_rest_at_each(tmp_path) -> None:
    made = route("sim:b", Strategy.default(total=60.0), cache=tmp_path / "answers.sqlite")
    first, second = ([type(policy).__name__ for policy in each.strategy.policies] for each in made.targets)
    assert first == ["Cache", "Timeout", "Fallback", "Retry", "Admit", "Timeout"]
    assert second == ["Retry", "Admit", "Timeout"]
    assert made.first.line is not made.others[0].line
    assert [type(policy) for policy in route(cache=Cache(tmp_path / "x.sqlite")).first.strategy.policies[:2]] == [
        Cache,
        Retry,
    ]


def test_a_fallback_of_ones_own_is_kept() -> None:
    policy = route("sim:b", Strategy.default(fallback=Fallback(retire=5.0))).first.strategy.fallback
    assert policy == Fallback(retire=5.0)


def test_prices_hold_at_all_targets() -> None:
    made = route("sim:b", prices={"b": (1.0, 2.0)})
    assert made.others[0].provider.prices.get("b") == llmlab.Price(1.0, 2.0)


# -- limits -----------------------------------------------------------------------------------------------


def test_limits_go_into_the_default_strategy() -> None:
    made = live_strategy(None, 7, rpm=60, tpm=1000, queue=5)
    assert made == Strategy.default(concurrency=7, rpm=60, tpm=1000, queue=5)
    assert limit_of(live_strategy(None, None, **NOTHING)).limit == 32
    assert isinstance(limit_of(live_strategy(None, "auto", **NOTHING)), Adaptive)


def test_a_strategy_of_ones_own_is_copied_and_takes_a_concurrency() -> None:
    own = Strategy.bare(concurrency=3)
    made = live_strategy(own, 9, **NOTHING)
    assert (limit_of(made).limit, limit_of(own).limit) == (9, 3)
    assert live_strategy(own, None, **NOTHING) == own
    assert live_strategy(own, None, **NOTHING).admit is not own.admit


@pytest.mark.parametrize(
    ("strategy", "given", "error", "complaint"),
    [
        (Strategy.bare(), {"rpm": 60}, ValueError, "rpm and tpm belong to the default strategy: put a Rate into yours"),
        (Strategy.bare(), {"tpm": 60}, ValueError, "rpm and tpm belong to the default strategy"),
        (Strategy.bare(), {"queue": 6}, ValueError, r"queue belongs to the default strategy: .* as Admit\(\(…,\), que"),
        (Strategy.bare(), {"concurrency": "auto"}, ValueError, "brings its own controller"),
        (Strategy("x", ()), {"concurrency": 4}, ValueError, "'x' has no Admit with Slots, so no concurrency to set"),
        ("default", {}, TypeError, "strategy must be a Strategy, not str"),
        (None, {"queue": 0}, ValueError, "queue must be a whole number of at least 1, not 0"),
        (None, {"concurrency": 0}, ValueError, "concurrency must be at least 1, not 0"),
        (None, {"rpm": -1}, ValueError, "rpm must be a finite number above 0, not -1"),
    ],
)
def test_limits_that_fit_to_nothing_are_refused_in_words(strategy, given, error, complaint: str) -> None:
    named = NOTHING | given
    with pytest.raises(error, match=complaint):
        live_strategy(strategy, named.pop("concurrency", None), **named)


@pytest.mark.parametrize("priority", [4, -1, True, 1.0, "2", None])
def test_a_priority_is_a_whole_number_from_0_to_3(priority: Any) -> None:
    for each in PRIORITIES:
        check_priority(each)
    with pytest.raises((TypeError, ValueError), match=r"priority must be .*from 0 \(critical\) to 3 \(low\), not"):
        check_priority(priority)


def test_a_budget_is_of_what_is_limited() -> None:
    target = route(prices={"a": (1.0, 2.0)}).first
    assert budget_of(target, None, None) is None
    assert budget_of(target, 1.5, None) == Spend(usd=1.5)
    assert budget_of(target, None, 900) == Spend(tokens=900)
    assert budget_of(target, 1.5, 900) == Spend(usd=1.5, tokens=900)


def test_a_budget_in_dollars_needs_a_price() -> None:
    with pytest.raises(
        ValueError, match=r"budget_usd needs the price of 'a': Lab\(prices=\{'a': \(input, output\)\}\)"
    ):
        budget_of(route().first, 1.5, None)


# -- the line's bound -------------------------------------------------------------------------------------


@pytest.mark.parametrize("patient", [True, False])
def test_only_an_impatient_call_is_refused_when_the_line_is_full(make_call, patient: bool) -> None:
    gate, endpoint = Admit((Slots(1),), queue=2), Busy()

    async def main() -> list[Reply | BaseException]:
        calls = [make_call(i, lane=Lane(patient=patient)) for i in range(5)]
        return await asyncio.gather(*(gate(call, endpoint) for call in calls), return_exceptions=True)

    out = run_virtual(main)
    assert [isinstance(each, QueueFull) for each in out] == [False] * 3 + [not patient] * 2
    if not patient:
        assert str(out[4]).startswith("2 requests wait in the lab's line already, its bound is 2")


def test_a_retry_is_not_refused_even_if_it_never_stood_in_line(make_call) -> None:
    gate, lane = Admit((Slots(1),), queue=1), Lane(patient=False)
    stack = (Retry(growth="constant", jitter="none", base=1.0), gate)
    handler = Strategy("test", stack).handler(Script(ServerError("boom"), 5.0, 5.0))

    async def main() -> None:
        await asyncio.gather(*(handler(make_call(i, lane=lane)) for i in range(3)))

    run_virtual(main)


@pytest.mark.parametrize("queue", [0, True, 2.5, None])
def test_the_bound_of_the_line_must_be_a_whole_number_above_zero(queue) -> None:
    with pytest.raises(ValueError, match="queue must be a whole number of at least 1, not"):
        Admit(queue=queue)


def test_a_run_is_refused_when_the_labs_line_is_full_and_rows_of_a_job_are_held_back() -> None:
    slow = Simulator(physics=Physics(rtt=1.0))

    async def main() -> list[Any]:
        lab = llmlab.Lab("openai:m", transport=slow, concurrency=2, queue=3)
        job = lab.run_many([f"Question {n}" for n in range(100)])
        out = await asyncio.gather(*(lab.run("Hello") for _ in range(8)), return_exceptions=True)
        return [type(each) for each in out] + (await job).status.tolist()

    out = run_virtual(main)
    assert out[:8].count(QueueFull) == 8 - out[:8].count(Reply) > 3
    assert out[8:] == ["ok"] * 100


@pytest.mark.parametrize("priority", [0, 1])
def test_a_more_urgent_run_passes_the_rows_of_a_job(priority: int) -> None:
    async def main() -> float:
        lab = llmlab.Lab("openai:m", transport=Simulator(physics=Physics(rtt=1.0)), concurrency=2)
        job = lab.run_many([f"Question {n}" for n in range(60)])
        await asyncio.sleep(5.0)
        await lab.run("Hello", priority=priority)
        took = asyncio.get_running_loop().time() - 5.0
        job.cancel()
        await job
        return took

    assert run_virtual(main) < 4.5


def test_two_jobs_of_a_lab_share_it_by_tokens() -> None:
    async def main() -> tuple[float, float]:
        lab = llmlab.Lab("openai:m", transport=Simulator(physics=Physics(rtt=1.0, itl=0.0)), concurrency=4)
        long = lab.run_many(["word " * 2000] * 100, max_tokens=10)
        short = lab.run_many(["word " * 200] * 1000, max_tokens=10)
        await asyncio.sleep(60.0)
        shares = [job.frame.input_tokens.sum() for job in (long, short)]
        for job in (long, short):
            job.cancel()
            await job
        return shares[0], shares[1]

    one, other = run_virtual(main)
    assert one == pytest.approx(other, rel=0.2)
