"""The breaker's state table, row by row; then what must hold whatever happens; then a line of a thousand behind it."""

import asyncio
import copy
import math
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from llmlab.clock import run_virtual
from llmlab.errors import (
    BadRequest,
    ConnectFailed,
    LLMError,
    Overloaded,
    ProviderDown,
    RateLimited,
    Rejected,
    ServerError,
    StreamTruncated,
    TimedOut,
    Unsendable,
    Verdict,
)
from llmlab.rules.breaker import Breaker, Permit, Transition
from llmlab.rules.evidence import Window

COST = {"requests": 1.0}


def quiet(*_: object) -> None:
    """Listen to nothing."""


class Drive:
    """A breaker, and a clock turned by hand."""

    def __init__(self, **config: Any) -> None:
        self.rule = Breaker(**config)
        self.now = 0.0

    def wait(self) -> float:
        return self.rule.wait(self.now, COST)

    def go(self) -> Permit:
        assert self.wait() == 0
        return self.rule.take(self.now, COST)

    def end(self, permit: Permit, error: BaseException | None = None, *, took: float = 0.0) -> None:
        self.now += took
        self.rule.settle(self.now, COST, error, None, None, self.now - took, permit)

    def cancel(self, permit: Permit) -> None:
        self.rule.settle(self.now, COST, asyncio.CancelledError(), None, None, self.now, permit)

    def each(self, *errors: BaseException | None) -> None:
        for error in errors:
            self.end(self.go(), error)

    def pass_the_wait(self) -> None:
        """Until the breaker lets probes through."""
        while (wait := self.wait()) > 0:
            self.now += wait + 1e-9
        assert self.rule.state == "half_open"

    def why(self) -> list[str]:
        return [transition.reason for transition in self.rule.transitions]


def opened(**config: Any) -> Drive:
    drive = Drive(**({"consecutive": 1, "jitter": 0.0} | config))
    drive.each(ConnectFailed("refused"))
    assert drive.rule.state == "open"
    return drive


def half_opened(**config: Any) -> Drive:
    drive = opened(**config)
    drive.pass_the_wait()
    return drive


# closed


def test_it_opens_when_failures_are_half_of_enough_calls() -> None:
    drive = Drive(jitter=0.0)
    drive.each(*[None] * 10, *[ServerError("boom")] * 9)
    assert drive.why() == []
    drive.each(ServerError("boom"))
    assert list(drive.rule.transitions) == [Transition(0.0, "closed", "open", "failure ratio", 10, 20, 1, 5.0)]


def test_too_few_calls_decide_nothing() -> None:
    drive = Drive()
    drive.each(*[ServerError("boom")] * 19)
    assert drive.rule.state == "closed"


def test_a_lesser_part_of_failures_does_not_open_it() -> None:
    drive = Drive()
    drive.each(*[None, None, ServerError("boom")] * 100)
    assert drive.why() == []


def test_results_older_than_the_window_are_forgotten() -> None:
    drive = Drive()
    drive.each(*[ServerError("boom")] * 19)
    drive.now = 30.0
    drive.each(ServerError("boom"))
    assert drive.rule.state == "closed"


def test_ten_calls_running_without_an_answer_open_it_at_once() -> None:
    drive = Drive()
    drive.each(*[None] * 100, *[ConnectFailed("refused")] * 9)
    assert drive.rule.state == "closed"
    drive.each(TimedOut("late", phase="connect"))
    assert drive.why() == ["unreachable"]


@pytest.mark.parametrize("answer", [None, ServerError("boom"), BadRequest("wrong"), RateLimited("slow down")])
def test_any_answer_ends_the_run_of_calls_without_one(answer: LLMError | None) -> None:
    drive = Drive(min_calls=1000)
    drive.each(*[ConnectFailed("refused")] * 9, answer, *[ConnectFailed("refused")] * 9)
    assert drive.why() == []


@pytest.mark.parametrize("silence", [asyncio.CancelledError(), Unsendable("no url"), KeyError("a bug of ours")])
def test_a_call_that_says_nothing_does_not_end_the_run(silence: BaseException) -> None:
    drive = Drive()
    drive.each(*[ConnectFailed("refused")] * 9, silence, ConnectFailed("refused"))
    assert drive.why() == ["unreachable"]
    assert drive.rule.cancelled_permits == 1


@pytest.mark.parametrize(
    "harmless", [BadRequest("wrong"), RateLimited("slow down"), Unsendable("no url"), TypeError("a bug of ours")]
)
def test_what_is_not_the_providers_fault_counts_for_nothing(harmless: BaseException) -> None:
    drive = Drive()
    drive.each(*[harmless] * 500)
    assert drive.why() == []
    drive.each(*[ServerError("boom")] * 20)
    assert (drive.rule.transitions[-1].failures, drive.rule.transitions[-1].calls) == (20, 20)


