"""Types whose JSON schemas are hard on providers, and requests that ask for them."""

import datetime as dt
import enum
from dataclasses import dataclass
from typing import Any, Literal

import orjson
from pydantic import BaseModel, Field

from llmlab.typed import typed
from llmlab.types import Prompt, Schema


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


@dataclass
class Point:
    x: int
    y: float = 0.0


class Inner(BaseModel):
    """Something inside."""

    name: str = Field(description="its name")
    colours: list[Colour] = []


class Node(BaseModel):
    name: str
    below: "list[Node]" = []


class Rich(BaseModel):
    label: Literal["good", "bad"]
    stars: int = Field(ge=1, le=5)
    share: float | None = Field(None, gt=0, lt=1)
    inner: Inner = Field(description="the thing inside")
    when: dt.date
    at: dt.datetime | None = None
    either: int | Point = 3
    default: str = "none"
    code: str = Field("abc", min_length=2, max_length=400)


KINDS: list[Any] = [
    Rich, Inner, Node, Point, Colour, Literal["x", "y"], int, float, bool, str, list[int], int | None, list[Inner],
    Point | Inner, dt.date, Inner | None,
]  # fmt: skip
LOOSE: list[Any] = [dict[str, int], tuple[int, str], Any, dict[str, Any]]
NAMES = [str(kind) for kind in KINDS]


def schema_of(kind: Any) -> Schema:
    return typed(kind).schema


def body(codec: Any, prompt: Prompt, **options: Any) -> dict[str, Any]:
    sent: dict[str, Any] = orjson.loads(codec.encode(prompt, "m", stream=False, **options))
    return sent


def asking(kind: Any, text: Any = "How was it?") -> Prompt:
    return Prompt(Prompt.of(text).messages, schema=schema_of(kind))
