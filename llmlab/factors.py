"""A grid of factors over rows: every row with every level of every factor, each as often as wanted; as a tidy frame.

    cells      rows, and for each row the levels of template, system, model, temperature, max_tokens, in this order;
               repeats stand together: position = ((((row T + t) S + s) M + m) … ) repeats + r
    columns    the row's label, a column for each factor of several levels, `repeat` from 1, and those of COLUMNS

The order makes what was answered before an interruption comparable: whole rows, with all their levels.
"""

import itertools
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any

import numpy as np
import pandas as pd

from llmlab.columns import COLUMNS, Column
from llmlab.forecast import ASSUMES, Foreseen
from llmlab.frame import Frame, Record, Rows, frame_of, parameter, read_rows, refuse_unknown
from llmlab.settings import HasTarget
from llmlab.types import Prompt

FACTORS = ("template", "system", "model", "temperature", "max_tokens")
"""In the order of the cells."""
ANSWERED_BY = "answered_by"
"""The column of the model that answered, as its provider names it, where `model` is a factor."""
ROW = "row"
"""The column of rows' labels, if their index has no name."""

_DTYPES = {"temperature": "Float64", "max_tokens": "Int64"}
_MEANINGS = {
    "template": "the prompt's template, or its name",
    "system": "the system prompt, or its name; missing without one",
    "model": "the model that was asked, or its name; missing for the lab's own",
    "temperature": "sampling temperature; missing if it was not sent",
    "max_tokens": "output tokens at most; missing if it was not sent",
}
_REPEAT = Column("repeat", "int64", "", "which of the times that the same was asked, from 1")


@dataclass(frozen=True)
class Factor:
    """One factor and its levels."""

    name: str
    """As the argument of `lab.grid`."""
    levels: tuple[Any, ...]
    """Their values."""
    labels: tuple[Any, ...]
    """How the frame shows them."""
    varied: bool
    """Whether it was given as several: then it has a column."""
    named: bool = False
    """Whether the levels have names of the user's."""

    @property
    def column(self) -> Column:
        """Its column."""
        dtype = "string" if self.named else _DTYPES.get(self.name, "string")
        return Column(self.name, dtype, "", _MEANINGS[self.name])


def read_factor(name: str, given: Any) -> Factor:
    """Read what is given for a factor: one value, several in a list, or several by name.

    Raises:
        TypeError, ValueError: there is no level, one is there twice, or their order is not known.
    """
    if isinstance(given, Mapping):
        labels, values = list(given), list(given.values())
        if not all(isinstance(label, str) for label in labels):
            raise TypeError(f"{name} must have texts as names of its levels, not {labels!r:.80}")
    elif given is None or isinstance(given, str | bytes | HasTarget) or not isinstance(given, Iterable):
        return Factor(name, (given,), (_label(given),), varied=False)
    elif isinstance(given, AbstractSet):
        raise TypeError(f"{name} must have its levels in an order: a list, not a set")
    else:
        values = [parameter(value) for value in given]
        labels = [_label(value) for value in values]
    if not values:
        raise ValueError(f"{name} must have at least one level")
    twice = [label for n, label in enumerate(labels) if label in labels[:n]]
    if twice:
        raise ValueError(f"{name} has the level {twice[0]!r:.80} twice; name them: {name}={{'one': …, 'other': …}}")
    return Factor(name, tuple(values), tuple(labels), varied=True, named=isinstance(given, Mapping))


def _label(value: Any) -> Any:
    return value.target.name if isinstance(value, HasTarget) else value


