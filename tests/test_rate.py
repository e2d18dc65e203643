"""A rate holds in every window, levels follow what was used and said, a pause or a learned limit is not for good."""

import heapq
import math
import random
from collections.abc import Mapping
from dataclasses import replace
from itertools import count, pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmlab.errors import Dropped, LLMError, Overloaded, RateLimited, ServerError, TimedOut
from llmlab.rules.meter import LOG
from llmlab.rules.rate import DIMENSIONS, Learned, Pause, Rate
from llmlab.sim.buckets import Bucket

ONE = {"requests": 1.0}
CALL = {"requests": 1.0, "input_tokens": 100.0, "output_tokens": 400.0, "total_tokens": 500.0, "usd": 0.01}
EVERY = {"rpm": 600.0, "tpm": 60_000.0, "input_tpm": 60_000.0, "output_tpm": 60_000.0, "usd_per_day": 86_400.0}

Levels = Mapping[str, tuple[float, float, float]]


def level(rate: Rate, name: str, now: float = 0.0) -> float:
    return rate.snapshot(now)[name].level


def paused(rate: Rate, name: str) -> float:
    return rate.snapshot(0.0)[name].paused_until


def learned(rate: Rate) -> float:
    assert rate.learned_rpm is not None
    return rate.learned_rpm / 60


def settle(
    rate: Rate,
    now: float,
    cost: Mapping[str, float] = ONE,
    *,
    error: BaseException | None = None,
    used: Mapping[str, float] | None = None,
    levels: Levels | None = None,
    sent: float | None = 0.0,
) -> None:
    rate.settle(now, cost, error, used, levels, sent)


def no(message: str = "no", *, after: float | None = None, code: str | None = None) -> RateLimited:
    return RateLimited(message, status=429, code=code, retry_after=after)


# What goes


steps = st.lists(
    st.one_of(
        st.tuples(st.just("ask"), st.floats(0.01, 40)),
        st.tuples(st.just("pass"), st.floats(0, 8)),
        st.tuples(st.just("settle"), st.floats(0, 2)),
        st.tuples(st.just("cancel"), st.just(0.0)),
        st.tuples(st.just("fail"), st.just(0.0)),
    ),
    max_size=60,
)


@settings(max_examples=300)
@given(steps, st.floats(10, 600), st.floats(0.5, 20), st.sampled_from([0.0, 1e6]))
def test_no_window_lets_more_through_than_burst_and_rate(
    steps: list[tuple[str, float]], tpm: float, burst: float, now: float
) -> None:
    rate, most = Rate(tpm=tpm, burst=burst), tpm / 60 * burst
    taken: list[tuple[float, float]] = []
    back: list[tuple[float, float]] = []
    open_: list[dict[str, float]] = []
    for what, figure in steps:
        if what == "pass":
            now += figure
        elif what == "ask":
            cost = {"total_tokens": figure, "output_tokens": figure / 2}
            if rate.wait(now, cost) == 0:
                rate.take(now, cost)
                taken.append((now, figure))
                open_.append(cost)
        elif open_:
            cost = open_.pop(0)
            reserved = cost["total_tokens"]
            if what == "settle":
                settle(rate, now, cost, used={"total_tokens": reserved * figure})
                back.append((now, max(0.0, reserved * (1 - figure))))
            elif what == "cancel":
                settle(rate, now, cost, error=KeyboardInterrupt(), sent=None)
                back.append((now, reserved))
            else:
                settle(rate, now, cost, error=Dropped("gone"), sent=now)
                back.append((now, reserved / 2))
    for first, (since, _) in enumerate(taken):
        for last in range(first, len(taken)):
            until = taken[last][0]
            sum_ = sum(amount for _, amount in taken[first : last + 1])
            returned = sum(amount for at, amount in back if since <= at <= until)
            biggest = max(amount for _, amount in taken[first : last + 1])
            allowed = max(most, biggest) + tpm / 60 * (until - since + 1e-6) + returned
            assert sum_ <= allowed * (1 + 1e-9)


@given(st.floats(0.1, 1e7), st.floats(0.1, 60), st.floats(0, 2.0**31), st.lists(st.floats(0, 1e6), max_size=8))
def test_who_waits_as_long_as_told_may_go(rpm: float, burst: float, now: float, amounts: list[float]) -> None:
    rate = Rate(rpm=rpm, burst=burst)
    for amount in amounts:
        cost = {"requests": amount}
        wait = rate.wait(now, cost)
        assert 0 <= wait < math.inf
        assert wait == 0 or now + wait > now
        now += wait
        assert rate.wait(now, cost) == 0
        rate.take(now, cost)


def test_a_timer_that_fires_early_by_the_clocks_resolution_is_in_time() -> None:
    rng = random.Random(1)
    for _ in range(2000):
        now, rate, cost = rng.uniform(0, 2.0**31), Rate(rpm=60), {"requests": rng.uniform(4, 9)}
        rate.take(now, cost)
        now += rng.random()
        wait = rate.wait(now, cost)
        assert wait > 0
        assert rate.wait(now + wait, cost) == 0
        assert now > 1e6 or rate.wait(now + wait - 1e-9, cost) == 0


def test_a_minute_is_not_sent_at_once() -> None:
    rate, gone = Rate(rpm=600), 0
    while rate.wait(0.0, ONE) == 0:
        rate.take(0.0, ONE)
        gone += 1
    assert gone == 50
    assert rate.wait(0.0, ONE) == pytest.approx(0.1)


