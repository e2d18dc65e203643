"""Chains: steps of which each asks with the answer to the one before.

Steps of a chain run in sequence, chains side by side. A step that fails ends its own chain: the steps after it become
rows with status `cancelled` and error NotAsked, so that every chain has a row for each of its steps.

    place in the result      chain and step, from 0; rows of one chain stand together
    position in the job      the same order: the row at place n of a whole result is position n of `job.attempts`
"""

from bisect import bisect_right
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any, TypeAlias

import pandas as pd

from llmlab import call as calls
from llmlab.columns import COLUMNS, Column
from llmlab.errors import NotAsked
from llmlab.frame import Frame, Record, Rows, frame_of
from llmlab.inputs import Entry, Reader
from llmlab.plan import Plan, Script
from llmlab.step import Given, Step
from llmlab.types import Item, Prompt, Schema, is_missing

CONTEXT = "context"
"""The placeholder of what goes from step to step."""
INPUT = "prompt"
"""The column of a table that is a chain's first context."""

Values: TypeAlias = Mapping[str, Any]
Chain: TypeAlias = Sequence[Given]
"""Templates, or functions that make a prompt of the context."""
Chains: TypeAlias = Sequence[Chain] | Mapping[str, Chain]
"""Several, by position or by name."""

_NO_COLUMN = "in a chain 'context' is the answer before, not a column: rename the column"
_STEP = Column("step", "int64", "", "which step of the chain, from 0")
_NUMBER = Column("chain", "int64", "", "which chain, from 0; of a table the row's position")
_NAME = Column("chain", "string", "", "which chain")


@dataclass
class ChainRows(Rows):
    """Rows that are the steps of chains."""

    starts: Sequence[int] | int = 1
    """Position of each chain's first step; or how many steps each has, if all have as many."""
    names: Sequence[str] | None = None
    """Of the chains, if they have any."""
    per_row: bool = True
    """Whether a chain is a row of the input, and goes by its label."""

    def place(self, position: int) -> tuple[int, int]:
        """The chain and the step that a position in the job stands for."""
        if isinstance(self.starts, int):
            return divmod(position, self.starts)
        number = bisect_right(self.starts, position) - 1
        return number, position - self.starts[number]

    def frame(self, settled: Mapping[int, Record]) -> Frame:
        """The result of the settled rows, given by position: `chain`, `step` and the columns of COLUMNS."""
        positions = sorted(settled)
        places = [self.place(position) for position in positions]
        numbers = [number for number, _ in places]
        chains = numbers if self.names is None else [self.names[number] for number in numbers]
        records = [
            (chain, step, *settled[position])
            for chain, (_, step), position in zip(chains, places, positions, strict=True)
        ]
        columns = (_NUMBER if self.names is None else _NAME, _STEP, *COLUMNS)
        out = frame_of(columns, records, self._labels(positions, numbers))
        return self.with_fields(out, [settled[position] for position in positions])

    def _labels(self, positions: list[int], numbers: list[int]) -> pd.Index:
        if not self.per_row:
            whole = positions == list(range(self.total or 0))
            return pd.RangeIndex(len(positions)) if whole else pd.Index(positions, dtype="int64")
        return pd.Index(numbers, dtype="int64") if self.index is None else self.index.take(numbers)


class Steps:
    """The steps of a chain, and the script that takes them one by one.

    Args:
        chain: Templates, or functions that make a prompt of the context.
        name: What the user calls it, for messages.

    Raises:
        TypeError, ValueError: it is no list of steps, or a step is neither template nor function; names it.
    """

    def __init__(self, chain: object, name: str = "chain") -> None:
        if isinstance(chain, str) or not isinstance(chain, Sequence):
            raise TypeError(f"{name} must be a list of steps, ['Translate: {{context}}', …], not {chain!r:.80}")
        if not chain:
            raise ValueError(f"{name} must have at least one step")
        self._steps = tuple(Step(f"{name}[{number}]", each) for number, each in enumerate(chain))

    @property
    def calls(self) -> bool:
        """Whether the first step is a function."""
        return self._steps[0].template is None

    def __len__(self) -> int:
        return len(self._steps)

    @property
    def columns(self) -> set[str]:
        """The names that templates use."""
        return {name for step in self._steps for name in step.columns}

    @property
    def known_as(self) -> list[str]:
        """The steps by names that are the same in the next run, for the settings of a journal."""
        return [step.known_as for step in self._steps]

    def check(self, known: Collection[str]) -> None:
        """Complain about templates that use names that are not known, or none.

        Args:
            known: The names that the first step may use; those after it may use the context, too.

        Raises:
            ValueError: the first of them; names it.
        """
        for step in self._steps:
            step.check(known)
            known = list(dict.fromkeys([*known, CONTEXT]))

    def begin(self, values: Values, defaults: Values) -> Prompt:
        """What is asked first.

        Raises:
            TypeError, ValueError: it is no prompt, or a later step lacks a value other than the context.
        """
        for step in self._steps[1:]:
            if step.template is not None:
                step.template.fill({**values, CONTEXT: ""})
        if self.calls and CONTEXT not in values:
            raise ValueError(
                f"{self._steps[0].name} is a function of the context: there is no column {INPUT!r} to begin with"
            )
        return self._steps[0].make(values.get(CONTEXT), values, defaults)

    def script(
        self, start: int, values: Values, defaults: Values, first: Item, *, schema: Schema | None = None
    ) -> Script:
        """Ask step by step.

        Args:
            start: Position of the first step.
            values: What templates are filled with.
            defaults: Parameters of the prompts, as in `Prompt.of`.
            first: What is asked first.
            schema: The form that the answer to the last step is to have.
        """
        last, item = len(self._steps) - 1, first
        for number in range(last + 1):
            if number == last and schema is not None and isinstance(item, Prompt):
                item = replace(item, schema=schema)
            outcome = yield start + number, item
            if outcome.reply is None:
                lost = NotAsked(f"not asked: step {number} of its chain has no answer")
                for later in range(number + 1, last + 1):
                    yield start + later, lost
                return
            if number < last:
                item = _attempt(self._steps[number + 1], {**values, CONTEXT: outcome.reply.content}, defaults)