@dataclass
class GridRows(Rows):
    """The cells of a grid, as the rows of a job."""

    keys: pd.Index = field(default_factory=lambda: pd.RangeIndex(0))
    """Labels of the input's rows."""
    factors: Sequence[Factor] = ()
    """In the order of FACTORS."""
    repeat: int = 1
    """How often each cell is asked."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Rows, levels of each factor, repeats."""
        return len(self.keys), *(len(factor.levels) for factor in self.factors), self.repeat

    def level(self, name: str, position: int) -> int:
        """Which level of a factor a position in the job has."""
        place = next(n for n, factor in enumerate(self.factors) if factor.name == name)
        below = prod(self.shape[place + 2 :])
        return position // below % len(self.factors[place].levels)

    def frame(self, settled: Mapping[int, Record]) -> Frame:
        """The result of the settled cells, given by position, in the order of the grid."""
        positions = sorted(settled)
        records = [settled[position] for position in positions]
        where = np.unravel_index(np.array(positions, dtype="int64"), self.shape)
        varied = [n for n, factor in enumerate(self.factors) if factor.varied]
        labels = [[self.factors[n].labels[level] for level in where[n + 1]] for n in varied]
        columns = (*(self.factors[n].column for n in varied), _REPEAT, *self._answers())
        cells = zip(*labels, (where[-1] + 1).tolist(), *_columns(records), strict=True)
        out = frame_of(columns, list(cells), None)
        for n, (name, values) in enumerate(self._keys(where[0])):
            out.insert(n, name, values)
        return self.with_fields(out, records)

    def _answers(self) -> list[Column]:
        taken = {factor.name for factor in self.factors if factor.varied}
        return [replace(each, name=ANSWERED_BY) if each.name in taken else each for each in COLUMNS]

    def _keys(self, rows: Any) -> Iterator[tuple[str, Any]]:
        labels = self.keys.take(rows)
        taken = {*FACTORS, "repeat", ANSWERED_BY, *(column.name for column in COLUMNS)}
        for n in range(labels.nlevels):
            name = labels.names[n]
            own = name if isinstance(name, str) and name not in taken else ""
            yield own or (ROW if labels.nlevels == 1 else f"{ROW}_{n}"), labels.get_level_values(n).array

    def __str__(self) -> str:
        """Its size in words."""
        factors = (f"{len(each.levels)} {each.name}s" for each in self.factors if each.varied)
        repeats = [f"{self.repeat} repeats"] if self.repeat > 1 else []
        return " x ".join([f"{len(self.keys)} rows", *factors, *repeats]) + f" = {self.total:,} calls"


def _columns(records: Sequence[Record]) -> list[tuple[Any, ...]]:
    if not records:
        return [()] * len(COLUMNS)
    return [*zip(*records, strict=True)][: len(COLUMNS)]


def read_grid(
    source: Any,
    factors: Sequence[Factor],
    *,
    repeat: int,
    overrides: Collection[str],
    defaults: Mapping[str, Any],
    max_calls: int,
) -> GridRows:
    """Read what `lab.grid` is given, and check all of it.

    Args:
        source: A Series, DataFrame, list, or one prompt.
        factors: One for each of FACTORS.
        repeat: How often each cell is asked.
        overrides: Columns of a DataFrame that set a row's own parameters, unless they are factors.
        defaults: Parameters of prompts that do not set their own, as in `Prompt.of`.
        max_calls: Calls at most.

    Raises:
        TypeError, ValueError: something is not usable, or the grid is too large.
    """
    for name, value in (("repeat", repeat), ("max_calls", max_calls)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"grid: {name} must be a whole number of at least 1, not {value!r}")
    refuse_unknown(overrides)
    templates, systems, *others = factors
    for each in others:
        for value in each.levels:
            Prompt.of("", **{each.name: None if isinstance(value, HasTarget) else value})
    source = [source] if isinstance(source, str | Prompt) else source
    if not isinstance(source, pd.DataFrame | pd.Series | Collection):
        raise TypeError(
            f"grid takes prompts that are all there, a Series, DataFrame or list, not {type(source).__name__}"
        )
    _refuse_too_many([len(source), *(len(each.levels) for each in factors), repeat], factors, max_calls)
    varied = {factor.name for factor in factors if factor.varied}
    own = [name for name in overrides if name not in varied]
    prompts: list[list[list[Any]]] = []
    keys: pd.Index = pd.RangeIndex(len(source))
    for text in templates.levels:
        prompts.append([])
        for said in systems.levels:
            table = source if text is None else _as_table(source)
            given = {**defaults, **({} if said is None else {"system": said})}
            rows = read_rows(table, template=text, overrides=own, **given)
            keys = keys if rows.index is None else rows.index
            prompts[-1].append(list(rows.items))  # type: ignore[arg-type]  # a sized input's are iterable
    grid = GridRows((), None, len(keys), keys=keys, factors=factors, repeat=repeat)
    return replace(grid, items=_cells(prompts, others, repeat), total=prod(grid.shape))


