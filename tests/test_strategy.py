import asyncio
from dataclasses import dataclass, field
from typing import Any

import pytest

from llmlab.call import Call, Handler
from llmlab.clock import run_virtual
from llmlab.errors import ServerError, TimedOut
from llmlab.estimate import Estimator
from llmlab.policies.admit import Admit
from llmlab.policies.retry import Retry
from llmlab.policies.timeout import Timeout
from llmlab.rules.breaker import Breaker
from llmlab.rules.rate import Rate
from llmlab.rules.slots import Slots
from llmlab.strategy import ATTEMPT, CONCURRENCY, Strategy
from llmlab.types import Reply
from tests.conftest import reply


@dataclass
class Counting:
    """A policy with a setting and a state."""

    setting: int = 1
    seen: int = field(default=0, init=False, compare=False)

    async def __call__(self, call: Call, inner: Handler) -> Reply:
        self.seen += 1
        return await inner(call)


async def endpoint(_: Call) -> Reply:
    return reply()


def kinds(strategy: Strategy) -> list[type]:
    return [type(policy) for policy in strategy.policies]


# -- the default order ------------------------------------------------------------------------------------


def test_the_default_order_is_retry_above_the_line_and_deadlines_below_it() -> None:
    assert kinds(Strategy.default()) == [Retry, Admit, Timeout]


def test_the_rows_own_deadline_stands_outside_everything() -> None:
    strategy = Strategy.default(total=5.0)
    assert kinds(strategy) == [Timeout, Retry, Admit, Timeout]
    assert strategy.policies[0] == Timeout(total=5.0)


def test_the_defaults_are_as_documented() -> None:
    strategy = Strategy.default()
    assert strategy.name == "default"
    assert strategy.slots == Slots(CONCURRENCY) == Slots(32)
    assert strategy.policies[0] == Retry()
    assert strategy.policies[-1] == ATTEMPT == Timeout(attempt=600, connect=10, first_token=120, between_tokens=60)


def test_each_part_of_the_default_can_be_replaced() -> None:
    retry, timeout, breaker = Retry(attempts=2), Timeout(attempt=1.0), Breaker(probes=1)
    strategy = Strategy.default(concurrency=3, rpm=60, retry=retry, breaker=breaker, timeout=timeout)
    assert strategy.policies == (retry, Admit((Slots(3), Rate(rpm=60, stray=0.1), breaker), Estimator()), timeout)


def test_bare_is_concurrency_and_nothing_else() -> None:
    assert Strategy.bare(concurrency=5) == Strategy("bare", (Admit((Slots(5),)),))


def test_the_default_answers_retries_and_ends_what_takes_too_long(make_call, script) -> None:
    flaky, slow = script(ServerError("boom"), None), script(1000.0)
    call = make_call()
    assert run_virtual(lambda: Strategy.default().handler(flaky)(call)).content == "answer"
    assert call.attempts == 2
    with pytest.raises(TimedOut) as raised:
        run_virtual(lambda: Strategy.default(total=30.0).handler(slow)(make_call()))
    assert raised.value.phase == "total"


@pytest.mark.parametrize("make", [Strategy.default, Strategy.bare])
@pytest.mark.parametrize(("concurrency", "error"), [(0, ValueError), (2.5, TypeError), ("8", TypeError)])
def test_a_senseless_concurrency_is_refused(make: Any, concurrency: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="concurrency must be"):
        make(concurrency=concurrency)


# -- copies -----------------------------------------------------------------------------------------------


def test_a_fresh_copy_has_the_settings_and_none_of_the_state(make_call) -> None:
    strategy = Strategy("mine", (Counting(7), Admit((Slots(2),))))

    async def main() -> Strategy:
        await strategy.handler(endpoint)(make_call())
        return strategy.fresh()

    copy = run_virtual(main)
    first, old = copy.policies[0], strategy.policies[0]
    assert copy == strategy
    assert isinstance(first, Counting)
    assert isinstance(old, Counting)
    assert (first.seen, old.seen) == (0, 1)
    assert copy.admit is not strategy.admit
    assert copy.slots is not strategy.slots


def test_two_copies_do_not_share_their_slots(make_call) -> None:
    strategy = Strategy.bare(concurrency=1)

    async def slow(_: Call) -> Reply:
        await asyncio.sleep(10)
        return reply()

    async def main() -> float:
        await asyncio.gather(*(strategy.fresh().handler(slow)(make_call(n)) for n in range(5)))
        return asyncio.get_running_loop().time()

    assert run_virtual(main) == pytest.approx(10, abs=0.01)


def test_a_policy_that_is_a_function_is_kept_as_it_is() -> None:
    async def through(call: Call, inner: Handler) -> Reply:
        return await inner(call)

    assert Strategy("mine", (through,)).fresh().policies == (through,)


def test_a_strategy_cannot_be_changed() -> None:
    with pytest.raises(AttributeError):
        Strategy.default().name = "other"  # type: ignore[misc]


# -- looking in -------------------------------------------------------------------------------------------


def test_the_line_and_the_slots_are_found_where_they_are() -> None:
    strategy = Strategy.default(concurrency=3)
    assert strategy.admit is strategy.policies[1]
    assert strategy.slots is strategy.admit.rules[0]


@pytest.mark.parametrize("policies", [(), (Retry(),), (Admit(()),)])
def test_a_stack_without_slots_says_so(policies: tuple[Any, ...]) -> None:
    assert Strategy("mine", policies).slots is None


def test_a_stack_without_a_line_says_so() -> None:
    assert Strategy("mine", (Retry(),)).admit is None


def test_a_strategy_reads_from_the_outside_in() -> None:
    said = str(Strategy.default(concurrency=3))
    assert said.startswith("default: Retry(")
    assert said.index("Retry(") < said.index("Admit(rules=(Slots(limit=3") < said.index("Timeout(")


@pytest.mark.parametrize("wrong", [Slots(3), Retry, 5, None, "retry"], ids=repr)
def test_what_is_no_policy_is_refused_before_any_row_meets_it(wrong: Any) -> None:
    with pytest.raises(TypeError, match=r"Strategy 'mine': a policy is called with \(call, inner\)") as raised:
        Strategy("mine", (Retry(), wrong))
    assert repr(wrong) in str(raised.value)
