"""A budget is never passed and never kept from who would fit; what may be billed counts as spent."""

import asyncio
import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from llmlab.errors import BadRequest, BudgetSpent, Dropped, LLMError, RateLimited, StreamTruncated
from llmlab.rules.spend import Spend

CALL = {"requests": 1.0, "total_tokens": 500.0, "usd": 0.04}
USED = {"requests": 1.0, "input_tokens": 100.0, "output_tokens": 50.0, "total_tokens": 150.0, "usd": 0.01}


def dear(usd: float) -> dict[str, float]:
    return {"usd": usd}


def long(tokens: float) -> dict[str, float]:
    return {"total_tokens": tokens}


def end(
    spend: Spend,
    cost: Mapping[str, float],
    *,
    error: BaseException | None = None,
    used: Mapping[str, float] | None = None,
    sent: float | None = 0.0,
) -> None:
    spend.settle(0.0, cost, error, used, None, sent, None)


def run(spend: Spend, cost: Mapping[str, float], **facts: Any) -> None:
    assert spend.wait(0.0, cost) == 0
    spend.take(0.0, cost)
    end(spend, cost, **facts)


def why(spend: Spend, cost: Mapping[str, float]) -> str:
    """What somebody is told who asks for this much."""
    assert spend.wait(0.0, cost) == math.inf
    refusal = spend.refuse(0.0)
    assert isinstance(refusal, BudgetSpent)
    return refusal.message


# Who goes


def test_what_is_in_flight_counts_as_if_it_were_spent() -> None:
    spend = Spend(usd=1.0)
    spend.take(0.0, dear(0.5))
    spend.spent_usd = 0.3
    assert spend.wait(0.0, dear(0.2)) == 0
    assert spend.wait(0.0, dear(0.21)) == math.inf


@pytest.mark.parametrize(
    ("budget", "fits"),
    [(Spend(usd=0.05), True), (Spend(usd=0.03), False), (Spend(tokens=500), True), (Spend(tokens=499), False),
     (Spend(usd=0.05, tokens=499), False), (Spend(usd=0.03, tokens=500), False), (Spend(usd=0.04, tokens=500), True)],
)  # fmt: skip
def test_each_limit_given_has_to_hold_and_only_those(budget: Spend, fits: bool) -> None:
    assert (budget.wait(0.0, CALL) == 0) is fits


@pytest.mark.parametrize("cents", range(1, 100))
def test_many_small_sums_make_the_large_one_in_spite_of_floats(cents: int) -> None:
    spend = Spend(usd=cents * 7 / 100)
    for _ in range(cents):
        run(spend, dear(0.07))
    assert spend.wait(0.0, dear(0.0001)) == math.inf


def test_to_ask_reserves_nothing() -> None:
    spend = Spend(usd=0.05)
    assert [spend.wait(0.0, CALL) for _ in range(5)] == [0.0] * 5


# What it has cost


@pytest.mark.parametrize(
    ("facts", "usd", "tokens"),
    [
        ({"sent": None, "error": asyncio.CancelledError()}, 0.0, 0.0),
        ({"sent": None, "used": USED}, 0.0, 0.0),
        ({"used": USED}, 0.01, 150.0),
        ({"used": USED, "error": StreamTruncated("cut")}, 0.01, 150.0),
        ({"used": USED, "error": BadRequest("no")}, 0.01, 150.0),
        ({"error": RateLimited("no")}, 0.0, 0.0),
        ({"error": BadRequest("no")}, 0.0, 0.0),
        ({"error": Dropped("gone")}, 0.04, 500.0),
        ({"error": asyncio.CancelledError()}, 0.04, 500.0),
        ({"error": KeyError("ours")}, 0.04, 500.0),
        ({}, 0.04, 500.0),
        ({"used": {"total_tokens": 150.0}}, 0.04, 150.0),
        ({"used": {"total_tokens": 150.0}, "error": RateLimited("no")}, 0.0, 150.0),
    ],
)
def test_what_may_be_billed_is_spent_and_the_rest_is_given_back(
    facts: dict[str, Any], usd: float, tokens: float
) -> None:
    spend = Spend(usd=1.0, tokens=1000)
    run(spend, CALL, **facts)
    assert (spend.spent_usd, spend.spent_tokens) == (usd, tokens)
    assert (spend.reserved_usd, spend.reserved_tokens, spend.in_use) == (0, 0, 0)


def test_what_a_call_used_beyond_its_cost_is_spent_all_the_same() -> None:
    spend = Spend(usd=0.05)
    run(spend, CALL, used={"usd": 0.2})
    assert spend.spent_usd == 0.2
    assert spend.wait(0.0, dear(0.0)) == math.inf


def test_what_others_spend_can_be_added() -> None:
    spend = Spend(usd=1.0, tokens=1000)
    spend.spent_usd += 0.97
    assert spend.wait(0.0, CALL) == math.inf
    spend.spent_usd -= 0.5
    spend.spent_tokens += 501
    assert spend.wait(0.0, CALL) == math.inf
    spend.spent_tokens -= 1
    assert spend.wait(0.0, CALL) == 0


