import random
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmlab.errors import BadPayload, BadRequest, RateLimited, ServerError
from llmlab.events import Retrying
from llmlab.policies.retry import Growth, Jitter, Retry

GROWTHS: list[Growth] = ["exponential", "linear", "constant"]
JITTERS: list[Jitter] = ["full", "equal", "decorrelated", "none"]


def test_an_error_that_may_pass_is_tried_again(virtual, make_call, script) -> None:
    endpoint = script(ServerError("boom"), ServerError("boom"), None)
    call = make_call()
    reply = virtual(lambda: Retry()(call, endpoint))
    assert reply.content == "answer"
    assert call.attempts == 3


def test_an_error_that_stays_is_let_through_at_once(virtual, make_call, script) -> None:
    error = BadRequest("no")
    endpoint = script(error)
    with pytest.raises(BadRequest) as raised:
        virtual(lambda: Retry()(make_call(), endpoint))
    assert raised.value is error
    assert len(endpoint.at) == 1


def test_the_last_error_comes_out_when_the_attempts_are_spent(virtual, make_call, script) -> None:
    endpoint = script(*[ServerError(str(n)) for n in range(9)])
    with pytest.raises(ServerError, match="3"):
        virtual(lambda: Retry(attempts=4)(make_call(), endpoint))
    assert len(endpoint.at) == 4


def test_one_attempt_means_no_retry(virtual, make_call, script) -> None:
    endpoint = script(ServerError("boom"))
    with pytest.raises(ServerError):
        virtual(lambda: Retry(attempts=1)(make_call(), endpoint))
    assert len(endpoint.at) == 1


def test_429s_do_not_spend_the_allowance_for_failures(virtual, make_call, script) -> None:
    endpoint = script(*[RateLimited("slow")] * 7, ServerError("boom"), None)
    virtual(lambda: Retry(attempts=2, throttled=7)(make_call(), endpoint))
    assert len(endpoint.at) == 9


def test_429s_have_an_allowance_of_their_own(virtual, make_call, script) -> None:
    endpoint = script(*[RateLimited("slow")] * 9)
    with pytest.raises(RateLimited):
        virtual(lambda: Retry(throttled=3)(make_call(), endpoint))
    assert len(endpoint.at) == 4


def test_a_kind_with_an_own_bound_is_retried_no_more_than_that(virtual, make_call, script) -> None:
    error = BadPayload("html")
    error.judge(retries=2)
    endpoint = script(*[error] * 5)
    with pytest.raises(BadPayload):
        virtual(lambda: Retry(attempts=6)(make_call(), endpoint))
    assert len(endpoint.at) == 3


def test_a_failed_probe_spends_no_attempt_of_its_row(virtual, make_call, script) -> None:
    endpoint = script(*[ServerError("boom")] * 9, None)
    assert virtual(lambda: Retry(attempts=2)(make_call(probe=True), endpoint)).content == "answer"


def test_retry_after_is_a_minimum_with_up_to_a_quarter_on_top(virtual, make_call, script) -> None:
    waits = []
    for seed in range(50):
        endpoint = script(RateLimited("slow", retry_after=10.0), None)
        call = make_call(seed)
        virtual(lambda call=call, endpoint=endpoint: Retry()(call, endpoint))
        waits.append(endpoint.at[1] - endpoint.at[0])
    assert min(waits) >= 10.0
    assert max(waits) <= 12.5 + 0.001
    assert max(waits) - min(waits) > 1.5, "rows told the same must not return together"


def test_a_wait_longer_than_allowed_ends_the_row_and_says_so(virtual, make_call, script) -> None:
    endpoint = script(RateLimited("slow", retry_after=900.0))
    with pytest.raises(RateLimited, match="900 s, longer than Retry's max_retry_after of 600 s"):
        virtual(lambda: Retry()(make_call(), endpoint))
    assert len(endpoint.at) == 1


def test_no_attempt_starts_past_the_rows_deadline(virtual, make_call, script) -> None:
    endpoint = script(RateLimited("slow", retry_after=10.0), None)
    with pytest.raises(RateLimited):
        virtual(lambda: Retry()(make_call(deadline=5.0), endpoint))
    assert len(endpoint.at) == 1


def test_its_own_deadline_counts_from_the_first_attempt(virtual, make_call, script) -> None:
    endpoint = script(*[ServerError("boom")] * 20)
    policy = Retry(attempts=20, growth="constant", jitter="none", base=1.0, deadline=4.5)
    with pytest.raises(ServerError):
        virtual(lambda: policy(make_call(), endpoint))
    assert len(endpoint.at) == 5


def test_text_already_shown_forbids_a_retry(virtual, make_call, script) -> None:
    endpoint = script(ServerError("boom"))
    with pytest.raises(ServerError):
        virtual(lambda: Retry()(make_call(committed=True), endpoint))
    assert len(endpoint.at) == 1