@pytest.mark.parametrize("failure", [Overloaded("busy"), StreamTruncated("cut"), TimedOut("late", phase="attempt")])
def test_every_failure_of_the_provider_counts(failure: LLMError) -> None:
    drive = Drive(consecutive=1000)
    drive.each(*[failure] * 20)
    assert drive.why() == ["failure ratio"]


def test_one_errors_own_verdict_is_what_counts() -> None:
    forgiven = ServerError("boom")
    forgiven.judge(breaker=False)
    drive = Drive()
    drive.each(*[forgiven] * 100)
    assert drive.why() == []


def test_a_spell_of_429s_is_the_limiters_business() -> None:
    drive = Drive()
    for drive.now in range(61):
        drive.each(RateLimited("slow down"))
    assert drive.why() == []
    drive.now += 1
    drive.each(RateLimited("slow down"))
    assert drive.why() == ["throttled"]


def test_one_success_makes_it_a_new_spell() -> None:
    drive = Drive()
    for drive.now in range(200):
        drive.each(RateLimited("slow down"), *[None] * (drive.now % 50 == 0))
    assert drive.why() == []


def test_two_429s_with_a_long_silence_between_are_no_spell() -> None:
    drive = Drive()
    drive.each(RateLimited("slow down"))
    drive.now = 130.0
    drive.each(RateLimited("slow down"))
    assert drive.why() == []


def test_a_throttled_probe_opens_it_again_and_the_silence_between_is_no_excuse() -> None:
    drive = Drive(jitter=0.0, open_for=200.0, open_max=200.0)
    for drive.now in range(62):
        drive.each(RateLimited("slow down"))
    drive.pass_the_wait()
    drive.now += 100
    drive.each(RateLimited("slow down"))
    assert drive.why() == ["throttled", "wait over", "probe failed"]


# open


def test_open_it_lets_nobody_in_until_the_wait_is_over() -> None:
    drive = opened()
    assert drive.wait() == 5.0
    with pytest.raises(RuntimeError, match="open"):
        drive.rule.take(drive.now, COST)
    drive.now = 4.0
    assert drive.wait() == 1.0
    drive.now = 5.0
    assert drive.wait() == 0.0
    assert drive.why() == ["unreachable", "wait over"]
    assert drive.rule.not_permitted == 2


@pytest.mark.parametrize("error", [None, ServerError("boom"), RateLimited("slow down")])
def test_a_late_result_while_open_is_only_counted(error: LLMError | None) -> None:
    drive = Drive(consecutive=1, jitter=0.0)
    late = drive.go()
    drive.each(ConnectFailed("refused"))
    drive.end(late, error, took=1.0)
    assert drive.rule.late_results == 1
    assert drive.wait() == 4.0


@pytest.mark.parametrize("error", [None, ServerError("boom")])
def test_a_late_result_in_half_open_is_no_probes_result(error: LLMError | None) -> None:
    drive = Drive(consecutive=1, probes=1)
    late = drive.go()
    drive.each(ConnectFailed("refused"))
    drive.pass_the_wait()
    probe = drive.go()
    drive.end(late, error, took=1.0)
    assert (drive.rule.state, drive.rule.late_results) == ("half_open", 1)
    assert drive.wait() > 0
    drive.end(probe)
    assert drive.rule.state == "closed"


@pytest.mark.parametrize("error", [None, ConnectFailed("refused")])
def test_a_late_result_after_closing_is_only_counted(error: LLMError | None) -> None:
    drive = Drive(consecutive=1, probes=1)
    late = drive.go()
    drive.each(ConnectFailed("refused"))
    drive.pass_the_wait()
    drive.each(None)
    drive.end(late, error, took=1.0)
    assert (drive.rule.state, drive.rule.late_results) == ("closed", 1)


def test_a_late_cancelled_call_is_no_result() -> None:
    drive = Drive(consecutive=1)
    late = drive.go()
    drive.each(ConnectFailed("refused"))
    drive.cancel(late)
    assert (drive.rule.late_results, drive.rule.cancelled_permits) == (0, 1)


def test_a_late_success_may_end_the_wait_if_one_wants_it() -> None:
    drive = Drive(consecutive=1, late_success_probe=True)
    failed, succeeded = drive.go(), drive.go()
    drive.each(ConnectFailed("refused"))
    drive.end(failed, ServerError("boom"), took=1.0)
    assert drive.wait() > 1
    drive.end(succeeded)
    assert drive.why() == ["unreachable"]  # the result itself moves nothing
    assert drive.wait() == 0
    assert drive.why() == ["unreachable", "wait over"]


def test_a_late_success_does_not_outrank_the_retry_after() -> None:
    drive = Drive(consecutive=1, min_calls=1, late_success_probe=True)
    late = drive.go()
    drive.each(Overloaded("busy", retry_after=20.0))
    drive.end(late, took=1.0)
    assert drive.wait() == 19.0


# half-open


