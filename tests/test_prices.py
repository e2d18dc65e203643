from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmlab.prices import Price, read_prices
from llmlab.types import Usage

PRICE = Price(input=2.0, output=8.0, cached=0.5, cache_write=2.5)

dollars = st.floats(0, 1000)
count = st.integers(0, 10**7)


@st.composite
def usages(draw: Any) -> Usage:
    """Usages as the codecs make them: cached and written tokens are part of the input."""
    fresh, cached, written, output = (draw(count) for _ in range(4))
    return Usage(fresh + cached + written, output, cached, written, draw(st.integers(0, output)))


@pytest.mark.parametrize(
    ("usage", "cost"),
    [
        (Usage(1_000_000, 0), 2.0),
        (Usage(0, 1_000_000), 8.0),
        (Usage(1_000_000, 0, cached_tokens=1_000_000), 0.5),
        (Usage(1_000_000, 0, cache_write_tokens=1_000_000), 2.5),
        (
            Usage(1_000_000, 0, cached_tokens=400_000, cache_write_tokens=100_000),
            0.5 * 2 + 0.4 * 0.5 + 0.1 * 2.5,
        ),
        (Usage(0, 1_000_000, reasoning_tokens=900_000), 8.0),
        (Usage(1000, 500), 0.006),
        (Usage(), 0.0),
    ],
)
def test_a_price_is_per_million_tokens_of_each_kind(usage: Usage, cost: float) -> None:
    assert PRICE.cost(usage) == pytest.approx(cost)


@given(usages(), dollars, dollars)
def test_cached_tokens_without_a_price_of_their_own_cost_what_input_costs(usage: Usage, inp: float, out: float) -> None:
    plain = Usage(usage.input_tokens, usage.output_tokens)
    assert Price(inp, out).cost(usage) == pytest.approx(Price(inp, out).cost(plain), rel=1e-9, abs=1e-12)


@given(usages())
def test_a_cached_token_may_be_free(usage: Usage) -> None:
    dear = usage.input_tokens - usage.cached_tokens
    assert Price(1.0, 0.0, cached=0.0).cost(usage) == pytest.approx(dear / 1e6, rel=1e-9, abs=1e-12)


@given(usages(), usages(), st.builds(Price, dollars, dollars, st.none() | dollars, st.none() | dollars))
def test_the_cost_of_two_answers_is_the_sum_of_their_costs(one: Usage, two: Usage, price: Price) -> None:
    assert price.cost(one + two) == pytest.approx(price.cost(one) + price.cost(two), rel=1e-9, abs=1e-9)


@given(usages(), st.builds(Price, dollars, dollars, st.none() | dollars, st.none() | dollars))
def test_no_answer_costs_less_than_nothing(usage: Usage, price: Price) -> None:
    assert price.cost(usage) >= 0


@pytest.mark.parametrize("field", ["input", "output", "cached", "cache_write"])
@pytest.mark.parametrize(
    ("value", "error"),
    [
        (-0.01, ValueError),
        (float("nan"), ValueError),
        (float("inf"), ValueError),
        ("2", TypeError),
        (True, TypeError),
    ],
)
def test_a_senseless_price_is_refused_by_name(field: str, value: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match=f"Price: {field} must be"):
        Price(**{"input": 1.0, "output": 1.0, field: value})


@pytest.mark.parametrize("field", ["input", "output"])
def test_input_and_output_must_have_a_price(field: str) -> None:
    with pytest.raises(TypeError, match=f"Price: {field} must be"):
        Price(**{"input": 1.0, "output": 1.0, field: None})  # type: ignore[arg-type]


def test_a_table_takes_prices_and_tuples() -> None:
    table = read_prices({"a": PRICE, "b": (2, 8), "c": (2, 8, 0.5), "d": (2, 8, 0.5, 2.5), "e": [1.0, 2.0]})  # type: ignore[dict-item]
    assert table["a"] is PRICE
    assert table["b"] == Price(2, 8)
    assert table["c"] == Price(2, 8, cached=0.5)
    assert table["d"] == PRICE
    assert table["e"] == Price(1, 2)


@pytest.mark.parametrize("nothing", [None, {}])
def test_no_table_is_an_empty_table(nothing: Any) -> None:
    assert read_prices(nothing) == {}


@pytest.mark.parametrize("entry", [2.0, "2,8", (2,), (1, 2, 3, 4, 5), None, {"input": 2}], ids=repr)
def test_an_entry_of_another_shape_is_refused_with_its_model(entry: Any) -> None:
    with pytest.raises(TypeError, match=r"prices\['gpt'\] must be \(input, output\[, cached\[, cache_write\]\]\)"):
        read_prices({"gpt": entry})


def test_a_senseless_number_in_an_entry_is_refused_with_its_model() -> None:
    with pytest.raises(ValueError, match=r"prices\['gpt'\]: Price: output must be a finite number"):
        read_prices({"gpt": (1, -2)})
    with pytest.raises(TypeError, match=r"prices\['gpt'\]: Price: input must be a number"):
        read_prices({"gpt": ("1", 2)})  # type: ignore[dict-item]


def test_a_table_of_another_kind_is_refused() -> None:
    with pytest.raises(TypeError, match=r"prices must be a mapping of model -> .*, not list"):
        read_prices([("gpt", 1, 2)])  # type: ignore[arg-type]
