import asyncio
import io
import re
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator
from types import MappingProxyType
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmlab.errors import ServerError
from llmlab.frame import COLUMNS, OVERRIDES, Rows, read_rows, record, to_frame
from llmlab.types import Item, Message, Outcome, Prompt, Reply, Status, Usage

TALK = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hi"}]


def listed(rows: Rows) -> list[Any]:
    """The items of an input that is no asynchronous one."""
    assert isinstance(rows.items, Iterable)
    return list(rows.items)


def prompts(source: Any, **settings: Any) -> list[Prompt]:
    """The rows of an input, all of which must be readable."""
    items = listed(read_rows(source, **settings))
    assert all(isinstance(item, Prompt) for item in items), items
    return items


def texts(source: Any, **settings: Any) -> list[str]:
    return [prompt.text for prompt in prompts(source, **settings)]


def refused(source: Any, **settings: Any) -> str:
    """What is said of an input that is refused as a whole."""
    with pytest.raises((TypeError, ValueError)) as raised:
        read_rows(source, **settings)
    assert type(raised.value) in (TypeError, ValueError)
    return f"{type(raised.value).__name__}: {raised.value}"


# -- Series -----------------------------------------------------------------------------------------------

INDEXES = [
    pd.RangeIndex(10, 13),
    pd.Index(["a", "b", "c"], name="id"),
    pd.Index(["a", "a", "b"]),
    pd.Index([1.5, np.nan, np.nan]),
    pd.MultiIndex.from_tuples([("a", 1), ("a", 1), ("b", 2)], names=["group", "n"]),
    pd.CategoricalIndex(["x", "y", "x"]),
    pd.date_range("2024-02-28", periods=3, tz="Europe/Berlin"),
    pd.Index([True, False, True]),
    pd.Index([None, "b", 3], dtype=object),
]


@pytest.mark.parametrize("index", INDEXES, ids=lambda index: type(index).__name__)
def test_a_series_gives_its_rows_and_its_index(index: pd.Index) -> None:
    rows = read_rows(pd.Series(["x", "y", "z"], index=index))
    assert rows.total == 3
    assert rows.index is not None
    pd.testing.assert_index_equal(rows.index, index)
    assert [item.text for item in listed(rows)] == ["x", "y", "z"]


@pytest.mark.parametrize("index", INDEXES, ids=lambda index: type(index).__name__)
@pytest.mark.parametrize("positions", [[0, 1, 2], [0, 2], [1], []])
def test_the_frame_of_the_settled_rows_has_their_labels(index: pd.Index, positions: list[int]) -> None:
    rows = read_rows(pd.Series(["x", "y", "z"], index=index))
    out = rows.frame({position: record(answered(position, f"to {position}")) for position in positions})
    pd.testing.assert_index_equal(out.index, index.take(positions), exact="equiv")
    assert out.content.tolist() == [f"to {position}" for position in positions]


@pytest.mark.parametrize("dtype", [object, "string", "str", "category", pd.StringDtype("python"), "string[pyarrow]"])
def test_a_series_may_hold_texts_in_any_dtype(dtype: Any) -> None:
    assert texts(pd.Series(["x", "ä", ""], dtype=dtype)) == ["x", "ä", ""]


@pytest.mark.parametrize("dtype", [object, "string", "category", pd.StringDtype("python"), "string[pyarrow]"])
def test_a_gap_in_a_series_is_refused_with_its_label(dtype: Any) -> None:
    said = refused(pd.Series(["x", None], index=["first", "second"], dtype=dtype))
    assert said == "ValueError: row 'second': a prompt is missing (None or NaN): drop or fill it first"


@pytest.mark.parametrize("empty", [pd.Series([], dtype="str"), pd.Series([], dtype=object), pd.Series(dtype=float), []])
def test_no_rows_are_no_rows(empty: Any) -> None:
    rows = read_rows(empty)
    assert rows.total == 0
    assert listed(rows) == []
    assert rows.frame({}).shape == (0, len(COLUMNS))


def test_a_series_may_hold_conversations_and_prompts() -> None:
    made = Prompt.of("made", temperature=0.5)
    first, second, third = prompts(pd.Series([TALK, "text", made]))
    assert [message.role for message in first.messages] == ["system", "user"]
    assert second.text == "text"
    assert third is made