def test_a_day_has_the_same_share_at_once() -> None:
    rate = Rate(usd_per_day=24)
    rate.take(0.0, {"usd": 2.0})
    assert rate.wait(0.0, {"usd": 1.0}) == pytest.approx(3600)


def test_without_limits_all_go() -> None:
    rate = Rate()
    for _ in range(10_000):
        assert rate.wait(0.0, CALL) == 0
        rate.take(0.0, CALL)
    assert level(rate, "requests") == math.inf


def test_a_cost_above_the_burst_goes_on_a_full_bucket_and_is_charged_whole() -> None:
    rate, big = Rate(tpm=6000, burst=5), {"total_tokens": 9000.0}
    rate.take(0.0, {"total_tokens": 100.0})
    assert rate.wait(0.0, big) == pytest.approx(1.0)
    assert rate.wait(1.0, big) == 0
    rate.take(1.0, big)
    assert level(rate, "total_tokens", 1.0) == pytest.approx(-8500)
    assert rate.wait(1.0, {"total_tokens": 1.0}) == pytest.approx(85.01)
    assert rate.wait(1.0, big) == pytest.approx(90)


def test_the_slowest_dimension_decides_and_all_are_charged() -> None:
    rate = Rate(rpm=600, tpm=6000)
    rate.take(0.0, CALL)
    assert rate.wait(0.0, CALL) == pytest.approx(5.0)
    assert level(rate, "requests") == pytest.approx(49)
    assert level(rate, "total_tokens") == pytest.approx(0)


# What was really used


@given(st.lists(st.tuples(st.floats(0, 100), st.floats(0, 300)), max_size=20), st.randoms())
def test_when_all_are_settled_the_level_lacks_what_was_used(calls: list[tuple[float, float]], random: Any) -> None:
    rate, full = Rate(tpm=60_000), 5000.0
    for guess, _ in calls:
        rate.take(7.0, {"total_tokens": guess})
    random.shuffle(calls)
    for guess, used in calls:
        settle(rate, 7.0, {"total_tokens": guess}, used={"total_tokens": used}, sent=7.0)
    assert level(rate, "total_tokens", 7.0) == pytest.approx(full - sum(used for _, used in calls))


@pytest.mark.parametrize("limit", DIMENSIONS)
def test_never_sent_costs_nothing_in_any_dimension(limit: str) -> None:
    rate = Rate(**{limit: EVERY[limit]})
    full = level(rate, DIMENSIONS[limit])
    rate.take(0.0, CALL)
    assert level(rate, DIMENSIONS[limit]) == pytest.approx(full - CALL[DIMENSIONS[limit]])
    settle(rate, 0.0, CALL, error=no(after=5), used=CALL, sent=None)
    assert level(rate, DIMENSIONS[limit]) == pytest.approx(full)
    assert rate.learned_rpm is None


@pytest.mark.parametrize(
    ("error", "usd"),
    [(ServerError("boom"), 0.0), (no(after=0), 0.0), (Dropped("gone"), 0.01), (KeyboardInterrupt(), 0.01),
     (TimedOut("slow", phase="attempt"), 0.01)],
)  # fmt: skip
def test_a_failed_call_has_cost_its_request_and_input(error: BaseException, usd: float) -> None:
    rate = Rate(**EVERY)
    full = {name: gauge.level for name, gauge in rate.snapshot(0.0).items()}
    rate.take(0.0, CALL)
    settle(rate, 0.0, CALL, error=error)
    spent = {name: full[name] - gauge.level for name, gauge in rate.snapshot(0.0).items()}
    assert spent == pytest.approx(
        {"requests": 1, "input_tokens": 100, "output_tokens": 0, "total_tokens": 100, "usd": usd}, abs=1e-6
    )


def test_what_a_failed_call_is_known_to_have_used_counts() -> None:
    rate = Rate(output_tpm=60_000)
    rate.take(0.0, CALL)
    settle(rate, 0.0, CALL, error=Dropped("gone"), used={"output_tokens": 150.0})
    assert level(rate, "output_tokens") == pytest.approx(5000 - 150)


def test_an_answer_that_does_not_say_what_it_used_has_used_what_was_reserved() -> None:
    rate = Rate(tpm=60_000)
    rate.take(0.0, CALL)
    settle(rate, 0.0, CALL)
    assert level(rate, "total_tokens") == pytest.approx(5000 - 500)


def test_what_nobody_reserved_is_charged_when_it_is_known() -> None:
    rate = Rate(usd_per_day=86_400)
    rate.take(0.0, ONE)
    settle(rate, 0.0, ONE, used={"usd": 700.0})
    assert level(rate, "usd") == pytest.approx(7200 - 700)


def test_more_than_reserved_is_charged_though_the_bucket_has_long_been_full() -> None:
    rate = Rate(tpm=60_000)
    rate.take(0.0, {"total_tokens": 10.0})
    settle(rate, 60.0, {"total_tokens": 10.0}, used={"total_tokens": 3010.0})
    assert level(rate, "total_tokens", 60.0) == pytest.approx(2000)


def test_a_refund_fills_no_bucket_above_its_brim() -> None:
    rate = Rate(tpm=60_000)
    rate.take(0.0, {"total_tokens": 1000.0})
    settle(rate, 60.0, {"total_tokens": 1000.0}, used={"total_tokens": 0.0})
    assert level(rate, "total_tokens", 60.0) == pytest.approx(5000)


# What the provider says


