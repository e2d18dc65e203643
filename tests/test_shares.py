import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmlab.prices import Price
from llmlab.shares import apportion, share_cost, share_usage
from llmlab.types import Usage

WEIGHTS = st.lists(st.floats(0, 1e6), min_size=1, max_size=30)


@given(st.integers(0, 10**9), WEIGHTS)
def test_shares_are_whole_add_up_and_are_within_one_of_what_is_fair(total: int, weights: list[float]) -> None:
    shares = apportion(total, weights)
    assert sum(shares) == total
    assert min(shares) >= 0
    if (whole := math.fsum(weights)) > 0:
        fair = [total * weight / whole for weight in weights]
        assert all(abs(share - each) < 1 + 1e-6 * total for share, each in zip(shares, fair, strict=True))


def test_without_weights_all_get_the_same() -> None:
    assert apportion(10, [0.0, 0.0, 0.0]) == [4, 3, 3]


@given(st.data(), WEIGHTS)
def test_no_row_has_more_of_a_part_than_of_the_whole(data: st.DataObject, weights: list[float]) -> None:
    read, written = data.draw(st.integers(0, 10**6)), data.draw(st.integers(0, 10**6))
    cached = data.draw(st.integers(0, read))
    usage = Usage(read, written, cached, data.draw(st.integers(0, read - cached)), data.draw(st.integers(0, written)))
    shares = share_usage(usage, weights, weights[::-1])
    whole = Usage()
    for each in shares:
        whole += each
        assert each.cached_tokens + each.cache_write_tokens <= each.input_tokens
        assert each.reasoning_tokens <= each.output_tokens
    assert whole == usage


@given(WEIGHTS, st.integers(1, 10**6), st.integers(1, 10**6))
def test_dollars_follow_the_price_and_add_up(weights: list[float], read: int, written: int) -> None:
    price, usage = Price(2.5, 10.0, 1.0), Usage(read, written, read // 3)
    shares = share_usage(usage, weights, weights)
    cost = price.cost(usage)
    dollars = share_cost(cost, shares, price)
    assert math.fsum(each or 0.0 for each in dollars) == pytest.approx(cost, rel=1e-12)
    for each, share in zip(dollars, shares, strict=True):
        assert each == pytest.approx(price.cost(share), rel=1e-6, abs=1e-12 * cost)  # the last has what is left


def test_a_cost_that_is_not_known_stays_so_and_one_without_a_price_goes_by_tokens() -> None:
    shares = [Usage(10, 0), Usage(20, 10)]
    assert share_cost(None, shares, None) == [None, None]
    assert share_cost(4.0, shares, None) == [1.0, 3.0]
    assert share_cost(3.0, [Usage(), Usage()], None) == [1.5, 1.5]