def test_so_many_probes_go_and_no_more() -> None:
    drive = half_opened(probes=3)
    assert [drive.go().state for _ in range(3)] == ["half_open"] * 3
    assert drive.wait() > 0
    with pytest.raises(RuntimeError, match="half_open"):
        drive.rule.take(drive.now, COST)


def test_a_probes_success_uses_its_permit_up_and_the_last_one_closes() -> None:
    drive = half_opened(probes=3)
    probes = [drive.go() for _ in range(3)]
    for probe in probes[:2]:
        drive.end(probe, took=0.5)
        assert drive.wait() > 0
    drive.end(probes[2])
    last = drive.rule.transitions[-1]
    assert (last.old, last.new, last.reason, last.failures, last.calls) == ("half_open", "closed", "recovered", 0, 3)
    assert drive.rule.down_since == math.inf


def test_the_first_failure_of_a_probe_opens_it_again() -> None:
    drive = half_opened(probes=3)
    first, second, third = (drive.go() for _ in range(3))
    drive.end(first)
    drive.end(second, ServerError("boom"))
    assert (drive.rule.state, drive.why()[-1]) == ("open", "probe failed")
    assert (drive.rule.transitions[-1].failures, drive.rule.transitions[-1].calls) == (1, 2)
    drive.end(third)
    assert (drive.rule.state, drive.rule.late_results) == ("open", 1)


def test_a_cancelled_probe_returns_its_permit_and_decides_nothing() -> None:
    drive = half_opened(probes=1)
    for _ in range(5):
        drive.cancel(drive.go())
        assert drive.rule.state == "half_open"
    assert drive.rule.cancelled_permits == 5
    drive.each(None)
    assert drive.rule.state == "closed"


def test_a_probe_that_was_never_sent_returns_its_permit() -> None:
    drive = half_opened(probes=1)
    for error in (asyncio.CancelledError(), None):
        drive.rule.settle(drive.now, COST, error, None, None, None, drive.go())
    assert (drive.rule.state, drive.rule.cancelled_permits) == ("half_open", 2)
    assert drive.wait() == 0


@pytest.mark.parametrize("harmless", [BadRequest("wrong"), RateLimited("slow down")])
def test_a_probe_that_proves_nothing_returns_its_permit(harmless: LLMError) -> None:
    drive = half_opened(probes=1)
    drive.each(harmless)
    assert (drive.rule.state, drive.wait(), drive.rule.cancelled_permits) == ("half_open", 0.0, 0)


def test_hung_probes_have_failed_and_the_wait_names_the_moment() -> None:
    drive = half_opened(probes=2)
    drive.go()
    drive.now += 10
    assert drive.wait() == 0
    hung = drive.go()
    assert drive.wait() == pytest.approx(20)
    drive.now += 19.9
    assert drive.wait() > 0
    assert drive.rule.state == "half_open"
    drive.now += 0.2
    assert drive.wait() == pytest.approx(10)
    assert drive.why()[-1] == "probe hung"
    assert (drive.rule.transitions[-1].failures, drive.rule.transitions[-1].calls) == (1, 1)
    drive.end(hung)
    assert (drive.rule.state, drive.rule.late_results) == ("open", 1)


def test_an_answer_gives_the_other_probes_new_time() -> None:
    drive = half_opened(probes=3)
    first, _, _ = (drive.go() for _ in range(3))
    drive.end(first, took=29.0)
    assert drive.wait() == pytest.approx(30)


def test_a_provider_with_slow_successes_gets_three_times_their_p99() -> None:
    drive = Drive(consecutive=1, probes=1)
    for seconds in range(1, 101):
        drive.end(drive.go(), took=float(seconds))
    drive.each(ConnectFailed("refused"))
    drive.pass_the_wait()
    drive.go()
    assert drive.wait() == pytest.approx(3 * 99)


def test_callers_less_patient_than_the_watchdog_do_not_silence_it() -> None:
    drive = half_opened(probes=1)
    drive.now += 1000.0  # nobody asks: that is no silence of a probe
    probe = drive.go()
    drive.now += 20
    drive.cancel(probe)
    drive.now += 500
    drive.go()
    assert drive.wait() == pytest.approx(10)
    drive.now += 10.1
    drive.wait()
    assert drive.why()[-1] == "probe hung"


def test_an_answer_forgets_the_silence_of_cancelled_probes() -> None:
    drive = half_opened(probes=2)
    first, second = drive.go(), drive.go()
    drive.now += 20
    drive.cancel(first)
    drive.end(second)
    drive.now += 100
    drive.go()
    assert drive.wait() == pytest.approx(30)


def test_the_next_probes_do_not_inherit_the_silence() -> None:
    drive = half_opened(probes=1)
    probe = drive.go()
    drive.now += 20
    drive.cancel(probe)
    drive.go()
    drive.now += 11
    drive.pass_the_wait()
    assert drive.why()[-2:] == ["probe hung", "wait over"]
    drive.go()
    assert drive.wait() == pytest.approx(30)