figures = st.tuples(st.just(600.0), st.floats(0, 600), st.floats(0, 60))


@given(st.lists(st.tuples(st.floats(0, 3), figures, st.floats(0, 5), st.booleans()), max_size=25))
def test_headers_never_raise_a_level(answers: list[tuple[float, tuple[float, float, float], float, bool]]) -> None:
    rate, now = Rate(rpm=600), 100.0
    for dt, said, age, take in answers:
        now += dt
        if take:
            rate.take(now, ONE)
        before = level(rate, "requests", now)
        settle(rate, now, levels={"requests": said}, sent=now - age)
        assert level(rate, "requests", now) <= before + 1e-9


def test_headers_lower_a_level_to_what_they_say() -> None:
    rate = Rate(rpm=600)
    rate.take(0.0, ONE)
    settle(rate, 0.0, levels={"requests": (600, 10, 59)})
    assert level(rate, "requests") == pytest.approx(10)
    assert rate.wait(0.0, {"requests": 12.0}) == pytest.approx(0.2)


def test_what_was_sent_after_the_request_that_brings_the_news_is_subtracted() -> None:
    rate = Rate(rpm=600)
    rate.take(1.0, ONE)
    for _ in range(8):
        rate.take(1.5, ONE)
    settle(rate, 1.6, levels={"requests": (600, 30, 57)}, sent=1.1)
    assert level(rate, "requests", 1.6) == pytest.approx(30 - (8 - 5))  # 10 a second have been refilled for 0.5 s


def test_a_long_answer_does_not_choke_the_rate() -> None:
    """The level is the provider's when the request was sent; the bucket has been refilled for two minutes since."""
    rate = Rate(rpm=600)
    now = 0.0
    rate.take(now, ONE)
    while now < 120:
        now += rate.wait(now, ONE) or 1e-3
        if rate.wait(now, ONE) == 0:
            rate.take(now, ONE)
    settle(rate, now, levels={"requests": (600, 590, 1)}, sent=0.0)
    assert level(rate, "requests", now) > -2


def test_news_that_is_overtaken_changes_nothing() -> None:
    rate = Rate(rpm=600)
    for _ in range(3):
        rate.take(0.0, ONE)
    settle(rate, 2.0, levels={"requests": (600, 400, 20)}, sent=1.0)
    before = rate.snapshot(2.0)
    settle(rate, 2.0, levels={"requests": (300, 5, 59)}, sent=0.9)
    assert rate.snapshot(2.0) == before
    settle(rate, 2.0, levels={"requests": (600, 5, 59)}, sent=1.0)
    assert level(rate, "requests", 2.0) == pytest.approx(5)


@given(st.permutations(range(6)))
def test_in_whatever_order_answers_come_the_latest_sent_has_the_word(order: list[int]) -> None:
    told = Rate()
    for sent in order:
        told.take(10.0, ONE)
        settle(told, 10.0, levels={"requests": (600.0 + sent, 590.0, 1)}, sent=float(sent))
    assert told.snapshot(10.0)["requests"].limit == 605


def test_small_differences_say_nothing() -> None:
    rate = Rate(rpm=600)
    for _ in range(40):
        rate.take(0.0, ONE)
    settle(rate, 0.0, levels={"requests": (600, -1.9, 60)})  # 11.9 lower, and 2% of 600 is 12
    assert level(rate, "requests") == pytest.approx(10)
    settle(rate, 0.0, levels={"requests": (600, -2.1, 60)})
    assert level(rate, "requests") == pytest.approx(-2.1)


def test_a_limit_told_by_headers_is_kept() -> None:
    rate = Rate()
    rate.take(0.0, CALL)
    settle(rate, 0.0, CALL, levels={"requests": (60, 59, 1), "total_tokens": (6000, 100, 59)})
    gauges = rate.snapshot(0.0)
    assert (gauges["requests"].limit, gauges["total_tokens"].limit) == (60, 6000)
    assert gauges["requests"].level == pytest.approx(5)
    assert gauges["total_tokens"].level == pytest.approx(100)
    assert rate.wait(0.0, CALL) == pytest.approx(4.0)


@pytest.mark.parametrize(("own", "told", "holds"), [(100, 600, 100), (600, 100, 100), (None, 600, 600)])
def test_the_lower_of_both_limits_holds(own: float | None, told: float, holds: float) -> None:
    rate = Rate(rpm=own)
    rate.take(0.0, ONE)
    settle(rate, 0.0, levels={"requests": (told, told, 0)})
    assert rate.snapshot(0.0)["requests"].limit == holds


def test_headers_of_a_larger_limit_than_ours_do_not_raise_a_level() -> None:
    rate = Rate(rpm=60)
    for _ in range(5):
        rate.take(0.0, ONE)
    settle(rate, 0.0, levels={"requests": (600, 595, 1)})
    assert level(rate, "requests") == pytest.approx(0)


def test_a_raised_limit_may_raise_a_level_and_a_lowered_one_keeps_what_is_owed() -> None:
    rate = Rate()
    rate.take(0.0, ONE)
    settle(rate, 0.0, levels={"requests": (600, 5, 59)})
    settle(rate, 0.0, levels={"requests": (1200, 600, 30)})
    assert level(rate, "requests") == pytest.approx(100)
    rate.take(0.0, {"requests": 90.0})
    settle(rate, 0.0, levels={"requests": (600, 600, 0)})
    assert level(rate, "requests") == pytest.approx(50 - 90)


