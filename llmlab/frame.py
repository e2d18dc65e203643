"""The pandas boundary: tables become prompts, outcomes become tables.

`COLUMNS` is the single source of the result's shape; it makes the frame, the README's table and a test.
"""

import itertools
from collections.abc import AsyncIterable, Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import numpy as np
import pandas as pd

from llmlab.template import Template, did_you_mean
from llmlab.types import Outcome, Prompt, is_missing

Frame: TypeAlias = pd.DataFrame
"""What a job's result is, for modules that leave pandas alone."""

OVERRIDES = ("model", "temperature", "max_tokens", "system")


@dataclass(frozen=True, slots=True)
class Column:
    """One column of the result."""

    name: str
    """Its name."""
    dtype: str
    """Its pandas dtype, also when the frame is empty."""
    unit: str
    """Its unit; "" where there is none."""
    meaning: str
    """What a value says, and when it is missing."""


COLUMNS: tuple[Column, ...] = (
    Column("prompt", "string", "", "the prompt's text as sent; of a conversation, its last user message"),
    Column("content", "string", "", "the answer's text; missing unless status is ok"),
    Column("status", "string", "", "ok, error or cancelled"),
    Column("error", "string", "", "why there is no answer, in words; missing when ok"),
    Column("error_type", "string", "", "the error's class, as in llmlab.errors; missing when ok"),
    Column("latency_ms", "float64", "ms", "the successful attempt, from sending to the complete answer"),
    Column("ttft_ms", "float64", "ms", "time to the first piece of text; missing unless streamed"),
    Column("queue_ms", "float64", "ms", "waiting for admission, all attempts together"),
    Column("wait_ms", "float64", "ms", "backing off between attempts"),
    Column("attempts", "int64", "", "requests sent for this row"),
    Column("finish_reason", "string", "", "why the model stopped: stop, length, tool_calls, content_filter, other"),
    Column("provider", "string", "", "the provider that answered"),
    Column("model", "string", "", "the model that answered, as the provider names it"),
    Column("input_tokens", "Int64", "tokens", "input of the answered attempt, cached tokens included"),
    Column("output_tokens", "Int64", "tokens", "output of the answered attempt, reasoning included"),
    Column("cached_tokens", "Int64", "tokens", "part of the input read from the provider's prompt cache"),
    Column("cost_usd", "float64", "USD", "price of the answer; missing when the model's price is not known"),
    Column("cache_hit", "bool", "", "answered from llmlab's own cache, at no cost"),
    Column("request_id", "string", "", "the provider's id of the answered request"),
    Column("started_at", "datetime64[us, UTC]", "", "when the row was taken up; missing if it never was"),
    Column("finished_at", "datetime64[us, UTC]", "", "when the row was settled"),
)

Record: TypeAlias = tuple[Any, ...]
"""A settled row's values in the order of COLUMNS: plain values only, so that a hundred thousand of them weigh
little and the garbage collector need not look at them."""


def record(outcome: Outcome) -> Record:
    """An outcome's values in the order of COLUMNS. Seconds become milliseconds here and nowhere else."""
    reply, error = outcome.reply, outcome.error
    usage = None if reply is None else reply.usage
    tokens = (None, None, None)
    if usage is not None:
        tokens = (usage.input_tokens, usage.output_tokens, usage.cached_tokens)
    return (
        None if outcome.prompt is None else outcome.prompt.text,
        None if reply is None else reply.content,
        outcome.status,
        None if error is None else str(error) or type(error).__name__,
        None if error is None else type(error).__name__,
        None if reply is None else reply.latency_s * 1000.0,
        None if reply is None or reply.ttft_s is None else reply.ttft_s * 1000.0,
        outcome.queue_s * 1000.0,
        outcome.wait_s * 1000.0,
        outcome.attempts,
        None if reply is None else reply.finish_reason,
        None if reply is None else reply.provider,
        None if reply is None else reply.model,
        *tokens,
        None if reply is None else reply.cost_usd,
        reply is not None and reply.cache_hit,
        None if reply is None else reply.request_id,
        outcome.started_at,
        outcome.finished_at,
    )


def to_frame(records: Sequence[Record], index: pd.Index | None = None) -> Frame:
    """Make the result of records: one row each, in their order; see COLUMNS.

    Args:
        records: In the order of their rows.
        index: The result's index, as long as `records`. None: 0, 1, 2, …
    """
    labels = pd.RangeIndex(len(records)) if index is None else index
    values = zip(*records, strict=True) if records else itertools.repeat(())
    data = {column.name: _series(column, each, labels) for column, each in zip(COLUMNS, values, strict=False)}
    return pd.DataFrame(data, index=labels)


def _series(column: Column, values: Sequence[Any], index: pd.Index) -> "pd.Series[Any]":
    if column.dtype.startswith("datetime64"):
        micros = np.array([value * 1e6 if value else np.nan for value in values], dtype="float64")
        stamps = np.where(np.isnan(micros), np.iinfo("int64").min, micros).astype("int64")  # the minimum is NaT
        return pd.Series(stamps.view("M8[us]"), index=index).dt.tz_localize("UTC")
    return pd.Series(list(values), index=index, dtype=column.dtype)


def columns_table() -> str:
    """The columns as a Markdown table, for the README."""
    lines = ["| column | dtype | unit | meaning |", "|---|---|---|---|"]
    lines += [f"| `{c.name}` | {c.dtype} | {c.unit} | {c.meaning} |" for c in COLUMNS]
    return "\n".join(lines)


Item: TypeAlias = Prompt | Exception
"""A row as read: a prompt, or why it is none (rows of a generator are only seen when their turn comes)."""