@pytest.mark.parametrize("value", [5, 1.5, pd.Timestamp("2024-01-01"), b"x", {"a"}, ["hi"]])
def test_a_value_that_is_no_prompt_is_refused_with_its_label(value: Any) -> None:
    said = refused(pd.Series(["x", value], index=[("a", 1), ("b", 2)], dtype=object))
    assert said.startswith("TypeError: row ('b', 2): a ")


# -- DataFrame --------------------------------------------------------------------------------------------


def reviews(**columns: Any) -> pd.DataFrame:
    return pd.DataFrame({"review": ["good", "bad"], "score": [5, 1], **columns}, index=["a", "b"])


def test_a_template_is_filled_in_from_each_row() -> None:
    rows = read_rows(reviews(), template="{score}: {review}")
    assert [item.text for item in listed(rows)] == ["5: good", "1: bad"]
    assert rows.index is not None
    assert rows.index.tolist() == ["a", "b"]
    assert rows.total == 2


@given(st.lists(st.tuples(st.text(), st.text()), min_size=1, max_size=10))
@settings(max_examples=50, deadline=None)
def test_any_text_survives_the_table(cells: list[tuple[str, str]]) -> None:
    table = pd.DataFrame({"a": pd.Series([a for a, _ in cells], dtype=object),
                          "b": pd.Series([b for _, b in cells], dtype=object)})  # fmt: skip
    assert texts(table, template="{b}|{a}") == [f"{b}|{a}" for a, b in cells]


def test_columns_may_have_blanks_numbers_and_tuples_for_names() -> None:
    table = pd.DataFrame([["x", "y", "z"]], columns=["customer review", 0, 2024])
    assert texts(table, template="{customer review} {0} {2024}") == ["x y z"]
    deep = pd.DataFrame([["x", "y"]], columns=pd.MultiIndex.from_tuples([("a", 1), ("b", 2)]))
    assert texts(deep, template="{('a', 1)}") == ["x"]


def test_without_a_template_the_column_prompt_is_taken() -> None:
    assert texts(reviews(prompt=["x", "y"])) == ["x", "y"]


def test_the_column_prompt_may_hold_conversations() -> None:
    (first, second) = prompts(reviews(prompt=[TALK, "plain"]))
    assert [message.role for message in first.messages] == ["system", "user"]
    assert second.text == "plain"


def test_braces_in_the_column_prompt_are_text() -> None:
    assert texts(reviews(prompt=["{score}", "}{"])) == ["{score}", "}{"]


def test_a_table_without_rows_still_has_its_template_checked() -> None:
    empty = reviews().iloc[:0]
    assert prompts(empty, template="{review}") == []
    assert "no column 'reviw'; did you mean 'review'?" in refused(empty, template="{reviw}")


def test_a_table_changed_afterwards_does_not_change_the_job() -> None:
    table = reviews()
    rows = read_rows(table, template="{review}")
    table["review"] = "changed"
    assert [item.text for item in listed(rows)] == ["good", "bad"]


@pytest.mark.parametrize(
    ("table", "settings", "says"),
    [
        (reviews(), {}, "ValueError: a DataFrame needs template='…{column}…' or a column 'prompt'; it has: 'review'"),
        (pd.DataFrame(), {}, "ValueError: a DataFrame needs template='…{column}…' or a column 'prompt'; it has: no c"),
        (reviews(), {"template": "{reviw}"}, "ValueError: template: no column 'reviw'; did you mean 'review'?"),
        (reviews(), {"template": "{xyz}"}, "ValueError: template: no column 'xyz'; there are: 'review', 'score'"),
        (reviews(), {"template": "{review.s}"}, "ValueError: template: no column 'review.s'; did you mean 'review'?"),
        (reviews(), {"template": "same"}, "ValueError: template 'same' uses no column, so every row would ask the s"),
        (reviews(), {"template": "{"}, "ValueError: template '{': "),
        (reviews(), {"template": 5}, "TypeError: template must be a str with column names in braces, not int"),
        (reviews(prompt=["x", None]), {}, "ValueError: row 'b': a prompt is missing (None or NaN): drop or fill it"),
        (reviews(prompt=["x", 5]), {}, "TypeError: row 'b': a prompt is a str or a list of messages, not int (5)"),
        (reviews(extra=["x", None]), {"template": "{extra}"},
         "ValueError: row 'b': template: column 'extra' is missing (None or NaN): drop or fill it first"),
        (reviews(extra=[1.5, np.nan]), {"template": "{extra:.1f}"},
         "ValueError: row 'b': template: column 'extra' is missing (None or NaN): drop or fill it first"),
        (reviews(), {"template": "{review:.1f}"}, "ValueError: row 'a': template: column 'review' with value 'good'"),
        (reviews(code=[65, 10**9]), {"template": "{code:c}"}, "ValueError: row 'b': template: column 'code' with v"),
    ],
)  # fmt: skip
def test_an_unusable_table_is_refused_by_row_and_column(table: pd.DataFrame, settings: Any, says: str) -> None:
    assert refused(table, **settings).startswith(says)


