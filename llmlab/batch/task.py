"""What a batch job is given to do, what there is to see of it, and who is told."""

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from llmlab.batch.manifest import Manifest
from llmlab.events import Bus
from llmlab.keeper import Keeper
from llmlab.providers.batches import Status
from llmlab.types import Item, Outcome

T = TypeVar("T")

BREATH = 64
"""Rows handled in one go before the loop may do something else."""


@dataclass
class Task:
    """What a batch job is to do."""

    manifest: Manifest
    """Its rows, as far as they are known."""
    source: Iterable[Item] | AsyncIterable[Item]
    """Rows that are still to be read into it."""
    todo: Sequence[int] | None
    """Positions of the rows to submit. None: all."""
    follow: Sequence[str]
    """Batches to take up."""
    carried: set[int]
    """Rows that are settled already."""
    most_rows: int
    """Rows of a batch at most."""
    keeper: Keeper | None
    """Where rows are written down before they are reported."""
    sized: bool
    """Whether the source is known to end."""


@dataclass
class Board:
    """What there is to see of it."""

    batches: dict[str, Status] = field(default_factory=dict)
    """How each batch stood when it was last looked at, by its id."""
    trouble: str | None = None
    """Why the last look failed, if it did."""


@dataclass
class Told:
    """Who is told of what."""

    bus: Bus
    """The job's events."""
    keep: Callable[[Outcome], object]
    """Told of each row as it is settled."""
    total: Callable[[int], object]
    """Told how many rows there are."""
    made: Callable[[], object]
    """Called once all batches are made, or none will be."""
    paused: Callable[[], bool]
    """Asked whether nothing is to be sent for now."""


async def breathing(items: Iterable[T]) -> AsyncIterator[T]:
    """The same items; the loop may do something else now and then."""
    for number, item in enumerate(items, 1):
        yield item
        if number % BREATH == 0:
            await asyncio.sleep(0)