def _refuse_too_many(shape: Sequence[int], factors: Sequence[Factor], most: int) -> None:
    if prod(shape) > most:
        names = ["rows", *(f"{factor.name}s" for factor in factors), "repeats"]
        sizes = " x ".join(f"{size:,} {name}" for size, name in zip(shape, names, strict=True) if size > 1)
        raise ValueError(f"grid: {sizes} = {prod(shape):,} calls, more than max_calls={most:,}: allow them or ask less")


def _cells(prompts: list[list[list[Prompt]]], others: Sequence[Factor], repeat: int) -> Iterator[Prompt]:
    changes = [
        {
            factor.name: value
            for factor, value in zip(others, values, strict=True)
            if factor.varied and value is not None and not isinstance(value, HasTarget)
        }
        for values in itertools.product(*(factor.levels for factor in others))
    ]
    for row in range(len(prompts[0][0])):
        for base in (by_system[row] for by_template in prompts for by_system in by_template):
            for change in changes:
                yield from itertools.repeat(replace(base, **change) if change else base, repeat)


def _as_table(source: Any) -> Any:
    """A column of texts as a table, so that a template has something to name it by."""
    if isinstance(source, pd.Series):
        return source.to_frame(source.name if isinstance(source.name, str) else "prompt")
    if all(isinstance(each, str) for each in source) and not isinstance(source, pd.DataFrame):
        return pd.DataFrame({"prompt": list(source)})
    return source


# -- beforehand -----------------------------------------------------------------------------------------------

_FIGURES = (
    Column("calls", "int64", "", "calls"),
    Column("input_tokens", "int64", "tokens", "of their prompts, as estimated"),
    Column("output_tokens", "int64", "tokens", "of their answers, as assumed"),
    Column("cost_usd", "float64", "USD", "price of those tokens; missing when it is not known"),
)


@dataclass(frozen=True)
class GridForecast(Foreseen):
    """What a grid will come to. `await` it, or call its `result()`, for itself, as if it were a job."""

    calls: int
    """Calls in all."""
    input_tokens: int
    """Tokens of all prompts, as estimated."""
    output_tokens: int
    """Tokens of all answers, as assumed."""
    cost_usd: float | None
    """Dollars for them; None when a price is not known."""
    cells: Frame
    """The same for each combination of levels, over all rows and repeats."""
    assumes: str = ASSUMES
    """What the figures rest on, for a person."""

    def __str__(self) -> str:
        return f"{self.in_words}\n{self.cells.to_string(index=False, max_colwidth=40)}\n{self.assumes}"

    __repr__ = __str__


def foresee(grid: GridRows, reckon: Callable[[int, Prompt], Sequence[float | None]]) -> GridForecast:
    """Add up what a grid's calls will come to; uses its cells up.

    Args:
        grid: The cells.
        reckon: Gives input tokens, output tokens and dollars of the call at a position.
    """
    levels = [len(factor.levels) for factor in grid.factors]
    sums = np.zeros((prod(levels), 3))
    assert isinstance(grid.items, Iterable)  # noqa: S101  they are all there
    for position, prompt in enumerate(itertools.islice(grid.items, 0, None, grid.repeat)):
        figures = reckon(position * grid.repeat, prompt)  # type: ignore[arg-type]  # a sized input's are prompts
        sums[position % len(sums)] += [np.nan if each is None else each * grid.repeat for each in figures]
    calls = len(grid.keys) * grid.repeat
    varied = [n for n, factor in enumerate(grid.factors) if factor.varied]
    places = np.unravel_index(np.arange(len(sums)), levels)
    records = [
        (*(grid.factors[n].labels[places[n][place]] for n in varied), calls, round(read), round(written),
         None if np.isnan(cost) else float(cost))
        for place, (read, written, cost) in enumerate(sums.tolist())
    ]  # fmt: skip
    cells = frame_of((*(grid.factors[n].column for n in varied), *_FIGURES), records, None)
    cost = cells.cost_usd.sum(skipna=False)
    return GridForecast(
        int(cells.calls.sum()),
        int(cells.input_tokens.sum()),
        int(cells.output_tokens.sum()),
        None if pd.isna(cost) else float(cost),
        cells,
    )