@pytest.mark.parametrize(
    ("names", "template", "twice"),
    [(["x", "x", "y"], "{x}", "x"), (["x", "y", "prompt", "prompt"], None, "prompt"), ([0, "0", "y"], "{0}", "0"),
     (["model", "x", "model"], "{x}", "model")],
)  # fmt: skip
def test_a_column_name_that_occurs_twice_is_refused_where_it_is_used(names: Any, template: Any, twice: str) -> None:
    table = pd.DataFrame([["v"] * len(names)], columns=names)
    said = refused(table, template=template)
    assert said == f"ValueError: the DataFrame has 2 columns named {twice!r}: rename all but one"


def test_a_column_name_that_occurs_twice_and_is_not_used_does_no_harm() -> None:
    table = pd.DataFrame([["v", "w", "x"]], columns=["twice", "twice", "once"])
    assert texts(table, template="{once}") == ["x"]
    table.columns = pd.Index(["model", "model", "once"])
    assert texts(table, template="{once}", overrides=()) == ["x"]


# -- a row's own parameters -------------------------------------------------------------------------------


def test_columns_set_a_rows_own_parameters() -> None:
    table = reviews(model=["m1", "m2"], temperature=[0.5, 1.5], max_tokens=[10, 20], system=["s1", "s2"])
    first, second = prompts(table, template="{review}")
    assert (first.model, first.temperature, first.max_tokens) == ("m1", 0.5, 10)
    assert (second.model, second.temperature, second.max_tokens) == ("m2", 1.5, 20)
    assert first.messages == (Message("system", "s1"), Message("user", "good"))
    assert second.messages == (Message("system", "s2"), Message("user", "bad"))


@pytest.mark.parametrize("gap", [None, np.nan, pd.NA])
def test_a_gap_means_the_default(gap: Any) -> None:
    table = reviews(model=["m1", gap], temperature=[0.5, gap], max_tokens=[10, gap], system=["s1", gap])
    defaults = {"model": "m", "temperature": 1.0, "max_tokens": 7, "system": "s"}
    first, second = prompts(table, template="{review}", **defaults)
    assert (first.model, first.temperature, first.max_tokens, first.messages[0].text) == ("m1", 0.5, 10, "s1")
    assert (second.model, second.temperature, second.max_tokens, second.messages[0].text) == ("m", 1.0, 7, "s")
    bare = prompts(table, template="{review}")[1]
    assert (bare.model, bare.temperature, bare.max_tokens, len(bare.messages)) == (None, None, None, 1)


@pytest.mark.parametrize(
    "column",
    [pd.array([50, None], dtype="Int64"), np.array([50.0, np.nan]), np.array([50, 60]),
     np.array([50, 60], dtype="uint8"), [50, None],
     [50.0, "x"], pd.array([50, None], dtype="Float64"), np.array([50.0, np.nan], dtype="float32"),
     np.array([np.int64(50), None], dtype=object), np.array([np.float32(50), None], dtype=object)],
    ids=repr,
)  # fmt: skip
def test_a_whole_number_stays_one_whatever_the_column_makes_of_it(column: Any) -> None:
    """A gap turns a column of whole numbers into floats: 50.0 is 50."""
    table = reviews(max_tokens=column).iloc[:1]
    (prompt,) = prompts(table, template="{review}")
    assert prompt.max_tokens == 50
    assert type(prompt.max_tokens) is int