def test_a_probe_answered_just_before_the_watchdog_looks_has_not_hung() -> None:
    drive = half_opened(probes=1)
    drive.end(drive.go(), took=40.0)
    assert drive.rule.state == "closed"


# how long it stays open


def test_each_opening_of_an_outage_is_twice_as_long_up_to_the_longest() -> None:
    drive = opened(probes=1)
    for _ in range(6):
        drive.pass_the_wait()
        drive.each(ServerError("boom"))
    waits = [t.lasts for t in drive.rule.transitions if t.new == "open"]
    assert waits == pytest.approx([5, 10, 20, 40, 80, 120, 120])
    assert drive.rule.reopened == 6


def test_many_openings_do_not_overflow() -> None:
    drive = opened(probes=1, give_up_after=math.inf)
    for _ in range(2000):
        drive.pass_the_wait()
        drive.each(ServerError("boom"))
    assert drive.wait() == pytest.approx(120)


def test_a_recovery_begins_the_count_anew() -> None:
    drive = opened(probes=1)
    drive.pass_the_wait()
    drive.each(ServerError("boom"))
    drive.pass_the_wait()
    drive.each(None, ConnectFailed("refused"))
    assert drive.wait() == 5.0
    assert drive.rule.down_since == drive.now


@given(st.integers(), st.floats(0, 0.99), st.integers(0, 8))
def test_the_jitter_stays_within_its_bounds(seed: int, jitter: float, times: int) -> None:
    drive = opened(seed=seed, jitter=jitter, probes=1, give_up_after=math.inf)
    for _ in range(times):
        drive.pass_the_wait()
        drive.each(ServerError("boom"))
    plain = min(120.0, 5.0 * 2**times)
    assert plain * (1 - jitter) * 0.999 <= drive.rule.transitions[-1].lasts <= plain * (1 + jitter) * 1.001


def test_the_jitter_uses_all_of_its_range() -> None:
    lengths = [opened(seed=seed, jitter=0.2).wait() for seed in range(100)]
    assert 4.0 <= min(lengths) < 4.1
    assert 5.9 < max(lengths) <= 6.0


def outage(seed: int) -> list[Transition]:
    drive = opened(seed=seed, jitter=0.2, probes=1)
    for error in (ServerError("boom"), ServerError("boom"), None):
        drive.pass_the_wait()
        drive.each(error)
    return list(drive.rule.transitions)


def test_the_same_seed_gives_the_same_transitions_and_another_seed_others() -> None:
    assert outage(7) == outage(7)
    assert outage(7) != outage(8)


def test_openings_of_one_outage_are_not_all_jittered_alike() -> None:
    first, second, third = (t.lasts for t in outage(7) if t.new == "open")
    assert len({first, second / 2, third / 4}) == 3


def test_a_retry_after_is_the_least_wait() -> None:
    drive = Drive(min_calls=2, jitter=0.0)
    drive.each(Overloaded("busy", retry_after=42.0))
    drive.now = 2.0
    drive.each(Overloaded("busy", retry_after=1.0))  # said later, asks for less: the first still holds
    assert drive.wait() == 40.0


def test_a_short_retry_after_does_not_shorten_the_wait() -> None:
    drive = Drive(min_calls=1, jitter=0.0)
    drive.each(Overloaded("busy", retry_after=1.0))
    assert drive.wait() == 5.0


def test_a_probes_retry_after_counts_as_well() -> None:
    drive = half_opened(probes=1)
    drive.each(Overloaded("busy", retry_after=300.0))
    assert drive.wait() == 300.0


def test_a_retry_after_is_forgotten_with_a_success() -> None:
    drive = Drive(min_calls=3, failure_ratio=0.6, jitter=0.0)
    drive.each(Overloaded("busy", retry_after=1000.0), None, ServerError("boom"))
    assert drive.wait() == 5.0


# giving up


def test_it_gives_up_after_so_long_and_says_so_with_the_last_error() -> None:
    drive = opened(probes=1, give_up_after=600.0)
    while not drive.rule.given_up(drive.now):
        drive.now += drive.wait()
        if drive.wait() == 0:
            drive.each(Overloaded("no capacity", status=503))
    assert drive.now == pytest.approx(600.0)  # mid-wait: the timer is armed for the moment of giving up
    error = drive.rule.refuse(drive.now)
    assert isinstance(error, ProviderDown)
    assert str(error) == "down for 600 s; last error: Overloaded: HTTP 503: no capacity"


def test_the_error_of_giving_up_ends_the_job_unless_another_target_helps() -> None:
    assert isinstance(ProviderDown("down"), Rejected)
    assert ProviderDown("down").verdict == Verdict(fatal=True, fallback=True)


def test_after_giving_up_it_still_names_the_next_probe() -> None:
    drive = opened(give_up_after=2.0)
    assert drive.wait() == 2.0
    assert not drive.rule.given_up(1.9)
    drive.now = 2.0
    assert drive.rule.given_up(drive.now)
    assert drive.wait() == 3.0


