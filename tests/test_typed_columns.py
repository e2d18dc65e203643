"""Which columns a schema makes, and with which dtypes."""

import datetime as dt
import subprocess
import sys
from dataclasses import replace
from decimal import Decimal
from typing import Any, Literal

import pandas as pd
import pytest
from pydantic import BaseModel, model_serializer

from llmlab.fields import with_fields
from llmlab.typed import typed
from llmlab.types import Reply
from tests.kinds import GOOD, Aliased, Mood, Node, Point, Review, dtypes, table


def test_each_field_is_a_column_with_its_dtype() -> None:
    wanted = typed(Review)
    assert dtypes(wanted) == {
        "mood": "category", "stars": "Int64", "share": "float64", "spam": "boolean", "words": "object"
    }  # fmt: skip
    assert [column.meaning for column in wanted.columns][1] == "how many of five"
    out = table(Review, GOOD, '{"mood": "bad", "stars": 1, "share": 0.5, "spam": true, "words": ["a"]}')
    assert out["mood"].cat.categories.tolist() == ["good", "bad"]
    assert out["stars"].tolist()[:2] == [4, 1]
    assert out["words"].tolist()[:2] == [[], ["a"]]
    assert out.iloc[2].isna().all(), "a row without an answer has none of them"
    assert {name: str(dtype) for name, dtype in out.dtypes.items()} == dtypes(wanted)


@pytest.mark.parametrize(
    ("schema", "dtype"),
    [
        (int, "Int64"), (float, "float64"), (bool, "boolean"), (str, "string"), (Mood, "category"),
        (Literal[1, 2], "category"), (int | None, "Int64"), (int | float, "float64"), (int | str, "object"),
        (list[int], "object"), (dict[str, int], "object"), (Point | None, "object"), (dt.date, "datetime64[us]"),
        (dt.datetime, "datetime64[us, UTC]"), (dt.date | None, "datetime64[us]"), (Decimal, "string"), (Any, "object"),
        (Literal["x"], "category"), ({"type": ["integer", "null"]}, "Int64"), ({"type": "string"}, "string"),
        ({"enum": [["a"], 1]}, "object"),
        ({"type": "string", "format": "date"}, "string"), ({"enum": [1, True]}, "object"),
    ],
)  # fmt: skip
def test_a_bare_value_is_the_column_value(schema: object, dtype: str) -> None:
    assert dtypes(typed(schema)) == {"value": dtype}


def test_dates_are_dates() -> None:
    out = table(dt.datetime, '{"value": "1970-01-01T00:00:00"}', '{"value": "2026-01-02T03:04:05.678901+02:00"}')
    assert str(out["value"].dtype) == "datetime64[us, UTC]"
    assert out["value"].tolist()[:2] == [
        pd.Timestamp("1970-01-01", tz="UTC"), pd.Timestamp("2026-01-02 01:04:05.678901", tz="UTC")
    ]  # fmt: skip
    assert table(dt.date, '{"value": "2026-01-02"}')["value"].tolist()[0] == pd.Timestamp("2026-01-02")


def test_columns_have_the_names_of_the_fields_and_computed_ones_are_among_them() -> None:
    out = table(Aliased, '{"firstOne": 2}')
    assert out.columns.tolist() == ["first", "twice"]
    assert (out["first"].tolist()[0], out["twice"].tolist()[0]) == (2, 4)


def test_a_model_that_is_written_as_one_value_is_the_column_value() -> None:
    class Money(BaseModel):
        amount: int
        currency: str

        @model_serializer
        def written(self) -> str:
            return f"{self.amount} {self.currency}"

    out = table(Money, '{"amount": 3, "currency": "EUR"}')
    assert out.columns.tolist() == ["value"]
    assert out["value"].tolist()[0] == "3 EUR"


def test_nested_values_are_plain_dicts_and_lists() -> None:
    out = table(Node, '{"name": "a", "next": {"name": "b"}}')
    assert list(out["next"]) == [{"name": "b", "next": None}, None]


def test_a_name_that_is_taken_gets_a_prefix() -> None:
    class Clash(BaseModel):
        status: str
        model: int

    assert dtypes(typed(Clash)) == {"parsed_status": "string", "parsed_model": "Int64"}


def test_two_fields_of_one_column_are_refused() -> None:
    class Twice(BaseModel):
        status: str
        parsed_status: str

    with pytest.raises(ValueError, match="two fields would become the column 'parsed_status'"):
        typed(Twice)


def test_a_value_that_its_dtype_cannot_hold_costs_no_frame() -> None:
    assert table(int, f'{{"value": {10**30}}}')["value"].tolist() == [10**30, None]


def test_an_empty_frame_has_the_dtypes_too() -> None:
    wanted = typed(Review)
    out = with_fields(pd.DataFrame(index=[]), wanted.columns, [])
    assert {name: str(dtype) for name, dtype in out.dtypes.items()} == dtypes(wanted)


def test_importing_llmlab_imports_neither_pydantic_nor_jsonschema() -> None:
    code = "import sys, llmlab; print([m for m in ('pydantic', 'pydantic_core', 'jsonschema') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)  # noqa: S603
    assert done.stdout.strip() == "[]"


def test_a_reply_is_otherwise_as_it_was() -> None:
    reply = Reply(GOOD, "stop", "sim", "small", request_id="r")
    assert replace(typed(Review).read(reply), parsed=None) == reply
