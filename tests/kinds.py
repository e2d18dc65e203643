"""Types that answers are asked for as, and what becomes of a text that is read into them."""

import enum
import typing
from dataclasses import dataclass
from typing import Any

import pandas as pd
import pytest
import typing_extensions
from pydantic import BaseModel, Field, computed_field

from llmlab.errors import SchemaMismatch
from llmlab.fields import with_fields
from llmlab.typed import Typed, typed
from llmlab.types import Reply


class Mood(enum.Enum):
    GOOD = "good"
    BAD = "bad"


class Review(BaseModel):
    """A review."""

    mood: Mood
    stars: int = Field(ge=1, le=5, description="how many of five")
    share: float | None = None
    spam: bool = False
    words: list[str] = []


@dataclass
class Point:
    x: int
    y: float = 0.0


class Typing(typing.TypedDict):
    a: int
    b: typing.NotRequired[str]


class Nested(typing_extensions.TypedDict):
    inner: list[Typing]


class Aliased(BaseModel):
    first: int = Field(alias="firstOne")

    @computed_field
    def twice(self) -> int:
        return 2 * self.first


class Node(BaseModel):
    name: str
    next: "Node | None" = None


JSON = {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"enum": ["x", "y"]}}, "required": ["a"]}
GOOD = '{"mood": "good", "stars": 4}'


def parsed(schema: object, text: str, finish: str = "stop") -> Any:
    return typed(schema).read(Reply(text, finish, "sim", "small")).parsed


def refused(schema: object, text: str, finish: str = "stop") -> str:
    with pytest.raises(SchemaMismatch) as caught:
        parsed(schema, text, finish)
    assert caught.value.reply.content == text
    return str(caught.value)


def asked(schema: object) -> Any:
    return typed(schema).fitter.asked


def table(schema: object, *texts: str) -> pd.DataFrame:
    wanted = typed(schema)
    rows = [wanted.cells(wanted.read(Reply(text, "stop", "sim", "small"))) for text in texts]
    rows.append(wanted.cells(None))
    return with_fields(pd.DataFrame(index=range(len(rows))), wanted.columns, rows)


def dtypes(wanted: Typed) -> dict[str, str]:
    return {column.name: column.dtype for column in wanted.columns}
