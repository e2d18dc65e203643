"""What tuning spends of a job's rows, and the job of those that it has left."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pandas as pd

from llmlab.call import NORMAL
from llmlab.frame import COLUMNS, Frame, Rows
from llmlab.steady import LEAST
from llmlab.types import Item

FEWEST, BETTER = 2, 3
"""Numbers without which there is nothing to compare, and that a smaller range is accepted for."""


@dataclass(frozen=True, kw_only=True)
class Rest:
    """How the rows that tuning has left are asked; as `lab.run_many` takes it."""

    stream: bool = False
    """Ask for the answers in pieces."""
    journal: str | Path | None = None
    """A file in which each row is written down."""
    durability: Literal["process", "power"] = "process"
    """What it survives."""
    budget_usd: float | None = None
    """Dollars that these rows may cost."""
    budget_tokens: int | None = None
    """Tokens that they may use."""
    priority: int = NORMAL
    """Place in the lab's line."""
    progress: bool | None = None
    """Show a line of progress."""


def affordable(grid: Sequence[int], rows: int) -> tuple[tuple[int, ...], int]:
    """The numbers that so many rows can measure, and the rows for each.

    A number n needs 60 answered rows in its window, n for the warm-up, and n that are still in flight when it ends. As
    wide a range is kept as leaves three numbers, evenly spread; or else two.

    Raises:
        ValueError: not even two can be measured.
    """
    known = sorted(set(grid))
    for fewest in (BETTER, FEWEST):
        for count in range(len(known), fewest - 1, -1):
            most = rows // _needed(known[count - 1])
            if most >= fewest:
                left = _spread(known[:count], min(count, most))
                return left, rows // len(left) - left[-1]
    if len(known) < FEWEST:
        raise ValueError("concurrency: tuning needs two numbers at least")
    raise ValueError(
        f"{rows} rows are too few to tune on: {FEWEST * _needed(known[1])} are the least; a greater share=, smaller "
        "numbers for concurrency=, or scenario= to tune on a simulated provider"
    )


def _needed(number: int) -> int:
    return LEAST + 2 * number


def _spread(numbers: Sequence[int], count: int) -> tuple[int, ...]:
    """So many of them, the first and the last among them."""
    step = (len(numbers) - 1) / (count - 1)
    return tuple(numbers[round(place * step)] for place in range(count))


def whole(answers: Frame, rest: Frame, index: pd.Index | None, total: int) -> Frame:
    """One frame of two parts by position, in input order, with the input's index."""
    names = [column.name for column in COLUMNS]
    out = pd.concat([answers[names], rest[names]]).sort_index(kind="stable") if len(answers) else rest[names]
    out = out[~out.index.duplicated(keep="last")]
    out.index = pd.RangeIndex(total) if index is None else index
    return out


def unanswered(items: Sequence[Item], answers: Frame) -> list[int]:
    """Positions of the rows that have no answer yet."""
    done = set(answers.index[answers["status"] == "ok"]) if len(answers) else set()
    return [position for position in range(len(items)) if position not in done]


def remaining(items: Sequence[Item], positions: Sequence[int]) -> Rows:
    """Those rows, for a job; its frame has their positions as its index."""
    return Rows([items[position] for position in positions], pd.Index(list(positions), dtype="int64"), len(positions))
