"""The pandas boundary: tables become prompts, outcomes become tables."""

from collections.abc import AsyncIterable, Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeAlias

import numpy as np
import pandas as pd

from llmlab.call import Reader
from llmlab.columns import COLUMNS, Column, columns_table
from llmlab.fields import frame_of, show_as_text, with_fields
from llmlab.plan import Plan
from llmlab.template import Template, did_you_mean
from llmlab.types import Item, Message, Outcome, Prompt, Reply, Usage, asking, is_missing

__all__ = [
    "COLUMNS",
    "OVERRIDES",
    "Column",
    "Frame",
    "Record",
    "Rows",
    "cells",
    "check_row",
    "columns_table",
    "frame_of",
    "parameter",
    "read_rows",
    "record",
    "refuse_unknown",
    "show_as_text",
    "to_frame",
    "values",
]

Frame: TypeAlias = pd.DataFrame
"""What a job's result is, for modules that leave pandas alone."""

OVERRIDES = ("model", "temperature", "max_tokens", "system")


Record: TypeAlias = tuple[Any, ...]
"""A settled row's values in the order of COLUMNS: plain values only, so that a hundred thousand of them weigh
little and the garbage collector need not look at them."""


def record(outcome: Outcome) -> Record:
    """An outcome's values in the order of COLUMNS."""
    error = outcome.error
    return values(
        prompt=None if outcome.prompt is None else outcome.prompt.text,
        status=outcome.status,
        reply=outcome.said,
        error=None if error is None else str(error) or type(error).__name__,
        error_type=None if error is None else type(error).__name__,
        queue_s=outcome.queue_s,
        wait_s=outcome.wait_s,
        attempts=outcome.attempts,
        started_at=outcome.started_at,
        finished_at=outcome.finished_at,
        wasted=outcome.wasted,
        wasted_usd=outcome.wasted_usd,
    )


def values(
    *,
    prompt: str | None,
    status: str,
    reply: Reply | None,
    error: str | None,
    error_type: str | None,
    queue_s: float,
    wait_s: float,
    attempts: int,
    started_at: float,
    finished_at: float,
    wasted: Usage | None = None,
    wasted_usd: float | None = None,
) -> Record:
    """A row's values in the order of COLUMNS. Seconds become milliseconds here and nowhere else."""
    usage = _sum(None if reply is None else reply.usage, wasted)
    tokens: tuple[int | None, ...] = (None, None, None)
    if usage is not None:
        tokens = (usage.input_tokens, usage.output_tokens, usage.cached_tokens)
    return (
        prompt,
        None if reply is None else reply.content,
        status,
        error,
        error_type,
        None if reply is None or status != "ok" else reply.latency_s * 1000.0,
        None if reply is None or reply.ttft_s is None else reply.ttft_s * 1000.0,
        queue_s * 1000.0,
        wait_s * 1000.0,
        attempts,
        None if reply is None else reply.finish_reason,
        None if reply is None else reply.provider,
        None if reply is None else reply.model,
        *tokens,
        _sum(None if reply is None else reply.cost_usd, wasted_usd),
        reply is not None and reply.cache_hit,
        None if reply is None else reply.request_id,
        started_at,
        finished_at,
    )


def _sum(one: Any, other: Any) -> Any:
    """Their sum; unknown is not 0, but adds nothing to what is known."""
    return other if one is None else one if other is None else one + other


def to_frame(records: Sequence[Record], index: pd.Index | None = None) -> Frame:
    """Make the result of records: one row each, in their order; see COLUMNS.

    Args:
        records: In the order of their rows.
        index: The result's index, as long as `records`. None: 0, 1, 2, …
    """
    return frame_of(COLUMNS, records, index)


@dataclass
class Rows:
    """An input, ready to be taken row by row."""

    items: Iterable[Item] | AsyncIterable[Item] | Plan
    """The rows, lazily; or a plan of rows that follow from one another."""
    index: pd.Index | None
    """The input's index; None: count from 0."""
    total: int | None
    """How many rows; None for a generator."""
    reader: Reader | None = None
    """Reads the answers into what was asked for. None: they are text."""

    def asking(self, reader: Reader | None) -> "Rows":
        """The same rows, whose answers are to be what `reader` reads; as they are, if it is None."""
        if reader is None or isinstance(self.items, Plan):
            return self
        return replace(self, items=asking(self.items, reader.schema), reader=reader)

    def record(self, outcome: Outcome) -> Record:
        """An outcome's values in the order of COLUMNS, and behind them those of the answer's fields."""
        if self.reader is None:
            return record(outcome)
        asked = outcome.prompt is None or outcome.prompt.schema is not None  # None: not known to a batch's id alone
        return (*record(outcome), *self.reader.cells(outcome.reply if asked else None))

    def frame(self, settled: Mapping[int, Record]) -> Frame:
        """The result of the settled rows, given by position, in input order."""
        positions = sorted(settled)
        whole = positions == list(range(self.total or len(positions)))
        index = self.index
        if not whole:
            index = pd.Index(positions, dtype="int64") if index is None else index.take(positions)
        records = [settled[position] for position in positions]
        return self.with_fields(to_frame(records, index), records)

    def with_fields(self, out: Frame, records: Sequence[Record]) -> Frame:
        """A frame with what `record` has put behind the values of COLUMNS."""
        if self.reader is None:
            return out
        return with_fields(out, self.reader.columns, [row[len(COLUMNS) :] for row in records])


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
    if isinstance(source, str | bytes | bytearray | Mapping | Message | Prompt):
        raise TypeError(f"prompts must be many, not one {type(source).__name__}; for one use lab.run(…)")
    refuse_unknown(overrides)
    if isinstance(source, pd.DataFrame):
        return _read_table(source, template, overrides, defaults)
    make = partial(Prompt.of, **defaults) if template is None else _filler(template, defaults)
    if isinstance(source, pd.Series):
        return _read_sized(source.tolist(), source.index, make, plain=template is None)
    if isinstance(source, Collection):
        return _read_sized(list(source), None, make, plain=template is None)
    if isinstance(source, Iterable):
        return Rows(_attempted(source, make), None, None)
    if isinstance(source, AsyncIterable):
        return Rows(_attempted_async(source, make), None, None)
    raise TypeError(f"prompts must be a Series, DataFrame, list or iterable, not {type(source).__name__}")