def test_senseless_limits_are_ignored() -> None:
    rate = Rate()
    rate.take(0.0, ONE)
    settle(rate, 0.0, levels={"requests": (0, 0, 0), "input_tokens": (-1, 5, 0)})
    assert [gauge.limit for gauge in rate.snapshot(0.0).values()] == [None, None]


def test_a_long_run_without_headers_remembers_a_bounded_number_of_takings() -> None:
    rate = Rate(rpm=6000)
    for i in range(5000):
        rate.take(i * 0.01, ONE)
    assert len(rate._meters["requests"].log) == LOG
    settle(rate, 50.0, levels={"requests": (6000, 5990, 0.1)}, sent=49.0)
    assert level(rate, "requests", 50.0) == pytest.approx(500, abs=2)
    assert len(rate._meters["requests"].log) < 120
    settle(rate, 50.0, levels={"requests": (6000, 100, 59)}, sent=49.99)
    assert level(rate, "requests", 50.0) == pytest.approx(100, abs=2)


def test_what_was_sent_before_anybody_remembers_is_not_held_against_the_first_headers() -> None:
    rate = Rate()
    for i in range(5000):
        rate.take(i * 0.001, ONE)
    settle(rate, 5.0, levels={"requests": (60_000, 5000, 55)}, sent=3.0)
    assert level(rate, "requests", 5.0) == pytest.approx(5000)


# Pauses


@given(st.lists(st.tuples(st.floats(0, 5), st.floats(0, 60)), min_size=1, max_size=20))
def test_a_pause_only_moves_forward(refusals: list[tuple[float, float]]) -> None:
    rate, now, until = Rate(rpm=600), 0.0, -math.inf
    for dt, after in refusals:
        now += dt
        rate.take(now, ONE)
        settle(rate, now, error=no(after=after), sent=now)
        until = max(until, now + after if after else until)
        assert paused(rate, "requests") == until
        assert rate.wait(now, ONE) >= until - now - 1e-6


TOKENS = {"input_tokens", "output_tokens", "total_tokens"}


@pytest.mark.parametrize(
    ("message", "code", "dimensions"),
    [
        ("Rate limit reached for M in organization O on requests per min (RPM): Limit 3, Used 3", None, {"requests"}),
        ("Rate limit reached for M on tokens per min (TPM): Limit 30000, Used 18928, Requested 11159.", None, TOKENS),
        ("would exceed your organization's rate limit of 40,000 input tokens per minute", None, {"input_tokens"}),
        ("limit of 8,000 output tokens per minute. Please reduce the maximum tokens", None, {"output_tokens"}),
        ("This request would exceed your organization's rate limit of 50 requests per minute.", None, {"requests"}),
        ("Number of request tokens has exceeded your per-minute rate limit", None, TOKENS),
        ("Number of requests has exceeded your per-minute rate limit", None, {"requests"}),
        ("Requests to the API have exceeded call rate limit of your S0 tier.", None, {"requests"}),
        ("Requests to the API have exceeded token rate limit of your S0 tier.", None, TOKENS),
        ("limit reached", "requests", {"requests"}),
        ("limit reached", "tokens", TOKENS),
        ("ITPM exceeded", None, {"input_tokens"}),
        ("429 Too Many Requests", None, {"requests", *TOKENS}),
        ("slow down", None, {"requests", *TOKENS}),
        ("", None, {"requests", *TOKENS}),
    ],
)  # fmt: skip
def test_the_dimension_that_the_words_name_is_paused(message: str, code: str | None, dimensions: set[str]) -> None:
    rate = Rate()
    rate.take(0.0, CALL)
    settle(rate, 0.0, CALL, error=no(message, after=9, code=code))
    assert {name for name, gauge in rate.snapshot(0.0).items() if gauge.paused_until == 9} == dimensions


@pytest.mark.parametrize(("remaining", "dimensions"), [(0, {"input_tokens"}), (99, {"input_tokens"}), (100, TOKENS)])
def test_the_dimension_that_the_headers_show_empty_is_paused(remaining: float, dimensions: set[str]) -> None:
    rate = Rate()
    rate.take(0.0, CALL)
    said = {"requests": (60.0, 60.0, 0.0), "input_tokens": (6000.0, float(remaining), 60.0)}
    settle(rate, 0.0, CALL, error=no("tokens", after=9), levels=said)
    assert {name for name, gauge in rate.snapshot(0.0).items() if gauge.paused_until == 9} == dimensions


def test_a_pause_of_a_dimension_lets_calls_pass_that_need_none_of_it() -> None:
    rate = Rate()
    rate.take(0.0, CALL)
    settle(rate, 0.0, CALL, error=no("tokens per min", after=9), levels={"requests": (6000, 5999, 1)})
    assert rate.wait(1.0, CALL) == pytest.approx(8)
    assert rate.wait(1.0, ONE) == 0


def test_words_about_what_the_call_did_not_reserve_pause_what_it_did() -> None:
    rate = Rate()
    rate.take(0.0, ONE)
    settle(rate, 0.0, error=no("tokens per min (TPM)", after=9))
    assert rate.wait(0.0, ONE) == pytest.approx(9)


def test_a_pause_ends_with_what_was_asked_for_and_no_burst() -> None:
    rate = Rate(rpm=600)
    rate.take(0.0, ONE)
    settle(rate, 0.0, error=no(after=30))
    assert rate.wait(0.0, ONE) == pytest.approx(30)
    assert rate.wait(30.0, ONE) == 0
    rate.take(30.0, ONE)
    assert rate.wait(30.0, ONE) == pytest.approx(0.1)


