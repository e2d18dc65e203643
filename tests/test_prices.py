import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, date, datetime, time
from decimal import Decimal
from typing import Any

import genai_prices
import pytest
from genai_prices.data_snapshot import DataSnapshot, set_custom_snapshot
from genai_prices.types import (
    ClauseEquals,
    ConditionalPrice,
    ModelInfo,
    ModelPrice,
    StartDateConstraint,
    Tier,
    TieredPrices,
    TimeOfDateConstraint,
)
from genai_prices.types import Provider as PriceList
from hypothesis import given
from hypothesis import strategies as st

from llmlab import pricelist, prices
from llmlab.pricelist import LISTS, SELF_HOSTED, PriceBook, list_price, to_price
from llmlab.prices import Price, read_prices
from llmlab.providers.presets import PRESETS
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


# -- long prompts, and the most that a request can cost ---------------------------------------------------

LONG = Price(1, 10, 0.1, 1.25, tiers=((200, Price(2, 15, 0.2, 2.5)), (500, Price(4, 20))))


@pytest.mark.parametrize(
    ("usage", "cost"),
    [
        (Usage(200, 10), 200 * 1 + 10 * 10),
        (Usage(201, 10), 201 * 2 + 10 * 15),
        (Usage(500, 0, cached_tokens=300, cache_write_tokens=100), 100 * 2 + 300 * 0.2 + 100 * 2.5),
        (Usage(501, 1, cached_tokens=501), 501 * 4 + 20),
    ],
)
def test_a_prompt_longer_than_a_tier_says_has_all_its_tokens_priced_by_that_tier(usage: Usage, cost: float) -> None:
    assert LONG.cost(usage) == pytest.approx(cost / 1e6)


@pytest.mark.parametrize(
    "tiers",
    [None, [(1, PRICE)], (1, PRICE), ((1,),), ((1.5, PRICE),), ((True, PRICE),), ((1, (2, 8)),)],
    ids=repr,
)
def test_tiers_of_another_shape_are_refused(tiers: Any) -> None:
    with pytest.raises(TypeError, match=r"Price: tiers must be a tuple of \(input tokens, Price\), not"):
        Price(1, 2, tiers=tiers)


@pytest.mark.parametrize("tiers", [((-1, PRICE),), ((5, PRICE), (5, PRICE)), ((5, PRICE), (4, PRICE)), ((1, LONG),)])
def test_tiers_must_rise_and_hold_no_tiers(tiers: Any) -> None:
    with pytest.raises(ValueError, match="Price: tiers must rise from at least 0"):
        Price(1, 2, tiers=tiers)


@pytest.mark.parametrize(
    ("price", "tokens", "most"),
    [
        (Price(2, 8), (100, 10), 280),
        (Price(2, 8, cached=0.5), (100, 10), 280),
        (Price(2, 8, cached=3), (100, 10), 380),
        (Price(2, 8, cache_write=2.5), (100, 10), 330),
        (Price(2, 8, cache_write=1.5), (100, 10), 280),
        (LONG, (200, 10), 200 * 1.25 + 100),
        (LONG, (200.5, 10), 200.5 * 2.5 + 150),
        (LONG, (501, 10), 501 * 4 + 200),
        (Price(2, 8, tiers=((100, Price(1, 1)),)), (101, 10), 282),
    ],
    ids=repr,
)
def test_most_takes_every_token_at_the_dearest_rate_that_it_can_have(
    price: Price, tokens: tuple[float, float], most: float
) -> None:
    assert price.most(*tokens) == pytest.approx(most / 1e6)


plain = st.builds(Price, dollars, dollars, st.none() | dollars, st.none() | dollars)
tiers = st.dictionaries(st.integers(0, 10**7), plain, max_size=3).map(
    lambda found: tuple((above, found[above]) for above in sorted(found))
)