def test_columns_that_the_template_uses_are_data() -> None:
    table = reviews(model=["T-Ford", "Beetle"], system=["brakes", "lights"], max_tokens=[10, 20])
    first, _ = prompts(table, template="The {model}'s {system}?", model="m")
    assert first.messages == (Message("user", "The T-Ford's brakes?"),)
    assert first.model == "m"
    assert first.max_tokens == 10


def test_data_columns_may_hold_what_no_parameter_could() -> None:
    assert texts(reviews(temperature=["hot", "cold"]), template="{temperature}") == ["hot", "cold"]


def test_overrides_can_be_switched_off() -> None:
    table = reviews(model=["T-Ford", 5], temperature=["hot", "cold"], max_tokens=[-1, None], system=[1, 2])
    first, _ = prompts(table, template="{review}", overrides=())
    assert first == Prompt.of("good")


@pytest.mark.parametrize("overrides", [("model",), ["model"], {"model"}, {"model": 1}.keys()])
def test_overrides_can_be_chosen(overrides: Any) -> None:
    table = reviews(model=["m1", "m2"], temperature=["hot", "cold"])
    first, _ = prompts(table, template="{review}", overrides=overrides)
    assert (first.model, first.temperature) == ("m1", None)


@pytest.mark.parametrize(
    ("column", "value", "says"),
    [
        ("temperature", "hot", "TypeError: row 'b': temperature must be a number, not str ('hot')"),
        ("temperature", 3.0, "ValueError: row 'b': temperature must be between 0 and 2, not 3"),
        ("temperature", True, "TypeError: row 'b': temperature must be a number, not bool"),
        ("max_tokens", 50.5, "TypeError: row 'b': max_tokens must be an int, not float (50.5)"),
        ("max_tokens", "50", "TypeError: row 'b': max_tokens must be an int, not str ('50')"),
        ("max_tokens", 0, "ValueError: row 'b': max_tokens must be at least 1, not 0"),
        ("max_tokens", float("inf"), "TypeError: row 'b': max_tokens must be an int, not float (inf)"),
        ("model", 5, "TypeError: row 'b': model must be a non-empty str, not int (5)"),
        ("model", "", "TypeError: row 'b': model must be a non-empty str, not str ('')"),
        ("system", 5, "TypeError: row 'b': system must be a str, not int (5)"),
    ],
)
def test_a_senseless_parameter_of_a_row_is_refused_by_row_and_column(column: str, value: Any, says: str) -> None:
    table = reviews(**{column: pd.Series([None, value], dtype=object, index=["a", "b"])})
    assert refused(table, template="{review}").startswith(says)


@pytest.mark.parametrize("source", [reviews(prompt=["x", "y"]), ["x"], pd.Series(["x"]), iter(["x"])], ids=type)
def test_an_override_that_no_row_can_have_is_refused_for_every_input(source: Any) -> None:
    said = refused(source, overrides=("modle",))
    assert said == "ValueError: overrides: a row cannot set 'modle'; did you mean 'model'?"


@pytest.mark.parametrize("overrides", ["model", None, 5])
def test_overrides_of_another_kind_are_refused(overrides: Any) -> None:
    said = refused(reviews(prompt=["x", "y"]), overrides=overrides)
    assert said == f"TypeError: overrides must be a collection of names, as ('model',) or (), not {overrides!r}"


# -- lists and other collections --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "source",
    [["x", "y"], ("x", "y"), np.array(["x", "y"]), np.array(["x", "y"], dtype=object), pd.Index(["x", "y"]),
     pd.array(["x", "y"], dtype="string"), {"x": 1, "y": 2}.keys(), {1: "x", 2: "y"}.values()],
    ids=lambda source: type(source).__name__,
)  # fmt: skip
def test_a_collection_is_read_in_its_order_and_counted_from_0(source: Any) -> None:
    rows = read_rows(source)
    assert (rows.index, rows.total) == (None, 2)
    assert [item.text for item in listed(rows)] == ["x", "y"]


def test_a_set_is_read_whole() -> None:
    assert sorted(texts({"x", "y"})) == ["x", "y"]
    assert sorted(texts(frozenset({"x", "y"}))) == ["x", "y"]