Make: TypeAlias = Callable[[Any], Prompt]


def _read_sized(values: list[Any], index: pd.Index | None, make: Make, *, plain: bool) -> Rows:
    if plain:
        _refuse_conversation(values)
    labels = range(len(values)) if index is None else index
    for label, value in zip(labels, values, strict=True):
        if not plain or type(value) is not str:  # a str is a prompt as it is
            check_row(make, value, label)
    return Rows((make(value) for value in values), index, len(values))


def _refuse_conversation(values: list[Any]) -> None:
    if not values or not all(isinstance(value, Message | Mapping) for value in values):
        return
    if all(isinstance(value, Message) or "role" in value for value in values):
        raise TypeError(
            "each row is a single message, as if this were one conversation; a prompt is a str or a list of "
            "messages: wrap it, [[{'role': …, 'content': …}, …]], or use lab.run(…)"
        )
    raise TypeError("rows that are mappings of columns need template='…{column}…'")


def check_row(make: Callable[[Any], Any], value: object, label: object) -> Any:
    """Make a row; what is wrong with it is an error that names it."""
    try:
        return make(value)
    except (TypeError, ValueError) as error:
        # Not type(error): a subclass, as UnicodeError, may take other arguments.
        kind = TypeError if isinstance(error, TypeError) else ValueError
        raise kind(f"row {label!r}: {error}") from None
    except Exception as error:
        error.add_note(f"llmlab: raised for row {label!r}")
        raise


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
            raise TypeError(f"template= needs a DataFrame or mappings as rows, not {type(row).__name__}")
        named = {str(name): value for name, value in row.items()}
        parsed.check(list(named))
        return Prompt.of(parsed.fill(named), **defaults)

    return make


def _read_table(
    table: pd.DataFrame, template: str | None, overrides: Collection[str], defaults: Mapping[str, Any]
) -> Rows:
    known = [str(name) for name in table.columns]
    parsed = _template_of(known, template)
    parsed.check(known)
    own = [name for name in OVERRIDES if name in overrides and name in known and name not in parsed.columns]
    names = [*parsed.columns, *own]
    columns = [cells(table, known, name) for name in names]

    def make(values: tuple[Any, ...]) -> Prompt:
        row = dict(zip(names, values, strict=True))
        parameters = {
            **defaults,
            **{name: parameter(row[name]) for name in own if not is_missing(row[name])},
        }
        return Prompt.of(_text(parsed, row, template), **parameters)

    rows = zip(*columns, strict=True)
    for label, values in zip(table.index, zip(*columns, strict=True), strict=True):
        check_row(make, values, label)
    return Rows(map(make, rows), table.index, len(table))


def _text(parsed: Template, row: dict[str, Any], template: str | None) -> Any:
    # Without a template the column `prompt` is taken as it is: it may hold lists of messages.
    return row["prompt"] if template is None else parsed.fill(row)


def _template_of(known: list[str], template: str | None) -> Template:
    if template is not None:
        return Template(template)
    if "prompt" in known:
        return Template("{prompt}")
    there = ", ".join(map(repr, known)) or "no columns"
    raise ValueError(f"a DataFrame needs template='…{{column}}…' or a column 'prompt'; it has: {there}")


def cells(table: pd.DataFrame, known: list[str], name: str) -> list[Any]:
    """The values of the one column of this name, of the names `known`."""
    # By position: a column's label may be a number or a tuple, its name in a template is text.
    if (count := known.count(name)) > 1:
        raise ValueError(f"the DataFrame has {count} columns named {name!r}: rename all but one")
    cells: list[Any] = table.iloc[:, known.index(name)].tolist()
    return cells


def refuse_unknown(overrides: Collection[str]) -> None:
    """Complain about columns that no row can set a parameter with."""
    if isinstance(overrides, str) or not isinstance(overrides, Collection):
        raise TypeError(f"overrides must be a collection of names, as ('model',) or (), not {overrides!r}")
    for name in overrides:
        if name not in OVERRIDES:
            raise ValueError(f"overrides: a row cannot set {name!r}; {did_you_mean(name, OVERRIDES)}")


def parameter(value: Any) -> Any:
    """A cell as a parameter: numpy and pandas numbers as Python's, 50.0 as 50 (a gap makes a column float)."""
    value = value.item() if isinstance(value, np.generic) else value
    return int(value) if isinstance(value, float) and value.is_integer() else value