def _attempt(step: Step, values: Values, defaults: Values) -> Item:
    try:
        return step.make(values[CONTEXT], values, defaults)
    except Exception as error:  # noqa: BLE001  what a function makes of an answer is that row's trouble
        return error


# -- many inputs, one chain -----------------------------------------------------------------------------------


def read_chain(
    source: object,
    chain: object,
    *,
    overrides: Collection[str],
    defaults: Values,
    reader: calls.Reader | None = None,
) -> ChainRows:
    """Read an input of `run_many` of which each row begins a chain.

    Inputs whose length is known are checked whole, before anything is sent; a generator's rows when they come.

    Args:
        source: As in `run_many`.
        chain: The steps.
        overrides: Columns that set a row's own parameters.
        defaults: Parameters of rows that do not set their own, as in `Prompt.of`.
        reader: Reads the answers to last steps into what was asked for. None: they are text.

    Raises:
        TypeError, ValueError: the input, a row or a step is not usable; names it.
    """
    steps = Steps(chain)
    if isinstance(source, pd.DataFrame) and CONTEXT in map(str, source.columns) and CONTEXT in steps.columns:
        raise ValueError(_NO_COLUMN)
    inputs = Reader("run_many", CONTEXT, {*steps.columns - {CONTEXT}, INPUT}, overrides=overrides).read(source)
    if inputs.known is not None:
        steps.check(_names(inputs.known))
    first = inputs.check(lambda entry: steps.begin(_values(entry), {**defaults, **entry.own}), keep=steps.calls)

    schema = None if reader is None else reader.schema

    def script(row: int, entry: Entry) -> Script:
        own, start = {**defaults, **entry.own}, row * len(steps)
        try:
            values = _values(entry)
            begin = steps.begin(values, own) if first is None else first[row]
        except Exception as error:  # noqa: BLE001  rows of a generator are seen when their turn comes
            return steps.script(start, entry.named, own, error)
        return steps.script(start, values, own, begin, schema=schema)

    total = None if inputs.total is None else inputs.total * len(steps)
    return ChainRows(Plan([inputs.map(script)]), inputs.index, total, reader, starts=len(steps))


def _names(known: list[str]) -> list[str]:
    """The names that the first step may use: a table's column `prompt` goes by that of the context, too."""
    return [*known, CONTEXT] if INPUT in known else known


def _values(entry: Entry) -> Values:
    """What the templates of a row's chain are filled with."""
    values = entry.named
    if not isinstance(entry.argument, Mapping):
        if not isinstance(entry.argument, str):
            kind = "a missing value (None or NaN)" if is_missing(entry.argument) else type(entry.argument).__name__
            raise TypeError(f"a chain begins with a text, not {kind}")
        return values
    if CONTEXT in values:
        raise ValueError(_NO_COLUMN)
    return {**values, CONTEXT: values[INPUT]} if INPUT in values else values


# -- one input, many chains -----------------------------------------------------------------------------------


def read_chains(
    text: object, chains: object, *, defaults: Values, reader: calls.Reader | None = None
) -> tuple[ChainRows, dict[str, list[str]]]:
    """Read what `run_chains` is given.

    Args:
        text: The first context of all chains.
        chains: The chains, by position or by name.
        defaults: Parameters of the prompts, as in `Prompt.of`.
        reader: Reads the answers to last steps into what was asked for. None: they are text.

    Returns:
        The rows, and the steps of each chain for the settings of a journal.

    Raises:
        TypeError, ValueError: the text, a chain or a step is not usable; names it.
    """
    if not isinstance(text, str):
        raise TypeError(f"run_chains takes one text, not {type(text).__name__}; for many use run_many(…, chain=[…])")
    named = _named(chains)
    read = [Steps(each, f"chains[{name!r}]") for name, each in named.items()]
    values, schema = {CONTEXT: text}, None if reader is None else reader.schema
    starts = [0, *accumulate(map(len, read))]
    scripts = []
    for start, steps in zip(starts, read, strict=False):
        steps.check([CONTEXT])
        scripts.append(steps.script(start, values, defaults, steps.begin(values, defaults), schema=schema))
    names = list(named) if isinstance(chains, Mapping) else None
    rows = ChainRows(Plan([scripts]), None, starts[-1], reader, starts=starts[:-1], names=names, per_row=False)
    return rows, {str(name): steps.known_as for name, steps in zip(named, read, strict=True)}


def _named(chains: object) -> dict[Any, Any]:
    if isinstance(chains, Mapping):
        named = dict(chains)
        if not all(isinstance(name, str) for name in named):
            raise TypeError(f"chains must have texts as names, not {list(named)!r:.80}")
    elif isinstance(chains, str) or not isinstance(chains, Sequence):
        raise TypeError(f"chains must be a list of chains, each a list of steps, not {chains!r:.80}")
    else:
        named = dict(enumerate(chains))
    if not named:
        raise ValueError("chains must have at least one chain")
    if any(isinstance(each, str) or callable(each) for each in named.values()):
        raise TypeError("chains must be a list of lists of steps; for one chain write chains=[[…]]")
    return named