def test_it_does_not_give_up_while_a_probe_is_out() -> None:
    drive = opened(give_up_after=10.0, probes=1)
    drive.now = 6.0
    probe = drive.go()
    drive.now = 12.0
    assert not drive.rule.given_up(drive.now)
    drive.end(probe, ServerError("boom"))
    assert drive.rule.given_up(drive.now)


def test_a_lab_left_alone_tries_again_before_it_gives_up() -> None:
    drive = opened(give_up_after=600.0, probes=1)
    drive.now = 3600.0
    assert not drive.rule.given_up(drive.now)
    drive.each(ServerError("boom"))
    assert drive.rule.state == "open"
    assert not drive.rule.given_up(drive.now)
    assert drive.rule.down_since == 3600.0


def test_infinity_never_gives_up() -> None:
    drive = opened(give_up_after=math.inf)
    assert drive.wait() == 5.0
    assert not drive.rule.given_up(4.0)


def test_a_breaker_that_never_opened_has_given_nothing_up() -> None:
    assert not Breaker().given_up(1e9)


# the ramp after an outage


def ramped(width: int, **config: Any) -> Drive:
    """Closed again after an outage that began with `width` calls in flight."""
    drive = Drive(**({"consecutive": 1, "jitter": 0.0, "probes": 2} | config))
    calls = [drive.go() for _ in range(width)]
    drive.end(calls[0], ConnectFailed("refused"))
    drive.pass_the_wait()
    drive.each(None, None)
    assert drive.rule.state == "closed"
    return drive


def fill(drive: Drive, most: int = 1000) -> list[Permit]:
    """Take while one may."""
    taken: list[Permit] = []
    while len(taken) < most and drive.wait() == 0:
        taken.append(drive.go())
    return taken


def test_after_an_outage_half_as_many_go_at_first_and_each_success_lets_in_two() -> None:
    drive = ramped(40)
    calls = fill(drive)
    assert len(calls) == 20
    assert drive.wait() == math.inf
    drive.end(calls[0])
    assert len(fill(drive)) == 2


def test_the_ramp_ends_where_the_outage_began() -> None:
    drive = ramped(40)
    for call in fill(drive):
        drive.end(call)
    assert len(fill(drive)) == 1000


def test_a_failure_in_the_ramp_frees_its_place_and_no_more() -> None:
    drive = ramped(40)
    calls = fill(drive)
    drive.end(calls[0], ServerError("boom"))
    drive.cancel(calls[1])
    assert len(fill(drive)) == 2


def test_a_narrow_job_has_no_ramp_and_never_less_than_the_probes() -> None:
    assert len(fill(ramped(2))) == 1000
    assert len(fill(ramped(3))) == 2


# settings, copies, events


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *((name, bad) for name in ("min_calls", "consecutive", "probes") for bad in (0, -1, 2.5, True, "3", None)),
        *(
            (name, bad)
            for name in ("window", "throttled_for", "open_for", "open_max", "probe_timeout")
            for bad in (0, -1.0, math.inf, math.nan, "5", None)
        ),
        *(("give_up_after", bad) for bad in (-1, math.nan, "x")),
        *(("failure_ratio", bad) for bad in (0, 1.01, math.nan, "x")),
        *(("jitter", bad) for bad in (-0.1, 1, math.nan)),
        *(("seed", bad) for bad in (1.5, None, True)),
        ("open_max", 4.9),
    ],
)
def test_a_wrong_setting_is_named(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"Breaker: {name} must be .*, not "):
        Breaker(**{name: value})  # type: ignore[arg-type]


def test_settling_without_a_permit_is_a_mistake() -> None:
    with pytest.raises(TypeError, match="permit"):
        Breaker().settle(0.0, COST, None, None, None, 0.0, None)


def test_a_copy_has_the_settings_and_none_of_the_state() -> None:
    drive = opened(seed=3, probes=2)
    fresh = replace(drive.rule)
    assert fresh == drive.rule == Breaker(consecutive=1, jitter=0.0, seed=3, probes=2)
    assert (fresh.state, fresh.generation, list(fresh.transitions), fresh.wait(0.0, COST)) == ("closed", 0, [], 0.0)
    assert drive.rule.state == "open"


def test_who_listens_hears_each_transition_and_finds_it_complete() -> None:
    drive = Drive(consecutive=1, probes=1, give_up_after=1e-9)
    heard: list[tuple[Transition, str, int, bool]] = []

    def listen(transition: object) -> None:
        rule = drive.rule
        assert isinstance(transition, Transition)
        heard.append((transition, rule.state, rule.generation, rule.given_up(transition.at + 1e-6)))

    drive.rule.watch(heard.clear, listen)
    drive.each(ConnectFailed("refused"))
    drive.pass_the_wait()
    drive.each(None)
    assert [t for t, *_ in heard] == list(drive.rule.transitions)
    assert [(state, n, up) for _, state, n, up in heard] == [
        ("open", 1, True), ("half_open", 2, False), ("closed", 3, False)
    ]  # fmt: skip
    assert [t.generation for t, *_ in heard] == [1, 2, 3]