@pytest.mark.parametrize("source", [["x", None], ("x", np.nan), {1: "x", 2: None}.values(), np.array(["x", None])])
def test_what_has_a_length_is_checked_whole_before_anything_is_sent(source: Any) -> None:
    assert refused(source) == "ValueError: row 1: a prompt is missing (None or NaN): drop or fill it first"


def test_an_array_of_two_dimensions_is_refused_by_its_row() -> None:
    assert refused(np.array([["x", "y"]])).startswith("TypeError: row 0: a prompt is a str or a list of messages")


def test_a_list_of_conversations_is_read() -> None:
    first, second = prompts([TALK, [Message("user", "you?")]])
    assert [message.role for message in first.messages] == ["system", "user"]
    assert second.text == "you?"


def test_a_bad_message_of_a_conversation_is_refused_by_its_row() -> None:
    assert refused([TALK, [{"role": "robot", "content": "hi"}]]).startswith(
        "ValueError: row 1: a message's role is one of"
    )


@pytest.mark.parametrize(
    "source",
    [TALK, tuple(TALK), [Message("user", "hi")], [TALK[0], Message("user", "hi")], pd.Series(TALK), TALK[:1],
     [MappingProxyType(TALK[0])]],
    ids=repr,
)  # fmt: skip
def test_one_conversation_passed_by_mistake_is_refused_with_the_way_to_wrap_it(source: Any) -> None:
    said = refused(source)
    assert said.startswith("TypeError: each row is a single message, as if this were one conversation")
    assert "wrap it, [[{'role': …, 'content': …}, …]], or use lab.run(…)" in said


def test_one_message_among_prompts_is_refused_by_its_row() -> None:
    assert refused(["x", TALK[0]]).startswith("TypeError: row 1: a prompt is a str or a list of messages, not dict")


@pytest.mark.parametrize(
    ("one", "name"),
    [("hi", "str"), (b"hi", "bytes"), (bytearray(b"hi"), "bytearray"), ({"a": 1}, "dict"),
     (MappingProxyType({"a": 1}), "mappingproxy"), (Prompt.of("hi"), "Prompt"), (Message("user", "hi"), "Message")],
)  # fmt: skip
def test_one_thing_is_refused_with_the_verb_for_one(one: Any, name: str) -> None:
    assert refused(one) == f"TypeError: prompts must be many, not one {name}; for one use lab.run(…)"


@pytest.mark.parametrize("other", [None, 5, 1.5, object(), pd.NA, len])
def test_what_holds_no_rows_is_refused_with_what_would(other: Any) -> None:
    said = refused(other)
    assert said.startswith("TypeError: prompts must be a Series, DataFrame, list or iterable, not ")
    assert said.endswith(type(other).__name__)


# -- mappings with a template -----------------------------------------------------------------------------


def test_mappings_take_a_template() -> None:
    rows = [{"a": "x", "b": 1}, MappingProxyType({"b": 2, "a": "y"})]
    assert texts(rows, template="{a}{b}") == ["x1", "y2"]
    assert texts(pd.Series(rows), template="{a}{b}") == ["x1", "y2"]


def test_keys_of_mappings_may_be_numbers() -> None:
    assert texts([{0: "x"}], template="{0}") == ["x"]


def test_mappings_without_a_template_are_refused_with_the_remedy() -> None:
    assert refused([{"a": "x"}]) == "TypeError: rows that are mappings of columns need template='…{column}…'"


@pytest.mark.parametrize("source", [["x"], pd.Series(["x"]), [TALK], [Prompt.of("x")], [5]], ids=repr)
def test_a_template_for_rows_without_columns_is_refused_before_anything_is_sent(source: Any) -> None:
    assert re.match(r"TypeError: row 0: template= needs a DataFrame or mappings as rows, not \w+$",
                    refused(source, template="Classify: {review}"))  # fmt: skip


def test_a_mapping_that_lacks_a_column_is_refused_by_its_row() -> None:
    said = refused([{"review": "x"}, {"reviews": "x"}], template="{review}")
    assert said == "ValueError: row 1: template: no column 'review'; did you mean 'reviews'?"


def test_a_mapping_with_a_gap_is_refused_by_its_row() -> None:
    assert refused([{"a": None}], template="{a}").startswith("ValueError: row 0: template: column 'a' is missing")


# -- generators -------------------------------------------------------------------------------------------