@pytest.mark.parametrize("error", [ServerError("boom", retry_after=9), Overloaded("full", retry_after=9)])
def test_only_throttling_pauses(error: LLMError) -> None:
    rate = Rate(rpm=600)
    rate.take(0.0, ONE)
    settle(rate, 0.0, error=error)
    assert rate.wait(0.0, ONE) == 0
    assert rate.learned_rpm is None


# Limits learned from 429s


def send(rate: Rate, calls: int, begin: float, end: float, latency: float = 0.0) -> None:
    """Send calls evenly, each answered."""
    for i in range(calls):
        at = begin + (end - begin) * i / calls
        rate.take(at, ONE)
        settle(rate, at + latency, sent=at)


def refuse(rate: Rate, now: float, **facts: Any) -> None:
    rate.take(now, ONE)
    settle(rate, now, error=no(**facts), sent=now)


def test_an_unknown_limit_is_learned_from_what_went_before_the_first_429() -> None:
    rate = Rate()
    send(rate, 40, 0.0, 4.0)
    refuse(rate, 4.0)
    assert learned(rate) == pytest.approx(0.7 * 40 / 4, rel=0.15)
    assert rate.wait(4.0, ONE) == pytest.approx(1 / learned(rate), rel=0.01)


@pytest.mark.parametrize(
    ("limits", "facts", "learns"),
    [
        ({}, {}, True),
        ({}, {"after": 2}, True),
        ({"rpm": 6000}, {}, True),
        ({"rpm": 6000}, {"after": 2}, False),
        ({"tpm": 6000}, {"after": 2, "message": "requests per min"}, True),
        ({"rpm": 6000}, {"after": 2, "message": "requests per min"}, False),
        ({"rpm": 6000}, {"after": 2, "code": "slow_down"}, True),
        ({"rpm": 6000}, {"after": 2, "code": "ramp_limit_exceeded"}, True),
    ],
)
def test_only_what_no_known_limit_explains_is_learned_from(
    limits: dict[str, float], facts: dict[str, Any], learns: bool
) -> None:
    rate = Rate(**limits)
    rate.take(0.0, CALL)
    settle(rate, 0.0, CALL, error=no(**facts))
    assert (rate.learned_rpm is not None) is learns


@pytest.mark.parametrize(
    ("requests", "tokens", "learns"), [((60, 0, 60), (60, 60, 0), False), ((60, 59, 1), (60, 0, 60), False),
                                       ((60, 59, 1), (60, 1, 59), True)],
)  # fmt: skip
def test_a_429_that_the_headers_explain_teaches_nothing_more(
    requests: tuple[float, float, float], tokens: tuple[float, float, float], learns: bool
) -> None:
    rate = Rate()
    rate.take(0.0, ONE)
    settle(rate, 0.0, error=no(), levels={"requests": requests, "input_tokens": tokens})
    assert (rate.learned_rpm is not None) is learns


def test_one_wave_of_429s_is_one_lesson() -> None:
    rate = Rate()
    for _ in range(200):
        rate.take(0.0, ONE)
    settle(rate, 0.1, error=no(), sent=0.0)
    first = learned(rate)
    for i in range(150):
        settle(rate, 0.1 + i * 0.01, error=no(), sent=0.0)
    assert learned(rate) == first
    rate.take(2.0, ONE)
    settle(rate, 2.1, error=no(), sent=2.0)
    assert learned(rate) == pytest.approx(0.7 * (201 - 152) / 4)  # the rest was accepted, as far as is known


def test_a_late_refusal_is_not_held_against_what_was_sent_since() -> None:
    rate = Rate()
    for _ in range(20):
        rate.take(0.0, ONE)
    for _ in range(10):
        rate.take(5.0, ONE)
    for _ in range(20):
        settle(rate, 5.1, error=no(), sent=0.0)
    assert rate._governor.measured(6.0) == pytest.approx(10 / 4)


def test_a_refusal_of_what_nobody_remembers_is_borne() -> None:
    rate = Rate()
    for i in range(300):
        rate.take(float(i), ONE)
    settle(rate, 300.0, error=no(), sent=0.0)
    assert rate._governor.measured(300.0) == pytest.approx(4 / 4)
    assert learned(rate) == pytest.approx(0.7)


def test_the_cubic_bounds_rates_so_high_that_a_tenth_in_ten_seconds_would_pass_it() -> None:
    rate = Rate()
    governor = rate._governor
    governor.peak, governor.cut_at, governor.grown_at = 1e6, 0.0, 30.0
    governor.set(40.0, 0.93e6)
    governor.sends.append([39.0, 4e6])
    settle(rate, 40.0, sent=39.0)
    k = (0.3 * 1e6 / 0.4) ** (1 / 3)
    assert learned(rate) == pytest.approx(0.4 * (40 - k) ** 3 + 1e6)


def test_never_is_less_than_one_request_in_two_seconds_learned() -> None:
    rate = Rate()
    for i in range(50):
        refuse(rate, i * 10.0)
    assert learned(rate) == pytest.approx(0.5)


def test_what_was_never_sent_does_not_count_as_sent() -> None:
    rate = Rate()
    send(rate, 40, 0.0, 4.0)
    for _ in range(500):
        rate.take(3.9, ONE)
        settle(rate, 3.9, error=KeyboardInterrupt(), sent=None)
    refuse(rate, 4.0)
    assert learned(rate) == pytest.approx(0.7 * 40 / 4, rel=0.15)