@given(plain, tiers, usages(), count, count)
def test_no_request_costs_more_than_the_most_for_its_bounds(
    price: Price, tiers: Any, usage: Usage, more_input: int, more_output: int
) -> None:
    price = replace(price, tiers=tiers)
    most = price.most(usage.input_tokens + more_input, usage.output_tokens + more_output)
    assert price.cost(usage) <= most * (1 + 1e-9)


# -- the list of genai-prices -----------------------------------------------------------------------------

NOON = datetime(2026, 11, 23, 12, tzinfo=UTC)
LISTED = [(each, model) for each in genai_prices.data_snapshot.get_snapshot().providers for model in each.models]
CHAT = [
    (each, model)
    for each, model in LISTED
    if (price := model.get_prices(NOON)).input_mtok is not None and price.output_mtok is not None
]
CARRIED = [(each, model) for each, model in CHAT if to_price(model.get_prices(NOON))]
USAGES = [
    Usage(900, 0),
    Usage(600_000, 700),
    *(
        Usage(tokens, 700, tokens // 3, tokens // 2, 300)
        for tokens in (900, 32_001, 100_000, 128_001, 200_000, 200_001, 272_001, 600_000)
    ),
]


def judged(each: PriceList, model: ModelInfo, usage: Usage, at: datetime) -> float:
    """What the package itself asks for these tokens."""
    theirs = genai_prices.Usage(
        input_tokens=usage.input_tokens,
        output_tokens=usage.output_tokens,
        cache_read_tokens=usage.cached_tokens,
        cache_write_tokens=usage.cache_write_tokens,
        output_reasoning_tokens=usage.reasoning_tokens,
    )
    return float(model.calc_price(theirs, each, genai_request_timestamp=at).total_price)


@pytest.mark.parametrize("hour", [2, 12])
def test_every_chat_model_costs_what_the_package_says(hour: int) -> None:
    at = NOON.replace(hour=hour)
    wrong = [
        (each.id, model.id, usage)
        for each, model in CARRIED
        if (price := to_price(model.get_prices(at)))
        for usage in USAGES
        if price.cost(usage) != pytest.approx(judged(each, model, usage, at), rel=1e-9, abs=1e-15)
    ]
    assert wrong == []


@given(st.sampled_from(CARRIED), usages(), st.datetimes(datetime(2024, 1, 1), datetime(2028, 1, 1)))  # noqa: DTZ001
def test_a_chat_model_costs_at_any_time_what_the_package_says(
    listed: tuple[PriceList, ModelInfo], usage: Usage, at: datetime
) -> None:
    at = at.replace(tzinfo=UTC)
    price = to_price(listed[1].get_prices(at))
    assert price is None or price.cost(usage) == pytest.approx(judged(*listed, usage, at), rel=1e-9, abs=1e-15)


def test_nearly_all_chat_models_have_a_price() -> None:
    assert len(CARRIED) > 0.95 * len(CHAT) > 1_500


def test_the_well_known_are_found_by_the_names_that_users_write() -> None:
    assert list_price("gpt-4o", "openai", NOON) == Price(2.5, 10, cached=1.25)
    assert list_price("gpt-4o-2024-08-06", "openai", NOON) == Price(2.5, 10, cached=1.25)
    claude = Price(3, 15, 0.3, 3.75, tiers=((200_000, Price(6, 22.5, 0.6, 7.5)),))
    assert list_price("claude-sonnet-4-5", "anthropic", NOON) == claude
    assert list_price("no-such-model", "openai", NOON) is None


def test_every_preset_has_a_price_list_or_is_self_hosted() -> None:
    assert set(LISTS) == {name for name, preset in PRESETS.items() if preset.key_required}
    assert (PRESETS.keys() - LISTS.keys()) | {"sim"} == SELF_HOSTED
    for name, theirs in LISTS.items():
        models = [model.id for each, model in CARRIED if each.id == theirs]
        assert any(PriceBook(provider=name).get(model) for model in models), name


@pytest.fixture
def put_on_list() -> Iterator[Callable[..., None]]:
    """Replace the list by one that knows the model "m" of OpenAI."""

    def put(prices: ModelPrice | list[ConditionalPrice]) -> None:
        model = ModelInfo("m", ClauseEquals("m"), prices=prices)
        set_custom_snapshot(DataSnapshot([PriceList("openai", "OpenAI", "nowhere", models=[model])], False))  # noqa: FBT003

    yield put
    set_custom_snapshot(None)


def listed(**prices: str | tuple[str, int, str]) -> ModelPrice:
    """An entry by charge, "input_mtok" written as "input"; (base, N, price) is tiered above N input tokens."""
    entry: dict[str, Decimal | TieredPrices | None] = {}
    for name, value in prices.items():
        key = name if name.endswith(("_kcount", "_hours")) else f"{name}_mtok"
        if isinstance(value, str):
            entry[key] = Decimal(value)
        else:
            entry[key] = TieredPrices(Decimal(value[0]), [Tier(value[1], Decimal(value[2]))])
    return ModelPrice(**entry)


@pytest.mark.parametrize(
    "extra", ["requests_kcount", "output_reasoning", "output_image", "output_audio", "output_citation", "audio_hours"]
)
def test_a_model_with_a_charge_that_a_price_cannot_say_has_no_price(extra: str) -> None:
    assert to_price(listed(input="1", output="2")) == Price(1, 2)
    assert to_price(listed(input="1", output="2", **{extra: "3"})) is None


@pytest.mark.parametrize("extra", ["input_audio", "cache_write_1h", "web_searches_kcount"])
def test_charges_that_text_does_not_meet_are_left_out(extra: str) -> None:
    assert to_price(listed(input="1", output="2", **{extra: "3"})) == Price(1, 2)


@pytest.mark.parametrize("entry", [{}, {"input": "1"}, {"output": "1"}], ids=repr)
def test_a_model_without_figures_has_no_price_rather_than_none_to_pay(entry: Any) -> None:
    assert to_price(listed(**entry)) is None


def test_figures_with_tiers_of_their_own_are_put_together() -> None:
    price = to_price(listed(input=("1", 101, "2"), output=("5", 100, "7"), cache_read="0.5"))
    assert price == Price(1, 5, 0.5, tiers=((100, Price(1, 7, 0.5)), (101, Price(2, 7, 0.5))))


# -- the price book ---------------------------------------------------------------------------------------


def test_the_users_own_table_goes_before_the_list(put_on_list: Callable[..., None]) -> None:
    put_on_list(listed(input="5", output="6"))
    book = PriceBook({"m": (1, 2)}, provider="openai")
    assert book.get("m") == Price(1, 2)
    assert PriceBook({"other": (1, 2)}, provider="openai").get("m") == Price(5, 6)
    assert book.unknown == set()


@pytest.mark.parametrize("provider", [*sorted(SELF_HOSTED), None, "my-gateway"])
def test_nobodys_list_holds_for_a_provider_without_one(provider: str | None) -> None:
    book = PriceBook({"mine": (1, 2)}, provider=provider)
    assert book.get("gpt-4o") is None
    assert book.get("mine") == Price(1, 2)
    assert book.unknown == {"gpt-4o"}


def test_an_entry_that_the_package_finds_faulty_is_no_price(put_on_list: Callable[..., None]) -> None:
    put_on_list(listed(input="-1", output="2"))
    assert list_price("m", "openai", NOON) is None


def test_a_model_is_looked_up_once_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, datetime]] = []
    monkeypatch.setattr(pricelist, "list_price", lambda model, _, at: asked.append((model, at)))
    book = PriceBook(provider="openai")
    for now in (60.0, 61.0, 119.9, 120.0):
        monkeypatch.setattr(pricelist, "time", lambda now=now: now)
        assert book.get("m") is None
    assert asked == [("m", datetime.fromtimestamp(at, UTC)) for at in (60, 120)]