def test_a_generator_is_taken_as_it_is_asked_for() -> None:
    taken: list[int] = []

    def source() -> Iterator[str]:
        for n in range(1000):
            taken.append(n)
            yield f"p{n}"

    rows = read_rows(source())
    assert (taken, rows.index, rows.total) == ([], None, None)
    items: Iterator[Item] = iter(rows.items)  # type: ignore[arg-type]
    assert [next(items).text for _ in range(3)] == ["p0", "p1", "p2"]  # type: ignore[union-attr]
    assert taken == [0, 1, 2]


def test_an_asynchronous_generator_is_taken_as_it_is_asked_for() -> None:
    taken: list[int] = []

    async def source() -> AsyncIterator[Any]:
        for n in range(1000):
            taken.append(n)
            yield f"p{n}" if n != 1 else None

    async def main() -> list[Any]:
        rows = read_rows(source())
        assert (taken, rows.index, rows.total) == ([], None, None)
        items = aiter(rows.items)  # type: ignore[arg-type]
        found = [await anext(items) for _ in range(3)]
        await items.aclose()  # type: ignore[attr-defined]
        return found

    first, second, third = asyncio.run(main())
    assert (first.text, third.text) == ("p0", "p2")
    assert isinstance(second, ValueError)
    assert taken == [0, 1, 2]


def test_an_asynchronous_generator_ends_where_it_ends() -> None:
    async def source() -> AsyncIterator[Any]:
        yield {"a": 1}
        yield {"a": 2}

    async def main() -> list[Any]:
        rows = read_rows(source(), template="{a}!")
        assert isinstance(rows.items, AsyncIterable)
        return [item async for item in rows.items]

    assert [item.text for item in asyncio.run(main())] == ["1!", "2!"]


def test_a_bad_row_of_a_generator_is_an_error_in_its_place() -> None:
    good, gap, number, message = listed(read_rows(iter(["x", None, 5, TALK[0]])))
    assert isinstance(good, Prompt)
    assert (type(gap), type(number), type(message)) == (ValueError, TypeError, TypeError)
    assert "missing" in str(gap)
    assert "not int (5)" in str(number)


def test_a_generator_of_mappings_takes_a_template() -> None:
    rows = read_rows(({"a": n if n != 1 else None} for n in range(3)), template="{a}!")
    first, second, third = listed(rows)
    assert (first.text, third.text) == ("0!", "2!")
    assert "column 'a' is missing" in str(second)


def test_a_generator_of_mappings_may_lack_a_column_now_and_then() -> None:
    first, second, third = listed(read_rows(iter([{"a": "x"}, {"b": "y"}, "z"]), template="{a}"))
    assert first.text == "x"
    assert "no column 'a'" in str(second)
    assert "template= needs a DataFrame or mappings as rows, not str" in str(third)


def test_what_the_generator_raises_comes_out() -> None:
    def source() -> Iterator[str]:
        yield "x"
        raise OSError("disk gone")

    items: Iterator[Item] = iter(read_rows(source()).items)  # type: ignore[arg-type]
    next(items)
    with pytest.raises(OSError, match="disk gone"):
        next(items)


@pytest.mark.parametrize("source", [["x"], pd.Series(["x"]), pd.DataFrame({"prompt": ["x"]}), iter(["x"])], ids=type)
def test_defaults_reach_every_kind_of_row(source: Any) -> None:
    (prompt,) = prompts(source, model="m", temperature=0.5, max_tokens=7, system="s", extra={"seed": 1})
    assert prompt == Prompt.of("x", model="m", temperature=0.5, max_tokens=7, system="s", extra={"seed": 1})


def test_the_overrides_are_parameters_of_a_prompt() -> None:
    row = {"model": "m", "temperature": 0.5, "max_tokens": 7, "system": "s"}
    assert set(row) == set(OVERRIDES)
    (prompt,) = prompts(pd.DataFrame([{"prompt": "x", **row}]))
    assert prompt == Prompt.of("x", **row)  # type: ignore[arg-type]


# -- outcomes to a frame ----------------------------------------------------------------------------------

NOON = pd.Timestamp("2026-01-01 12:00", tz="UTC")
AT = NOON.timestamp()