def test_what_is_never_sent_gives_its_turn_at_the_learned_rate_back() -> None:
    rate = Rate()
    send(rate, 40, 0.0, 4.0)
    refuse(rate, 4.0)
    while (before := rate.wait(5.0, ONE)) == 0:
        rate.take(5.0, ONE)
    rate.take(5.0, ONE)
    assert rate.wait(5.0, ONE) > before
    settle(rate, 5.0, error=KeyboardInterrupt(), sent=None)
    assert rate.wait(5.0, ONE) == pytest.approx(before)


def test_a_pause_is_not_taken_for_a_low_rate() -> None:
    plain, pausing = Rate(), Rate()
    for rate in (plain, pausing):
        send(rate, 80, 0.0, 4.0)
    refuse(plain, 4.0)
    pausing._governor.pause(4.0, 34.0)
    pausing._governor.pause(5.0, 30.0)
    refuse(pausing, 34.0)
    assert learned(pausing) == pytest.approx(learned(plain), rel=0.15)
    idle = Rate()
    send(idle, 80, 0.0, 4.0)
    refuse(idle, 34.0)
    assert learned(idle) == pytest.approx(0.5)


def test_answers_that_take_long_widen_the_look_back() -> None:
    quick, slow = Rate(), Rate()
    send(quick, 100, 0.0, 10.0, latency=1.0)
    send(slow, 100, 0.0, 10.0, latency=10.0)
    for rate in (quick, slow):
        refuse(rate, 12.0)
    assert learned(slow) == pytest.approx(0.7 * 10 * 8 / 10, rel=0.15)
    assert learned(quick) == pytest.approx(0.7 * 10 * 2 / 4, rel=0.15)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.floats(0.0, 3.0), st.integers(1, 12), st.sampled_from(["ok", "ok", "ok", "no", "late", "cancel"])),
        min_size=1,
        max_size=120,
    )
)
def test_the_learned_rate_is_never_raised_above_twice_the_measured_nor_faster_than_a_tenth_in_ten_seconds(
    steps: list[tuple[float, int, str]],
) -> None:
    rate, now, before, at = Rate(), 0.0, math.inf, 0.0
    for dt, calls, end in steps:
        now += dt
        for _ in range(calls):
            rate.take(now, ONE)
            error = no() if end == "no" else KeyboardInterrupt() if end == "cancel" else None
            settle(rate, now + 0.01, error=error, sent=None if end == "cancel" else max(0.0, now - 9 * (end == "late")))
            after, measured = rate._governor.rate, rate._governor.measured(now + 0.01)
            if after > before:
                assert after <= 2 * measured + 1e-9
                assert after <= before * 1.1 ** ((now + 0.01 - at) / 10) + 1e-9
            elif after < before:
                assert after <= max(0.5, 0.7 * measured) + 1e-9
            if after != before:
                before, at = after, now + 0.01
            at = max(at, now + 0.01 - 10)
        now += 0.01


def test_a_rate_that_is_not_used_stays_as_it_is() -> None:
    rate = Rate()
    send(rate, 400, 0.0, 4.0)
    refuse(rate, 4.0)
    known = learned(rate)
    send(rate, 10, 100.0, 110.0)
    assert learned(rate) == known


def drive(
    rate: Rate, provider: Bucket, seconds: float, *, tell: bool = False, latency: float = 2.0, slots: int = 200
) -> tuple[int, int]:
    """Always one more call to send, against a bucket that refuses: calls answered, calls refused after a minute."""
    ends: list[tuple[float, int, float, RateLimited | None]] = []
    order, now, ok, refused = count(), 0.0, 0, 0
    while now < seconds:
        if len(ends) < slots and rate.wait(now, ONE) == 0:
            rate.take(now, ONE)
            error = no(after=provider.wait(1, now) if tell else None) if provider.wait(1, now) > 1e-6 else None
            if error is None:
                provider.take(1, now)
            heapq.heappush(ends, (now + (0.05 if error else latency), next(order), now, error))
            continue
        wait = rate.wait(now, ONE) if len(ends) < slots else math.inf
        if ends and ends[0][0] <= now + wait:
            now, _, sent, error = heapq.heappop(ends)
            ok, refused = ok + (error is None), refused + (error is not None and now > 60)
            settle(rate, now, error=error, sent=sent)
        else:
            now += wait
    return ok, refused


@pytest.mark.parametrize("tell", [False, True])
@pytest.mark.parametrize(("rpm", "burst"), [(720, 60), (720, 10), (60, 60)])
def test_an_unknown_limit_is_used_and_seldom_passed(rpm: float, burst: float, tell: bool) -> None:
    ok, refused = drive(Rate(), Bucket(rpm, burst=burst), 900, tell=tell)
    assert ok >= 0.85 * rpm * 15
    assert refused <= 0.07 * ok


def test_a_known_limit_is_used_in_full_and_never_passed() -> None:
    ok, refused = drive(Rate(rpm=720), Bucket(720, burst=10), 600)
    assert ok >= 0.97 * 720 * 10
    assert refused == 0


# What is told, and what there is to see


def listened(**limits: Any) -> tuple[Rate, list[Any]]:
    rate, told = Rate(**limits), list[Any]()
    rate.watch(lambda: None, told.append)
    return rate, told


