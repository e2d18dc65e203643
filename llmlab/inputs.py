"""An input read row by row as named values, for templates and functions of which there may be several.

    input                        named values                 what a function gets
    Series, list, iterable       the row by a given name      the row
    DataFrame                    its columns                  a dict of the columns
    iterable of mappings         their keys                   the mapping

`index` is one more name: the row's label, in an iterable its position. Columns `model`, `temperature`, … of a DataFrame
set a row's own parameters, as in `run_many`.
"""

import itertools
from collections.abc import AsyncIterable, AsyncIterator, Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import pandas as pd

from llmlab.frame import OVERRIDES, cells, check_row, parameter, refuse_unknown
from llmlab.types import Message, Prompt, is_missing

T = TypeVar("T")

INDEX = "index"
"""The placeholder of a row's label."""


class Entry(NamedTuple):
    """One row of an input."""

    label: Any
    """Its label in the input's index, or its position."""
    argument: Any
    """What a function is called with."""
    named: Mapping[str, Any]
    """What a template is filled with."""
    own: Mapping[str, Any]
    """Parameters that it sets itself."""


@dataclass
class Inputs:
    """An input, ready to be read row by row."""

    entries: Callable[[], Iterator[Entry]] | AsyncIterator[Entry]
    """The rows, lazily; once only, unless their number is known."""
    index: pd.Index | None
    """The input's index; None: count from 0."""
    total: int | None
    """How many rows; None for a generator."""
    known: list[str] | None = None
    """The names that there are; None: each row has its own."""

    def map(self, function: Callable[[int, Entry], T]) -> Iterator[T] | AsyncIterator[T]:
        """Make something of each row and its position, lazily."""
        if isinstance(self.entries, AsyncIterator):
            return _map(function, self.entries)
        return (function(position, entry) for position, entry in enumerate(self.entries()))

    def check(self, make: Callable[[Entry], T], *, keep: bool = False) -> list[T] | None:
        """Make something of each row before any is used, if their number is known.

        Args:
            make: Makes it.
            keep: Give back what was made: a function should be called once for each row.

        Raises:
            TypeError, ValueError: as `make`, with the row's label in front.
        """
        if self.total is None or isinstance(self.entries, AsyncIterator):
            return None
        made = (check_row(make, entry, entry.label) for entry in self.entries())
        if keep:
            return list(made)
        for _ in made:
            pass
        return None


async def _map(function: Callable[[int, Entry], T], entries: AsyncIterator[Entry]) -> AsyncIterator[T]:
    position = 0
    async for entry in entries:
        yield function(position, entry)
        position += 1


def with_item(source: object, name: str) -> object:
    """A table without a column of that name, with its only column, or the one called `prompt`, under it, too.

    Raises:
        ValueError: which column it is cannot be told.
    """
    if not isinstance(source, pd.DataFrame) or name in source.columns:
        return source
    columns = [str(each) for each in source.columns]
    meant = columns[0] if len(columns) == 1 else "prompt"
    if columns.count(meant) != 1:
        raise ValueError(
            f"map: which column is {{{name}}}? There are {', '.join(map(repr, columns))}: name them in the template"
        )
    return source.assign(**{name: source.iloc[:, columns.index(meant)]})


@dataclass(frozen=True)
class Reader:
    """Reads inputs for a verb."""

    verb: str
    """Its name, for messages."""
    alone: str
    """By which name a row goes that is no mapping."""
    used: Collection[str]
    """The columns of a DataFrame to read."""
    whole: bool = False
    """Read all of them: there is a function."""
    overrides: Collection[str] = OVERRIDES
    """Columns that set a row's own parameters, unless they are used."""

    def read(self, source: object) -> Inputs:
        """Read an input.

        Raises:
            TypeError, ValueError: it is no input, or a DataFrame has a column twice; names it.
        """
        refuse_unknown(self.overrides)
        if isinstance(source, str | bytes | bytearray | Mapping | Message | Prompt):
            raise TypeError(f"{self.verb} takes many items, not one {type(source).__name__}: put it into a list")
        if isinstance(source, pd.DataFrame):
            return self._table(source)
        if isinstance(source, pd.Series):
            return self._sized(source.tolist(), source.index)
        if isinstance(source, Collection):
            return self._sized(list(source), None)
        if isinstance(source, Iterable):
            return Inputs(lambda: map(self._entry, itertools.count(), source), None, None)
        if isinstance(source, AsyncIterable):
            return Inputs(self._counted(source), None, None)
        raise TypeError(f"{self.verb} takes a Series, DataFrame, list or iterable, not {type(source).__name__}")

    def _sized(self, values: list[Any], index: pd.Index | None) -> Inputs:
        labels: Collection[Any] = range(len(values)) if index is None else index
        plain = not any(isinstance(value, Mapping) for value in values)
        known = [self.alone, INDEX] if plain else None
        return Inputs(lambda: map(self._entry, labels, values), index, len(values), known)

    async def _counted(self, source: AsyncIterable[Any]) -> AsyncIterator[Entry]:
        position = 0
        async for value in source:
            yield self._entry(position, value)
            position += 1

    def _entry(self, label: Any, value: Any) -> Entry:
        if isinstance(value, Mapping):
            return Entry(label, value, {INDEX: label, **{str(name): each for name, each in value.items()}}, {})
        return Entry(label, value, {INDEX: label, self.alone: value}, {})

    def _table(self, table: pd.DataFrame) -> Inputs:
        known = [str(name) for name in table.columns]
        own = [name for name in OVERRIDES if name in self.overrides and name in known and name not in self.used]
        wanted = [name for name in dict.fromkeys(known) if self.whole or name in self.used]
        columns = {name: cells(table, known, name) for name in dict.fromkeys([*wanted, *own])}

        def entries() -> Iterator[Entry]:
            for row, label in enumerate(table.index):
                values = {name: columns[name][row] for name in wanted}
                mine = {name: parameter(columns[name][row]) for name in own if not is_missing(columns[name][row])}
                yield Entry(label, values, {INDEX: label, **values}, mine)

        return Inputs(entries, table.index, len(table), list(dict.fromkeys([*known, INDEX])))