def test_who_listens_may_ask_for_admission() -> None:
    """As a line does that looks again at each change: what it is told must hold already."""
    drive = Drive(consecutive=1, probes=2, jitter=0.0)
    waits: list[float] = []
    drive.rule.watch(quiet, lambda _: waits.append(drive.wait()))
    drive.each(ConnectFailed("refused"))
    drive.pass_the_wait()
    drive.each(None, None)
    assert waits == [5.0, 0.0, 0.0]
    assert drive.rule.state == "closed"


def test_nobody_has_to_listen() -> None:
    assert half_opened().why() == ["unreachable", "wait over"]


def test_the_gauge_shows_the_state_and_does_not_move_it() -> None:
    drive = opened()
    assert drive.rule.gauge(drive.now) == {"breaker": "open"}
    assert drive.rule.gauge(1e6) == {"breaker": "open"}
    assert drive.rule.generation == 1
    drive.pass_the_wait()
    assert drive.rule.gauge(drive.now) == {"breaker": "half_open"}
    assert Breaker().gauge(0.0) == {"breaker": "closed"}


def test_a_wait_for_a_breaker_means_the_provider() -> None:
    assert Breaker().binds == Breaker.binds == "provider"


def test_the_list_of_transitions_is_bounded() -> None:
    drive = opened(probes=1)
    for _ in range(600):
        drive.pass_the_wait()
        drive.each(ServerError("boom"))
    assert (len(drive.rule.transitions), drive.rule.generation) == (1000, 1201)


# what holds whatever happens


@given(st.lists(st.tuples(st.floats(0, 12), st.booleans()), max_size=60), st.sampled_from([1.0, 30.0]))
def test_the_window_counts_the_last_ten_slots(steps: list[tuple[float, bool]], span: float) -> None:
    window, now, seen = Window(span), 0.0, list[tuple[int, bool]]()
    for gap, failed in steps:
        now += gap
        window.add(now, failed=failed)
        seen.append((int(now / span * 10), failed))
        kept = [f for slot, f in seen if slot > seen[-1][0] - 10]
        assert (window.calls, window.failures) == (len(kept), sum(kept))


ERRORS: dict[str, Callable[[float | None], BaseException | None]] = {
    "success": lambda _: None,
    "failure": lambda seconds: Overloaded("busy", retry_after=seconds),
    "unreachable": lambda _: ConnectFailed("refused"),
    "429": lambda seconds: RateLimited("slow down", retry_after=seconds),
    "poison": lambda _: BadRequest("wrong"),
    "cancelled": lambda _: asyncio.CancelledError(),
    "bug": lambda _: KeyError("ours"),
}