def test_a_pause_is_told_when_it_begins_and_when_it_gets_longer_and_never_else() -> None:
    rate, told = listened(rpm=600)
    for now, after in ((0.0, 9.0), (1.0, 5.0), (1.0, 8.0), (2.0, 10.0), (50.0, 0.5)):
        refuse(rate, now, after=after)
    assert told == [
        Pause(0.0, 9.0, ("requests",), "the provider asked to wait 9 s"),
        Pause(2.0, 12.0, ("requests",), "the provider asked to wait 10 s"),
        Pause(50.0, 50.5, ("requests",), "the provider asked to wait 0.5 s"),
    ]


def test_a_pause_names_the_dimensions_that_it_makes_wait_longer() -> None:
    rate, told = listened(rpm=600, tpm=1e6, input_tpm=1e6, output_tpm=1e6)
    for now, words, after in ((0.0, "output tokens per minute", 9), (1.0, "slow down", 8), (2.0, "slow down", 8)):
        rate.take(now, CALL)
        settle(rate, now, CALL, error=no(words, after=after), sent=now)
    assert [(pause.until, pause.dimensions) for pause in told] == [
        (9.0, ("output_tokens",)),
        (9.0, ("input_tokens", "requests", "total_tokens")),
        (10.0, ("input_tokens", "output_tokens", "requests", "total_tokens")),
    ]


@given(
    st.lists(
        st.tuples(
            st.floats(0, 5), st.floats(0, 60), st.sampled_from(["requests per minute", "tokens", "input tokens"])
        ),
        max_size=20,
    )
)
def test_who_hears_of_each_pause_knows_until_when_each_dimension_is_held(
    refusals: list[tuple[float, float, str]],
) -> None:
    rate, told = listened(**EVERY)
    now, known = 0.0, dict[str, float]()
    for dt, after, words in refusals:
        now += dt
        rate.take(now, CALL)
        settle(rate, now, CALL, error=no(words, after=after), sent=now)
        for pause in (each for each in told if isinstance(each, Pause)):
            assert pause.at == now
            assert all(pause.until > known.get(name, -math.inf) for name in pause.dimensions)
            known |= dict.fromkeys(pause.dimensions, pause.until)
        told.clear()
        assert all(paused(rate, name) == known.get(name, -math.inf) for name in rate.snapshot(now))


def test_each_cut_is_told_once_a_wave_and_says_why() -> None:
    rate, told = listened()
    send(rate, 40, 0.0, 4.0)
    for _ in range(5):
        rate.take(4.0, ONE)
    for i in range(5):
        settle(rate, 4.1 + i / 100, error=no(), sent=4.0)
    first = learned(rate) * 60
    assert told == [Learned(4.1, first, f"a 429 that no known limit explains: 0.7 of {first / 0.7:.0f} a minute")]
    refuse(rate, 9.0)
    assert [(each.at, each.rpm) for each in told[1:]] == [(9.0, learned(rate) * 60)]


def test_a_slower_start_asked_for_is_told_as_such_though_a_limit_is_known() -> None:
    rate, told = listened(rpm=600)
    send(rate, 40, 0.0, 4.0)
    refuse(rate, 4.0, code="slow_down", after=2)
    assert [type(each) for each in told] == [Pause, Learned]
    assert told[1].reason.startswith("the provider asks for a slower start: 0.7 of ")


def test_a_429_that_teaches_nothing_and_names_no_wait_is_not_told() -> None:
    rate, told = listened(stray=0.5)
    send(rate, 40, 0.0, 4.0)
    refuse(rate, 4.0)
    settle(rate, 4.0, error=Overloaded("busy", retry_after=9), sent=4.0)
    assert told == []


def test_a_rate_that_rises_is_told_in_steps_of_a_fifth() -> None:
    rate, told = listened()
    drive(rate, Bucket(720, burst=10), 900)
    assert all(each.at < later.at for each, later in pairwise(told))
    cuts = [each for each in told if "429 that no known limit" in each.reason]
    rises = [(each, later) for each, later in pairwise(told) if later not in cuts]
    assert len(cuts) > 1
    assert len(rises) > 1
    assert all(1.2 <= later.rpm / each.rpm < 1.3 for each, later in rises)
    assert all(later.reason == "no more 429s: more is tried" for _, later in rises)
    assert learned(rate) * 60 < 1.2 * told[-1].rpm


def test_limits_set_by_hand_are_nothing_that_was_learned() -> None:
    rate, told = listened()
    refuse(rate, 0.0)
    rate.set_limits(1.0, {"rpm": 6000})
    send(rate, 10, 1.0, 9.0)
    assert len(told) == 1
    rate.set_limits(9.0, {"rpm": None})
    send(rate, 400, 9.0, 13.0)
    refuse(rate, 13.0)
    assert [each.at for each in told] == [0.0, 13.0]
    assert told[1].rpm > 2 * told[0].rpm


def test_who_listens_finds_the_state_complete_and_may_change_it() -> None:
    rate = Rate()
    heard: list[tuple[type, float | None, bool]] = []

    def listen(what: object) -> None:
        heard.append((type(what), rate.learned_rpm, rate.wait(0.0, ONE) == 9))
        rate.set_limits(0.0, {"rpm": 60})

    rate.watch(lambda: None, listen)
    refuse(rate, 0.0, after=9)
    assert heard == [(Pause, 30.0, True), (Learned, None, True)]
    assert (rate.rpm, rate.learned_rpm) == (60, None)