def answered(index: int = 0, content: str = "answer", **fields: Any) -> Outcome:
    reply = Reply(
        content, "stop", "sim", "small", Usage(11, 22, 3), "req_1",
        **{"latency_s": 1.5, "ttft_s": 0.25, "cost_usd": 0.01, **fields},
    )  # fmt: skip
    return Outcome(index, Prompt.of(f"prompt {index}"), "ok", reply, None, 2, 0.125, 0.5, AT, AT + 2.5)


def failed(index: int = 0, error: BaseException | None = None, status: Status = "error") -> Outcome:
    return Outcome(index, Prompt.of("hi"), status, None, error or ServerError("boom", status=500), 3, 0, 0, AT, AT + 1)


def never(index: int = 0) -> Outcome:
    return Outcome(index, None, "cancelled", None, asyncio.CancelledError("stopped"), finished_at=AT)


def framed(*outcomes: Outcome, index: pd.Index | None = None) -> pd.DataFrame:
    return to_frame([record(outcome) for outcome in outcomes], index)


def test_an_answered_row_in_full() -> None:
    row = framed(answered()).iloc[0]
    assert row.index[row.isna()].tolist() == ["error", "error_type"]
    assert row.dropna().to_dict() == {
        "prompt": "prompt 0", "content": "answer", "status": "ok", "latency_ms": 1500.0, "ttft_ms": 250.0,
        "queue_ms": 125.0, "wait_ms": 500.0, "attempts": 2,
        "finish_reason": "stop", "provider": "sim", "model": "small", "input_tokens": 11, "output_tokens": 22,
        "cached_tokens": 3, "cost_usd": 0.01, "cache_hit": False, "request_id": "req_1", "started_at": NOON,
        "finished_at": NOON + pd.Timedelta("2.5s"),
    }  # fmt: skip


def test_a_failed_row_says_why_and_has_no_answer() -> None:
    row = framed(failed()).iloc[0]
    assert (row.status, row.error, row.error_type, row.attempts) == ("error", "HTTP 500: boom", "ServerError", 3)
    missing = ["content", "latency_ms", "ttft_ms", "finish_reason", "provider", "model", "input_tokens",
               "output_tokens", "cached_tokens", "cost_usd", "request_id"]  # fmt: skip
    assert row.index[row.isna()].tolist() == missing
    assert not row.cache_hit


def test_an_error_without_words_is_named() -> None:
    out = framed(failed(error=ValueError()))
    assert (out.error[0], out.error_type[0]) == ("ValueError", "ValueError")


def test_a_row_that_was_never_taken_up_has_no_start() -> None:
    out = framed(answered(), never())
    assert out.started_at.isna().tolist() == [False, True]
    assert out.finished_at[1] == NOON
    assert out.prompt.isna().tolist() == [False, True]
    assert (out.attempts[1], out.queue_ms[1], out.error[1]) == (0, 0.0, "stopped")


def test_an_answer_of_unknown_usage_and_price_leaves_them_open() -> None:
    out = framed(Outcome(0, Prompt.of("hi"), "ok", Reply("a", "stop", "p", "m"), None))
    assert out[["input_tokens", "output_tokens", "cached_tokens", "cost_usd", "ttft_ms"]].isna().all(axis=None)


def test_an_empty_answer_is_a_text_and_not_a_gap() -> None:
    assert framed(answered(content="")).content.tolist() == [""]


def test_token_counts_stay_whole_beside_a_gap() -> None:
    out = framed(answered(), failed())
    assert out.input_tokens.dtype == "Int64"
    assert out.input_tokens[0] == 11
    assert out.input_tokens.isna().tolist() == [False, True]


@given(st.floats(1.0, 4e9))
@settings(max_examples=100, deadline=None)
def test_a_moment_is_right_to_the_microsecond(at: float) -> None:
    out = framed(Outcome(0, None, "cancelled", None, None, started_at=at, finished_at=at))
    for moment in (out.started_at[0], out.finished_at[0]):
        assert moment.value == round(at * 1e6) * 1000
        assert str(moment.tz) == "UTC"