class Machine(RuleBasedStateMachine):
    """Callers of every kind, in any order, against a breaker with small numbers."""

    @initialize(
        probes=st.integers(1, 3),
        consecutive=st.integers(2, 8),
        late=st.booleans(),
        give_up=st.sampled_from([40.0, 600.0]),
    )
    def begin(self, probes: int, consecutive: int, late: bool, give_up: float) -> None:
        self.now = 0.0
        self.heard: list[Transition] = []
        self.out: list[tuple[Permit, float, int]] = []  # permit, sent, serial
        self.taken = self.late = self.silent = self.applied = 0
        self.successes = 0  # of this generation
        self.rule = Breaker(
            min_calls=4, consecutive=consecutive, probes=probes, late_success_probe=late, give_up_after=give_up
        )
        self.rule.watch(quiet, self.listen)

    def listen(self, transition: object) -> None:
        assert isinstance(transition, Transition)
        self.heard.append(transition)
        self.successes = 0

    def mine(self) -> list[tuple[Permit, float, int]]:
        """Permits of the present generation."""
        return [entry for entry in self.out if entry[0].generation == self.rule.generation]

    @rule(seconds=st.floats(0, 40))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def time_passes_as_long_as_it_says(self) -> None:
        wait = self.rule.wait(self.now, COST)
        if 0 < wait < math.inf:
            before = self.rule.generation
            self.now += wait + 1e-6
            moved = self.rule.wait(self.now, COST) == 0 or self.rule.generation > before
            assert moved or self.rule.given_up(self.now)

    @rule(many=st.integers(1, 6))
    def callers_come(self, many: int) -> None:
        for _ in range(many):
            if self.rule.wait(self.now, COST) == 0:
                permit = self.rule.take(self.now, COST)
                assert (permit.generation, permit.state) == (self.rule.generation, self.rule.state)
                self.taken += 1
                self.out.append((permit, self.now, self.taken))

    @precondition(lambda self: self.out)
    @rule(
        data=st.data(),
        kind=st.sampled_from(sorted(ERRORS)),
        seconds=st.sampled_from([None, 1.0, 50.0]),
        many=st.integers(1, 5),
    )
    def callers_leave(self, data: st.DataObject, kind: str, seconds: float | None, many: int) -> None:
        for _ in range(min(many, len(self.out))):
            permit, sent, _ = self.out.pop(data.draw(st.integers(0, len(self.out) - 1)))
            self.leave(permit, sent, kind, ERRORS[kind](seconds))

    def leave(self, permit: Permit, sent: float, kind: str, error: BaseException | None) -> None:
        before, state, successes = self.rule.generation, self.rule.state, self.successes
        stale = permit.generation != before
        silent = kind in ("cancelled", "bug")
        self.silent += silent
        self.late += stale and not silent
        self.applied += not stale and not silent
        self.rule.settle(self.now, COST, error, None, None, sent, permit)
        moved = self.rule.generation > before
        if stale or silent or kind == "poison":
            assert not moved
        elif state == "half_open":
            self.judge_probe(kind, moved, successes)
        elif kind == "success":
            assert not moved
        if kind == "success" and not stale and not moved:
            self.successes += 1

    def judge_probe(self, kind: str, moved: bool, successes: int) -> None:
        if kind == "success":
            assert moved == (successes + 1 == self.rule.probes)
            assert self.rule.state == ("closed" if moved else "half_open")
        elif kind in ("failure", "unreachable"):
            assert moved
            assert self.rule.state == "open"

    @invariant()
    def waiting_is_zero_exactly_when_taking_is_legal(self) -> None:
        self.rule.watch(quiet, quiet)
        trial = copy.deepcopy(self.rule)
        self.rule.watch(quiet, self.listen)
        free = trial.wait(self.now, COST) == 0
        try:
            trial.take(self.now, COST)
        except RuntimeError:
            assert not free
        else:
            assert free

    @invariant()
    def probes_are_few(self) -> None:
        if self.rule.state == "half_open":
            assert len(self.mine()) + self.successes <= self.rule.probes
        if self.rule.state == "open":
            assert self.mine() == []

    @invariant()
    def permits_balance(self) -> None:
        assert self.rule._out == len(self.mine())
        assert (self.rule.late_results, self.rule.cancelled_permits) == (self.late, self.silent)
        assert self.taken == len(self.out) + self.late + self.silent + self.applied

    @invariant()
    def infinity_only_while_somebody_can_leave(self) -> None:
        wait = copy.copy(self.rule).wait(self.now, COST) if self.rule.state == "closed" else 0.0
        assert wait in (0.0, math.inf)
        assert wait == 0 or self.mine()

    @invariant()
    def transitions_are_a_chain(self) -> None:
        chain = list(self.rule.transitions)
        assert chain == self.heard
        assert [t.generation for t in chain] == list(range(1, self.rule.generation + 1))
        assert ["closed", *(t.new for t in chain)] == [*(t.old for t in chain), self.rule.state]
        assert [t.at for t in chain] == sorted(t.at for t in chain)


Machine.TestCase.settings = settings(max_examples=150, stateful_step_count=60, deadline=None)
TestWhateverHappens = Machine.TestCase


# a line behind it


class Door:
    """What Admit does with one rule: a line, one timer, permits kept and handed back."""

    def __init__(self, rule: Breaker) -> None:
        self.rule = rule
        self.line: deque[asyncio.Future[Permit]] = deque()
        self.timer: asyncio.TimerHandle | None = None
        self.pumps = 0

    async def __call__(self, send: Callable[[], Awaitable[None]]) -> None:
        loop = asyncio.get_running_loop()
        granted: asyncio.Future[Permit] = loop.create_future()
        self.line.append(granted)
        self.pump()
        permit, sent, error = None, None, None
        try:
            permit = await granted
            sent = loop.time()
            await send()
        except BaseException as failure:
            error = failure
            raise
        finally:
            if permit is None and not granted.cancelled():
                permit = granted.result()  # cancelled after the grant
            if permit is not None:
                self.rule.settle(loop.time(), COST, error, None, None, sent, permit)
            self.pump()

    def pump(self) -> None:
        self.pumps += 1
        if self.timer is not None:
            self.timer.cancel()
        loop = asyncio.get_running_loop()
        while self.line:
            if self.line[0].done():
                self.line.popleft()
                continue
            wait = self.rule.wait(loop.time(), COST)
            if wait > 0:
                self.timer = loop.call_at(loop.time() + wait, self.pump) if wait < math.inf else None
                return
            self.line.popleft().set_result(self.rule.take(loop.time(), COST))


class Provider:
    """Answers after 0.2 s; is down until some time; hangs from the first probe on if told so."""

    def __init__(self, back_at: float = 0.0, *, hangs: bool = False) -> None:
        self.back_at, self.hangs = back_at, hangs
        self.sent: list[float] = []
        self.now = self.most = 0

    async def __call__(self) -> None:
        now = asyncio.get_running_loop().time()
        self.sent.append(now)
        self.now += 1
        self.most = max(self.most, self.now)
        try:
            down = now < self.back_at
            await asyncio.sleep(1e6 if down and self.hangs else 0.2)
        finally:
            self.now -= 1
        if down:
            raise ServerError("boom")