# Who is refused


def test_while_something_is_in_flight_nobody_is_refused() -> None:
    spend = Spend(usd=1.0)
    spend.take(0.0, dear(0.9))
    assert spend.wait(0.0, dear(0.2)) == math.inf
    assert spend.refuse(0.0) is None
    end(spend, dear(0.9), used=dear(0.8))
    assert spend.refuse(0.0) is None  # now it fits
    assert spend.wait(0.0, dear(0.2)) == 0


def test_who_does_not_fit_with_nothing_in_flight_is_told_what_was_spent_and_what_is_needed() -> None:
    spend = Spend(usd=5)
    run(spend, dear(4.98))
    assert why(spend, dear(0.04)) == "budget_usd=5 is spent: $4.98 so far and the next request may cost $0.04"
    spend.spent_usd = 4.99999
    assert why(spend, dear(0.00123)).endswith("$5.00 so far and the next request may cost $0.0012")
    tokens = Spend(tokens=1_000_000)
    run(tokens, long(999_980.0))
    said = "budget_tokens=1000000 is spent: 999980 tokens so far and the next request may use 40"
    assert why(tokens, long(40.0)) == said


def test_of_two_limits_the_one_that_does_not_hold_is_named() -> None:
    spend = Spend(usd=1.0, tokens=400)
    assert why(spend, CALL).startswith("budget_tokens=400 ")
    assert why(spend, {"usd": 2.0, "total_tokens": 400.0}).startswith("budget_usd=1.0 ")


def test_a_budget_that_was_too_little_from_the_start_is_not_said_to_be_spent() -> None:
    said = "budget_usd=0.01 is too little: $0.00 so far and the next request may cost $0.04"
    assert why(Spend(usd=0.01), CALL) == said


def test_a_refusal_is_about_the_last_who_asked() -> None:
    spend = Spend(usd=1.0)
    assert spend.refuse(0.0) is None
    assert "may cost $2.00" in why(spend, dear(2.0))
    assert "may cost $3.00" in why(spend, dear(3.0))
    assert spend.wait(0.0, dear(1.0)) == 0
    assert spend.refuse(0.0) is None


def test_who_waited_for_the_last_in_flight_in_vain_is_refused() -> None:
    spend = Spend(usd=1.0)
    spend.take(0.0, dear(0.9))
    assert spend.wait(0.0, dear(0.2)) == math.inf
    end(spend, dear(0.9), error=Dropped("gone"))
    assert "$0.90 so far and the next request may cost $0.20" in str(spend.refuse(0.0))


def test_each_who_is_refused_gets_an_error_of_his_own() -> None:
    spend = Spend(usd=0.01)
    assert spend.wait(0.0, CALL) == math.inf
    one, other = spend.refuse(0.0), spend.refuse(0.0)
    assert one is not other
    assert isinstance(one, LLMError)
    assert one.verdict.fatal


def test_a_call_without_a_price_cannot_be_judged_by_a_budget_in_dollars() -> None:
    spend = Spend(usd=5.0)
    assert spend.price_missing(long(500.0))
    assert not spend.price_missing(CALL)
    assert why(spend, long(500.0)) == "budget_usd=5.0 is set, and the price of the next request is not known"
    assert not Spend(tokens=500).price_missing(long(500.0))
    run(Spend(tokens=500), long(500.0))


# Whatever happens


ENDS = ("used", "refused", "lost", "cancelled", "never sent", "truncated")