@pytest.mark.parametrize("text", ["half \ud800 a pair", "\udcff", "ok 😀"])
def test_a_text_that_is_no_unicode_does_not_cost_the_other_rows(text: str) -> None:
    """Read with `errors="surrogateescape"`, say. Its own request fails, but the frame must come."""
    bad = Outcome(1, Prompt.of(text), "error", None, ServerError(text), 1, 0, 0, AT, AT)
    out = framed(answered(0, "good"), bad)
    assert out.content[0] == "good"
    assert out.prompt[0] == "prompt 0"
    assert out.prompt[1] in (text, text.encode(errors="backslashreplace").decode())


def test_a_frame_without_an_index_counts_from_0() -> None:
    pd.testing.assert_index_equal(framed(answered(), answered()).index, pd.RangeIndex(2))


def test_rows_of_a_generator_are_numbered_by_their_place() -> None:
    rows = Rows(iter(()), None, None)
    out = rows.frame({2: record(answered(2, "two")), 0: record(answered(0, "zero"))})
    assert out.index.tolist() == [0, 2]
    assert out.content.tolist() == ["zero", "two"]


@pytest.mark.parametrize("total", [None, 3])
@pytest.mark.parametrize("positions", [[], [1], [0, 1, 2]])
def test_numbers_are_whole_however_many_rows_are_settled(total: int | None, positions: list[int]) -> None:
    out = Rows(iter(()), None, total).frame({position: record(answered()) for position in positions})
    assert out.index.tolist() == positions
    assert out.index.dtype == "int64"


def test_settling_in_any_order_gives_input_order() -> None:
    rows = read_rows(pd.Series(list("abc"), index=["x", "y", "z"]))
    out = rows.frame({n: record(answered(n, str(n))) for n in (2, 0, 1)})
    assert out.index.tolist() == ["x", "y", "z"]
    assert out.content.tolist() == ["0", "1", "2"]


def test_the_result_joins_its_input() -> None:
    table = reviews()
    rows = read_rows(table, template="{review}")
    joined = table.join(rows.frame({n: record(answered(n, str(n))) for n in range(2)}))
    assert joined.content.tolist() == ["0", "1"]


# -- round trips ------------------------------------------------------------------------------------------

MIXED = (answered(0, 'quote " comma , line\nend 😀'), failed(1), never(2), answered(3, ""))
TEXTS = [column.name for column in COLUMNS if column.dtype == "string"]


@pytest.mark.parametrize("outcomes", [MIXED, MIXED[:1], MIXED[2:3], ()], ids=["mixed", "full", "never", "empty"])
def test_parquet_brings_back_the_same_frame(outcomes: tuple[Outcome, ...], tmp_path) -> None:
    out = framed(*outcomes, index=pd.Index(list("abcd")[: len(outcomes)], name="id", dtype=object))
    out.to_parquet(tmp_path / "out.parquet")
    back = pd.read_parquet(tmp_path / "out.parquet")
    pd.testing.assert_frame_equal(back, out, check_index_type=False)


def test_parquet_brings_back_a_multiindex_with_duplicates(tmp_path) -> None:
    index = pd.MultiIndex.from_tuples([("a", 1), ("a", 1), ("b", 2), ("b", 3)], names=["group", "n"])
    out = framed(*MIXED, index=index)
    out.to_parquet(tmp_path / "out.parquet")
    back = pd.read_parquet(tmp_path / "out.parquet")
    pd.testing.assert_frame_equal(back, out)


@pytest.mark.parametrize("outcomes", [MIXED, MIXED[:1], ()], ids=["mixed", "full", "empty"])
def test_csv_brings_back_the_same_values(outcomes: tuple[Outcome, ...]) -> None:
    out = framed(*outcomes)
    plain = {column.name: column.dtype for column in COLUMNS if not column.dtype.startswith("datetime64")}
    back = pd.read_csv(io.StringIO(out.to_csv()), index_col=0, dtype=plain)
    for column in COLUMNS:
        if column.dtype.startswith("datetime64"):
            moments = pd.to_datetime(back[column.name], utc=True, format="ISO8601")
            back[column.name] = moments.dt.as_unit("us")
    # A CSV file does not tell an empty text from a gap.
    expected = out.assign(**{name: out[name].mask(out[name] == "") for name in TEXTS})
    pd.testing.assert_frame_equal(back, expected, check_index_type=False)


def test_the_frame_is_writable_by_hand() -> None:
    out = framed(*MIXED)
    out.loc[0, "content"] = "edited"
    out["label"] = "new"
    assert out.content[0] == "edited"