def test_the_gauge_shows_limits_in_force_with_their_levels() -> None:
    rate = Rate(rpm=600, usd_per_day=86_400)
    assert rate.gauge(0.0) == {"requests_limit": 600, "requests_level": 50, "usd_limit": 86_400, "usd_level": 7200}
    for _ in range(60):
        rate.take(0.0, CALL)
    settle(rate, 0.0, CALL, levels={"input_tokens": (6000, 500, 60)})
    seen = rate.gauge(0.0)
    assert set(seen) == {
        f"{name}_{what}" for name in ("requests", "usd", "input_tokens") for what in ("limit", "level")
    }
    assert seen["requests_level"] == pytest.approx(-10)
    assert seen["input_tokens_limit"] == 6000
    assert seen["input_tokens_level"] == level(rate, "input_tokens")
    assert rate.gauge(0.5)["requests_level"] == pytest.approx(-5)


def test_the_gauge_shows_what_was_learned_and_the_rest_of_the_latest_pause() -> None:
    rate = Rate()
    assert rate.gauge(0.0) == {}
    refuse(rate, 0.0)
    assert rate.gauge(0.0) == {"learned_rpm": 30.0}
    for words, after in (("input tokens", 9), ("output tokens", 4)):
        rate.take(0.0, CALL)
        settle(rate, 0.0, CALL, error=no(words, after=after), sent=0.0)
    assert rate.gauge(2.0) == {"learned_rpm": 30.0, "paused_s": 7.0}
    assert rate.gauge(9.0) == {"learned_rpm": 30.0}


def test_a_wait_for_a_rate_means_a_rate_limit() -> None:
    assert Rate().binds == Rate.binds == "rate limit"


# Settings


def test_new_limits_hold_at_once_and_are_told_to_who_watches_after_they_do() -> None:
    rate = Rate(rpm=60)
    seen: list[float] = []
    rate.watch(lambda: seen.append(rate.wait(0.0, ONE)), lambda _: None)
    for _ in range(6):
        rate.take(0.0, ONE)
    assert rate.wait(0.0, ONE) == pytest.approx(2)
    rate.set_limits(0.0, {"rpm": 600})
    assert seen == [0.0]
    assert rate.rpm == 600
    assert level(rate, "requests") == pytest.approx(50 - 6)


def test_what_is_owed_stays_owed_under_new_limits() -> None:
    rate = Rate(tpm=6000)
    rate.take(10.0, {"total_tokens": 2000.0})
    rate.set_limits(20.0, {"tpm": 600})
    assert level(rate, "total_tokens", 20.0) == pytest.approx(50 - 1000)


def test_a_limit_lifted_is_no_limit_and_the_others_stay() -> None:
    rate = Rate(rpm=60, tpm=600)
    rate.take(0.0, {"requests": 100.0, "total_tokens": 1.0})
    rate.set_limits(0.0, {"rpm": None})
    assert rate.wait(0.0, {"requests": 100.0}) == 0
    assert (rate.rpm, rate.tpm) == (None, 600)
    assert rate.wait(0.0, {"total_tokens": 60.0}) > 0


def test_new_limits_make_what_was_learned_void() -> None:
    rate = Rate()
    refuse(rate, 0.0)
    assert rate.wait(0.0, ONE) > 0
    rate.set_limits(0.0, {"rpm": 6000})
    assert rate.learned_rpm is None
    assert rate.wait(0.0, ONE) == 0


@pytest.mark.parametrize("value", [0, -1, math.inf, math.nan, True, "5"])
@pytest.mark.parametrize("name", [*DIMENSIONS, "burst"])
def test_a_senseless_limit_is_refused_and_changes_nothing(name: str, value: Any) -> None:
    with pytest.raises((TypeError, ValueError), match=f"Rate: {name} must be a"):
        Rate(**{name: value})
    rate = Rate(rpm=60)
    if name != "burst":
        with pytest.raises((TypeError, ValueError), match=f"Rate: {name} must be a"):
            rate.set_limits(0.0, {"rpm": 5, name: value} if name != "rpm" else {"tpm": 5, "rpm": value})
        assert rate == Rate(rpm=60)
        assert rate.snapshot(0.0)["requests"].limit == 60


def test_a_burst_above_a_minute_and_an_unknown_limit_are_refused() -> None:
    with pytest.raises(ValueError, match="at most 60 seconds"):
        Rate(burst=61)
    with pytest.raises(TypeError, match=r"a limit is one of rpm, tpm, .* not 'tmp'"):
        Rate().set_limits(0.0, {"tmp": 5})


@pytest.mark.parametrize("stray", [-0.1, 1, math.nan])
def test_a_share_of_strays_that_is_none_is_refused(stray: float) -> None:
    with pytest.raises(ValueError, match="stray must be at least 0 and below 1, not"):
        Rate(stray=stray)


def test_a_copy_has_the_settings_and_none_of_the_state() -> None:
    rate, told = Rate(rpm=60, burst=10), []
    rate.watch(lambda: told.append(1), lambda _: None)
    for _ in range(20):
        refuse(rate, 0.0, after=50)
    rate.set_limits(0.0, {"tpm": 6000})
    copy = replace(rate)
    assert copy == rate == Rate(rpm=60, tpm=6000, burst=10)
    assert copy.wait(0.0, CALL) == 0
    assert copy.learned_rpm is None
    copy.set_limits(0.0, {"rpm": 5})
    assert (rate.rpm, told) == (60, [1])