class Machine(RuleBasedStateMachine):
    """Calls whose costs are upper bounds, taken and settled in any order."""

    @initialize(usd=st.none() | st.floats(1e-4, 100), tokens=st.none() | st.integers(1, 10**7))
    def begin(self, usd: float | None, tokens: int | None) -> None:
        self.spend = Spend(usd, tokens if usd is not None or tokens is not None else 1000)
        self.out: list[dict[str, float]] = []  # costs of the calls in flight
        self.real = {"usd": 0.0, "total_tokens": 0.0}

    def cap(self, name: str) -> float:
        cap = self.spend.usd if name == "usd" else self.spend.tokens
        return math.inf if cap is None else cap * (1 + 2e-9)

    @rule(share=st.floats(0, 0.6), tokens=st.floats(0, 0.6))
    def somebody_asks(self, share: float, tokens: float) -> None:
        cost = {
            "usd": share * (self.spend.usd or 1.0),
            "total_tokens": float(round(tokens * (self.spend.tokens or 1000))),
        }
        wait, refusal = self.spend.wait(0.0, cost), self.spend.refuse(0.0)
        assert wait in (0.0, math.inf)
        if wait == 0:
            self.spend.take(0.0, cost)
            self.out.append(cost)
            return
        assert (refusal is None) is bool(self.out)
        held = {name: self.real[name] + sum(each[name] for each in self.out) for name in cost}
        assert any(held[name] + amount > self.cap(name) * (1 - 4e-9) for name, amount in cost.items())

    @precondition(lambda self: self.out)
    @rule(data=st.data(), how=st.sampled_from(ENDS), share=st.floats(0, 1))
    def somebody_leaves(self, data: st.DataObject, how: str, share: float) -> None:
        cost = self.out.pop(data.draw(st.integers(0, len(self.out) - 1)))
        used = {name: amount * share for name, amount in cost.items()}
        errors: dict[str, BaseException] = {
            "refused": RateLimited("no"), "lost": Dropped("gone"), "cancelled": asyncio.CancelledError(),
            "never sent": asyncio.CancelledError(), "truncated": StreamTruncated("cut"),
        }  # fmt: skip
        known = used if how in ("used", "truncated") else None
        sent = None if how == "never sent" else 0.0
        self.spend.settle(0.0, cost, errors.get(how), known, None, sent, None)
        billed = used if known else cost if how in ("lost", "cancelled") else {}
        for name, amount in billed.items():
            self.real[name] += amount

    @invariant()
    def the_cap_is_never_passed_even_if_all_in_flight_cost_what_they_may(self) -> None:
        for name, spent in (("usd", self.spend.spent_usd), ("total_tokens", self.spend.spent_tokens)):
            assert spent == pytest.approx(self.real[name], rel=1e-9, abs=1e-12)
            assert spent <= self.cap(name)
            assert spent + sum(each[name] for each in self.out) <= self.cap(name)

    @invariant()
    def what_is_reserved_is_what_is_in_flight(self) -> None:
        assert self.spend.in_use == len(self.out)
        for name, reserved in (("usd", self.spend.reserved_usd), ("total_tokens", self.spend.reserved_tokens)):
            assert reserved == pytest.approx(sum(each[name] for each in self.out), rel=1e-9, abs=1e-12)
            assert self.out or reserved == 0

    def teardown(self) -> None:
        for cost in getattr(self, "out", ()):
            self.spend.settle(0.0, cost, None, cost, None, 0.0, None)
        if hasattr(self, "spend"):
            assert (self.spend.reserved_usd, self.spend.reserved_tokens, self.spend.in_use) == (0, 0, 0)


Machine.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
TestWhateverHappens = Machine.TestCase


@given(st.lists(st.integers(1, 400), max_size=40), st.integers(1, 2000))
def test_all_go_that_fit_one_after_the_other(costs: list[int], cap: int) -> None:
    spend, left = Spend(tokens=cap), cap
    for cost in costs:
        assert (spend.wait(0.0, long(cost)) == 0) == (cost <= left)
        assert (spend.refuse(0.0) is None) == (cost <= left)
        if cost <= left:
            run(spend, long(cost))
            left -= cost


# The shape of a rule


def test_the_gauge_shows_what_is_spent_where_it_is_limited() -> None:
    budgets = Spend(usd=1.0), Spend(tokens=1000), Spend(usd=1.0, tokens=1000)
    for spend in budgets:
        run(spend, CALL, used=USED)
    assert [spend.gauge(0.0) for spend in budgets] == [
        {"spent_usd": 0.01}, {"spent_tokens": 150.0}, {"spent_usd": 0.01, "spent_tokens": 150.0}
    ]  # fmt: skip


def test_a_wait_for_it_means_the_budget_and_it_has_nothing_to_tell() -> None:
    spend, heard = Spend(usd=0.05), list[object]()
    spend.watch(lambda: heard.append("changed"), heard.append)
    run(spend, CALL)
    why(spend, CALL)
    assert (spend.binds, Spend.binds, heard) == ("budget", "budget", [])


def test_a_copy_has_the_settings_and_none_of_the_state() -> None:
    spend = Spend(usd=0.05, tokens=600)
    run(spend, CALL)
    spend.take(0.0, CALL)
    why_not = spend.wait(0.0, CALL)
    copy = replace(spend)
    assert copy == spend == Spend(usd=0.05, tokens=600) != Spend(usd=0.05)
    assert (why_not, copy.wait(0.0, CALL), copy.spent_usd, copy.reserved_tokens, copy.in_use) == (math.inf, 0, 0, 0, 0)


@pytest.mark.parametrize("value", [0, -1, math.inf, math.nan, True, "5"])
@pytest.mark.parametrize("name", ["usd", "tokens"])
def test_a_senseless_budget_is_refused(name: str, value: Any) -> None:
    with pytest.raises((TypeError, ValueError), match=f"Spend: {name} must be a"):
        Spend(**{name: value})


def test_half_a_token_and_no_budget_at_all_are_refused() -> None:
    with pytest.raises(ValueError, match=r"tokens must be a whole number of at least 1, not 0\.5"):
        Spend(tokens=0.5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="usd or tokens must be given"):
        Spend()