def test_each_retry_is_an_event_and_its_wait_is_on_the_rows_account(virtual, make_call, script, emitted) -> None:
    call = make_call()
    policy = Retry(growth="constant", jitter="none", base=2.0)
    virtual(lambda: policy(call, script(ServerError("boom"), ServerError("boom"), None)))
    events = [event for event in emitted(call) if isinstance(event, Retrying)]
    assert [(event.attempt, event.delay) for event in events] == [(1, 2.0), (2, 2.0)]
    assert call.wait_s == pytest.approx(4.0, abs=1e-3)


@pytest.mark.parametrize(
    ("growth", "expected"),
    [("constant", [1, 1, 1, 1, 1]), ("linear", [1, 2, 3, 4, 5]), ("exponential", [1, 2, 4, 8, 10])],
)
def test_growth_without_jitter_follows_its_formula(growth: Growth, expected: list[float]) -> None:
    policy = Retry(growth=growth, jitter="none", base=1.0, cap=10.0)
    assert [policy.seconds(n, 0.0, random.Random(0)) for n in range(1, 6)] == expected


@given(
    st.sampled_from(GROWTHS),
    st.sampled_from(JITTERS),
    st.integers(1, 200),
    st.floats(0.01, 10),
    st.floats(10, 100),
    st.floats(0, 100),
    st.integers(0, 2**32),
)
def test_no_delay_is_negative_or_above_the_cap(
    growth: Growth, jitter: Jitter, n: int, base: float, cap: float, previous: float, seed: int
) -> None:
    policy = Retry(growth=growth, jitter=jitter, base=base, cap=cap)
    assert 0 <= policy.seconds(n, previous, random.Random(seed)) <= cap


@given(st.integers(1, 8), st.integers(0, 2**32))
def test_jitters_keep_to_their_ranges(n: int, seed: int) -> None:
    rng = random.Random(seed)
    widest = min(60.0, 0.5 * 2**n)
    assert 0 <= Retry(jitter="full").seconds(n, 0, rng) <= widest
    assert widest / 2 <= Retry(jitter="equal").seconds(n, 0, rng) <= widest
    assert 0.5 <= Retry(jitter="decorrelated").seconds(n, 4.0, rng) <= 12.0


def test_full_jitter_waits_the_plain_delay_on_average() -> None:
    rng = random.Random(1)
    mean = sum(Retry(jitter="full").seconds(3, 0, rng) for _ in range(20_000)) / 20_000
    assert mean == pytest.approx(2.0, rel=0.03)


@pytest.mark.parametrize(
    ("field", "value"),
    [("attempts", 0), ("attempts", 2.5), ("attempts", True), ("throttled", -1), ("growth", "cubic"), ("jitter", "some"),
     ("base", 0), ("cap", -1), ("max_retry_after", float("inf")), ("deadline", float("nan"))],
)  # fmt: skip
def test_a_senseless_setting_is_refused_by_name(field: str, value: object) -> None:
    with pytest.raises(ValueError, match=field):
        Retry(**{field: value})  # type: ignore[arg-type]


# -- the formulas of other clients ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "n", "low", "high"),
    [
        ("openai", 1, 0.375, 0.5),
        ("openai", 3, 1.5, 2.0),
        ("openai", 50, 6.0, 8.0),
        ("stamina", 1, 0.1, 1.1),
        ("stamina", 4, 0.8, 1.8),
        ("stamina", 500, 5.0, 5.0),
        ("botocore", 1, 0.0, 1.0),
        ("botocore", 5, 0.0, 16.0),
        ("botocore", 5000, 0.0, 20.0),
    ],
)
def test_another_client_s_formula_stays_in_its_range_and_fills_it(name: str, n: int, low: float, high: float) -> None:
    rng = random.Random(1)
    drawn = [Retry(backoff=name, cap=0.001).seconds(n, 0.0, rng) for _ in range(500)]
    assert low <= min(drawn)
    assert max(drawn) <= high
    assert max(drawn) - min(drawn) >= 0.9 * (high - low)


def test_a_formula_of_one_s_own_is_told_which_retry_it_is_and_the_delay_before(virtual, make_call, script) -> None:
    asked: list[tuple[int, float]] = []

    def mine(n: int, previous: float, rng: random.Random) -> float:
        asked.append((n, previous))
        return 2.0 * n + 0 * rng.random()

    endpoint = script(*[ServerError("boom")] * 3, None)
    virtual(lambda: Retry(backoff=mine)(make_call(), endpoint))
    assert asked == [(1, 0.0), (2, 2.0), (3, 4.0)]
    assert [round(after - before) for before, after in pairwise(endpoint.at)] == [2, 4, 6]


def test_a_formula_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match="backoff must be one of openai, stamina, botocore, a function"):
        Retry(backoff="google")
    for wrong in (-1.0, float("nan"), float("inf"), None):
        with pytest.raises(ValueError, match="backoff must give a number of seconds"):
            Retry(backoff=lambda *_, wrong=wrong: wrong).seconds(1, 0.0, random.Random(0))