@dataclass
class Rows:
    """An input, ready to be taken row by row."""

    items: Iterable[Item] | AsyncIterable[Item]
    """The rows, lazily."""
    index: pd.Index | None
    """The input's index; None: count from 0."""
    total: int | None
    """How many rows; None for a generator."""

    def frame(self, settled: Mapping[int, Record]) -> Frame:
        """The result of the settled rows, given by position, in input order."""
        positions = sorted(settled)
        whole = positions == list(range(self.total or len(positions)))
        index = self.index
        if not whole:
            index = pd.Index(positions) if index is None else index.take(positions)
        return to_frame([settled[position] for position in positions], index)


def read_rows(
    source: object,
    *,
    template: str | None = None,
    overrides: Collection[str] = OVERRIDES,
    **defaults: Any,
) -> Rows:
    """Read an input of `run_many`.

    Inputs whose length is known are checked whole, before anything is sent; a generator's rows when they come.

    Args:
        source: A Series or list of prompts, a DataFrame, or any iterable or async iterable.
        template: A text with column names in braces, for a DataFrame or an iterable of mappings.
        overrides: Columns of a DataFrame that set a row's own parameters, unless the template uses them.
        defaults: Parameters of rows that do not set their own, as in `Prompt.of`.

    Raises:
        TypeError, ValueError: the input, a row or the template is not usable; names the row.
    """
    if isinstance(source, str | bytes | Mapping):
        raise TypeError(f"run_many takes many prompts, not one {type(source).__name__}; for one use lab.run(…)")
    if isinstance(source, pd.DataFrame):
        return _read_table(source, template, overrides, defaults)
    make = partial(Prompt.of, **defaults) if template is None else _filler(template, defaults)
    if isinstance(source, pd.Series):
        return _read_sized(source.tolist(), source.index, make)
    if isinstance(source, Sequence | np.ndarray | pd.Index):
        return _read_sized(list(source), None, make)
    if isinstance(source, Iterable):
        return Rows(_attempted(source, make), None, len(source) if isinstance(source, Collection) else None)
    if isinstance(source, AsyncIterable):
        return Rows(_attempted_async(source, make), None, None)
    raise TypeError(f"run_many takes a Series, DataFrame, list or iterable of prompts, not {type(source).__name__}")


Make: TypeAlias = Callable[[Any], Prompt]


def _read_sized(values: list[Any], index: pd.Index | None, make: Make) -> Rows:
    labels = range(len(values)) if index is None else index
    for label, value in zip(labels, values, strict=True):
        if type(value) is not str:
            _check(make, value, label)
    return Rows((make(value) for value in values), index, len(values))


def _check(make: Make, value: object, label: object) -> None:
    try:
        make(value)
    except (TypeError, ValueError) as error:
        raise type(error)(f"row {label!r}: {error}") from None


def _attempted(source: Iterable[Any], make: Make) -> Iterator[Item]:
    for value in source:
        yield _attempt(make, value)


async def _attempted_async(source: AsyncIterable[Any], make: Make) -> Any:
    async for value in source:
        yield _attempt(make, value)


def _attempt(make: Make, value: Any) -> Item:
    try:
        return make(value)
    except (TypeError, ValueError) as error:
        return error


def _filler(template: str, defaults: Mapping[str, Any]) -> Make:
    """Make prompts of mappings."""
    parsed = Template(template)

    def make(row: Any) -> Prompt:
        if not isinstance(row, Mapping):
            raise TypeError(f"with template= a row is a mapping of columns, not {type(row).__name__}")
        parsed.check(list(map(str, row)))
        return Prompt.of(parsed.fill(dict(row)), **defaults)

    return make


def _read_table(
    table: pd.DataFrame, template: str | None, overrides: Collection[str], defaults: Mapping[str, Any]
) -> Rows:
    parsed = _template_of(table, template)
    parsed.check([str(name) for name in table.columns])
    _refuse_unknown(overrides)
    own = [name for name in OVERRIDES if name in overrides and name in table and name not in parsed.columns]
    names = [*parsed.columns, *own]
    columns = [table[name].tolist() for name in names]

    def make(values: tuple[Any, ...]) -> Prompt:
        row = dict(zip(names, values, strict=True))
        parameters = {**defaults, **{name: _parameter(row[name]) for name in own if not is_missing(row[name])}}
        return Prompt.of(_text(parsed, row, template), **parameters)

    rows = zip(*columns, strict=True)
    for label, values in zip(table.index, zip(*columns, strict=True), strict=True):
        _check(make, values, label)
    return Rows(map(make, rows), table.index, len(table))


def _text(parsed: Template, row: dict[str, Any], template: str | None) -> Any:
    # Without a template the column `prompt` is taken as it is: it may hold lists of messages.
    return row["prompt"] if template is None else parsed.fill(row)


def _template_of(table: pd.DataFrame, template: str | None) -> Template:
    if template is not None:
        return Template(template)
    if "prompt" in table:
        return Template("{prompt}")
    known = ", ".join(map(repr, table.columns))
    raise ValueError(f"a DataFrame needs template='…{{column}}…' or a column 'prompt'; it has: {known}")


def _refuse_unknown(overrides: Collection[str]) -> None:
    for name in overrides:
        if name not in OVERRIDES:
            raise ValueError(f"overrides: a row cannot set {name!r}; {did_you_mean(name, OVERRIDES)}")


def _parameter(value: Any) -> Any:
    """A cell as a parameter: numpy and pandas numbers as Python's, 50.0 as 50 (a gap makes a column float)."""
    value = value.item() if isinstance(value, np.generic) else value
    return int(value) if isinstance(value, float) and value.is_integer() else value