async def thousand(door: Door, provider: Provider, rows: int = 1000) -> int:
    """Rows that come back to the line until they succeed; how many do."""

    async def row() -> int:
        while True:
            try:
                await door(provider)
            except ServerError:
                continue
            return 1

    return sum(await asyncio.gather(*(row() for _ in range(rows))))


def test_of_a_thousand_waiters_one_probes_and_all_get_through() -> None:
    rule = Breaker(probes=1, consecutive=1, min_calls=1)
    door, provider = Door(rule), Provider(back_at=100.0)

    async def main() -> int:
        with pytest.raises(ServerError):
            await door(provider)
        return await thousand(door, provider)

    assert run_virtual(main) == 1000
    during = [at for at in provider.sent if at < 100]
    assert len(during) == sum(t.new == "open" for t in rule.transitions)  # one call for each opening, never two
    assert len(during) <= 6
    assert rule.transitions[-1].new == "closed"
    assert rule.transitions[-1].at < 100 + 2 * 80 * 1.2
    assert len(provider.sent) == 1000 + len(during)


def test_a_provider_that_comes_back_meets_no_burst_wider_than_half() -> None:
    rule = Breaker()
    provider = Provider(back_at=0.1)

    async def main() -> int:
        return await thousand(Door(rule), provider)

    assert run_virtual(main) == 1000
    outage_width, back = provider.most, provider.sent.index(next(at for at in provider.sent if at > 1))
    assert outage_width == 1000  # no Slots here: all went at once
    assert rule.late_results == 980 + 19  # 20 failures opened it; 19 of those rows had gone again before the last
    assert [round(at, 1) for at in provider.sent[back : back + 3]] == [round(provider.sent[back], 1)] * 3
    second = [at for at in provider.sent[back + 3 :] if at < provider.sent[back + 3] + 0.1]
    assert len(second) == 1000 // 2


def test_a_hung_probe_does_not_hold_a_thousand_for_ever() -> None:
    rule = Breaker(probes=1, consecutive=1, min_calls=1, jitter=0.0)
    door, provider = Door(rule), Provider()

    async def main() -> list[str]:
        provider.back_at = 0.5
        with pytest.raises(ServerError):
            await door(provider)
        provider.back_at, provider.hangs = 30.0, True
        line = asyncio.ensure_future(thousand(door, provider))
        await asyncio.sleep(200)
        assert provider.now == 1  # the hung probe; its permit belongs to a past generation
        assert line.done() is False
        why: list[str] = [t.reason for t in rule.transitions]
        done = len(provider.sent) - 2
        assert done == 999
        line.cancel()
        await asyncio.gather(line, return_exceptions=True)
        return why

    assert run_virtual(main) == ["failure ratio", "wait over", "probe hung", "wait over", "recovered"]


def test_cancelled_probes_leave_the_line_in_good_order() -> None:
    rule = Breaker(probes=1, consecutive=1, min_calls=1, jitter=0.0)
    door, provider = Door(rule), Provider(back_at=0.1)

    async def main() -> None:
        with pytest.raises(ServerError):
            await door(provider)
        tasks = [asyncio.ensure_future(door(provider)) for _ in range(1000)]
        await asyncio.sleep(5.1)
        assert provider.now == 1
        for task in tasks[:-1]:  # the probe in flight and, one after the other, each that is granted its permit
            task.cancel()
            await asyncio.sleep(0)
        await tasks[-1]
        await asyncio.gather(*tasks, return_exceptions=True)

    run_virtual(main)
    assert rule.state == "closed"
    assert rule._out == 0
    assert rule.cancelled_permits > 1


def test_the_line_is_asked_once_per_event_not_in_a_spin() -> None:
    rule = Breaker(probes=1, consecutive=1, min_calls=1)
    door, provider = Door(rule), Provider(back_at=60.0)

    async def main() -> None:
        with pytest.raises(ServerError):
            await door(provider)
        await thousand(door, provider, rows=50)

    run_virtual(main)
    assert door.pumps < 50 * 5 + 20


def test_who_gives_up_at_once_sends_those_who_wait_home_while_it_is_open() -> None:
    drive = opened(give_up_after=0.0, probes=1, open_for=5.0, jitter=0.0)
    assert drive.rule.refuse(drive.now) is not None
    drive.now += 5.0
    assert drive.rule.refuse(drive.now) is None, "the next probe is due"


def test_an_answer_that_names_a_timeout_is_an_answer() -> None:
    """A 504 has a status: somebody is there, however bad, and only the ratio counts."""
    drive = Drive(consecutive=2, min_calls=100)
    late = TimedOut("gateway", phase="attempt", status=504)
    for _ in range(9):
        drive.end(drive.go(), late)
    assert drive.rule.state == "closed"
