"""The contract of a rule: `take` after `wait == 0` never breaks the limit, every `take` is settled once."""

import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmlab.errors import ServerError
from llmlab.rules.adapt import Decision
from llmlab.rules.slots import Slots

COST = {"requests": 1.0}


def quiet(*_: object) -> None:
    """Listen to nothing."""


@given(st.integers(1, 8), st.lists(st.one_of(st.just("call"), st.just("end"), st.integers(1, 8)), max_size=80))
def test_whoever_was_told_to_go_is_within_the_limit_of_that_moment(limit: int, steps: list[str | int]) -> None:
    slots, in_flight = Slots(limit), 0
    for step in steps:
        if step == "call" and slots.wait(0.0, COST) == 0:
            slots.take(0.0, COST)
            in_flight += 1
            assert in_flight <= slots.limit
        elif step == "end" and in_flight:
            slots.settle(0.0, COST, None)
            in_flight -= 1
        elif isinstance(step, int):
            slots.resize(step)
        assert slots.in_use == in_flight
        assert (slots.wait(0.0, COST) == 0) == (in_flight < slots.limit)


def test_a_full_house_names_no_time() -> None:
    slots = Slots(1)
    assert slots.wait(0.0, COST) == 0.0
    slots.take(0.0, COST)
    assert slots.wait(0.0, COST) == math.inf


@pytest.mark.parametrize("error", [None, ServerError("boom"), KeyboardInterrupt()])
def test_a_slot_is_free_again_however_the_call_ended(error: BaseException | None) -> None:
    slots = Slots(1)
    slots.take(0.0, COST)
    slots.settle(1.0, COST, error)
    assert slots.wait(1.0, COST) == 0.0


def test_a_new_limit_is_told_to_who_watches_after_it_holds() -> None:
    slots = Slots(2)
    seen: list[int] = []
    slots.watch(lambda: seen.append(slots.limit), quiet)
    slots.resize(5)
    slots.resize(1)
    assert seen == [5, 1]


def test_a_limit_set_by_hand_is_told_as_a_decision_of_the_time_last_seen_and_before_anybody_is_let_in() -> None:
    slots = Slots(2)
    heard: list[object] = []
    slots.watch(lambda: heard.append(slots.limit), heard.append)
    slots.resize(3)
    slots.wait(1.0, COST)
    slots.resize(5)
    slots.take(2.0, COST)
    slots.resize(1)
    slots.settle(3.5, COST, None)
    slots.resize(1)
    expected = [
        Decision(0.0, 3, "set by hand"), 3, Decision(1.0, 5, "set by hand"), 5,
        Decision(2.0, 1, "set by hand"), 1, Decision(3.5, 1, "set by hand"), 1,
    ]  # fmt: skip
    assert list(map(repr, heard)) == list(map(repr, expected)), "by their words: what is not known (nan) equals nothing"


def test_who_listens_finds_the_new_limit_in_force_and_may_change_it() -> None:
    slots = Slots(2)
    limits: list[int] = []

    def listen(_: object) -> None:
        limits.append(slots.limit)
        if slots.limit > 4:
            slots.resize(4)

    slots.watch(quiet, listen)
    slots.resize(9)
    assert (limits, slots.limit) == ([9, 4], 4)


def test_the_gauge_shows_the_limit_and_what_is_in_flight() -> None:
    slots = Slots(3)
    slots.take(0.0, COST)
    slots.take(0.0, COST)
    assert slots.gauge(7.0) == {"limit": 3, "in_flight": 2}


def test_a_wait_for_a_slot_means_concurrency() -> None:
    assert Slots().binds == Slots.binds == "concurrency"


def test_a_limit_can_change_with_nobody_watching() -> None:
    slots = Slots(2)
    slots.resize(7)
    assert slots.limit == 7


def test_a_smaller_limit_interrupts_nobody_and_lets_nobody_in() -> None:
    slots = Slots(3)
    for _ in range(3):
        slots.take(0.0, COST)
    slots.resize(1)
    assert slots.in_use == 3
    for left in (2, 1):
        slots.settle(0.0, COST, None)
        assert slots.in_use == left
        assert slots.wait(0.0, COST) == math.inf
    slots.settle(0.0, COST, None)
    assert slots.wait(0.0, COST) == 0.0


@pytest.mark.parametrize(
    ("limit", "error"),
    [(0, ValueError), (-1, ValueError), (1.5, TypeError), (2.0, TypeError), (True, TypeError), ("8", TypeError),
     (None, TypeError), (float("nan"), TypeError)],
)  # fmt: skip
def test_a_senseless_limit_is_refused_and_changes_nothing(limit: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match=r"concurrency must be (a whole number|at least 1), not"):
        Slots(limit)
    slots, told = Slots(4), list[object]()
    slots.watch(lambda: told.append(1), told.append)
    with pytest.raises(error):
        slots.resize(limit)
    assert (slots.limit, told) == (4, [])


def test_a_copy_has_the_limit_and_none_of_the_state() -> None:
    slots, told = Slots(3), list[object]()
    slots.watch(lambda: told.append(1), told.append)
    slots.take(0.0, COST)
    copy = replace(slots)
    copy.resize(5)
    assert (copy.in_use, slots.in_use, slots.limit, told) == (0, 1, 3, [])


def test_equality_is_about_settings() -> None:
    busy = Slots(3)
    busy.take(0.0, COST)
    assert busy == Slots(3)
    assert busy != Slots(4)