def test_a_price_changes_on_its_day_and_at_its_hour(
    put_on_list: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    put_on_list(
        [
            ConditionalPrice(None, prices=listed(input="1", output="1")),
            ConditionalPrice(StartDateConstraint(date(2026, 12, 1)), prices=listed(input="2", output="2")),
            ConditionalPrice(TimeOfDateConstraint(time(1), time(4)), prices=listed(input="9", output="9")),
        ]
    )
    book = PriceBook(provider="openai")

    def at(*moment: int) -> float | None:
        now = datetime(*moment, tzinfo=UTC).timestamp()  # type: ignore[misc,arg-type]
        monkeypatch.setattr(pricelist, "time", lambda: now)
        price = book.get("m")
        return None if price is None else price.input

    assert [at(2026, 11, 30, 23, 59, 59), at(2026, 12, 1), at(2026, 12, 1, 1), at(2026, 12, 1, 4)] == [1, 2, 9, 2]


def test_a_copy_of_a_book_is_fresh() -> None:
    book = PriceBook({"m": (1, 2)}, provider="openai")
    book.get("no-such-model")
    copy = replace(book)
    assert copy == book
    assert copy.unknown == set()
    assert copy.get("m") == Price(1, 2)


def test_a_book_of_senseless_prices_is_refused() -> None:
    with pytest.raises(TypeError, match=r"prices\['m'\] must be \(input, output"):
        PriceBook({"m": 5})  # type: ignore[dict-item]


def test_each_unknown_model_is_told_once_in_one_line() -> None:
    book = PriceBook({"mine": (1, 2)}, provider="openai")
    assert book.tell_unknown() is None
    for model in ("mine", "gpt-4o", "no\nsuch", "another"):
        book.get(model)
    assert book.tell_unknown() == (
        "no price is known for 'another', 'no\\nsuch', so its cost is missing: "
        "pass Lab(prices={'another': (input, output)}), dollars per million tokens"
    )
    assert book.tell_unknown() is None
    book.get("third")
    assert "for 'third'," in str(book.tell_unknown())


@pytest.mark.parametrize("provider", sorted(SELF_HOSTED))
def test_nothing_is_told_of_a_provider_that_bills_nobody(provider: str) -> None:
    book = PriceBook(provider=provider)
    book.get("no-such-model")
    assert book.tell_unknown() is None


def test_without_the_package_its_extra_is_named_where_it_would_help(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "genai_prices", None)
    book, gateway = PriceBook(provider="openai"), PriceBook(provider="my-gateway")
    assert book.get("gpt-4o") is gateway.get("gpt-4o") is None
    assert 'or pip install "llmlab[prices]"' in str(book.tell_unknown())
    assert "pip" not in str(gateway.tell_unknown())


ALONE = """
import sys, threading
met = []
sys.addaudithook(lambda event, _: met.append(event) if event.startswith(("socket.connect", "socket.get")) else None)
from llmlab.pricelist import PriceBook
book = PriceBook({"mine": (1, 2)}, provider="openai")
sim = PriceBook(provider="sim")
print(book.get("mine").input, sim.get("gpt-4o"), "genai_prices" in sys.modules)
print(book.get("gpt-4o").output > 0, "genai_prices" in sys.modules, met, threading.active_count())
"""


def test_the_list_is_imported_when_it_is_needed_and_nothing_goes_online() -> None:
    done = subprocess.run([sys.executable, "-c", ALONE], capture_output=True, text=True, check=True)  # noqa: S603
    assert done.stdout.splitlines() == ["1 None False", "True True [] 1"]


@pytest.mark.parametrize(
    ("amount", "words"),
    [(0, "$0.00"), (0.000037, "$0.000037"), (0.0012, "$0.0012"), (0.25, "$0.25"), (1, "$1.00"), (1234.5, "$1,234.50")],
)
def test_a_small_amount_is_not_said_to_be_nothing(amount: float, words: str) -> None:
    assert prices.dollars(amount) == words
