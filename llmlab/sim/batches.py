"""How the simulated provider works through batches, in neither dialect.

A batch is worked through row by row at an even pace, in an order of its own. What it looks like at a moment follows
from when it was made and from that moment alone, so nothing runs while nobody looks:

    made --start--> rows, one every 1 / rows_per_s seconds --finish--> ended

Rows that the window or a cancellation overtakes are never answered. Batches belong to the simulator, not to a client:
whoever knows the id, or lists them, finds them.
"""

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Literal, TypeAlias

from llmlab.types import JSON

State: TypeAlias = Literal["validating", "failed", "in_progress", "finalizing", "cancelling", "ended"]
Fate: TypeAlias = Literal["done", "expired", "cancelled"]

MB = 1_000_000


@dataclass(frozen=True)
class BatchPace:
    """How fast batches go, and what may go wrong with their rows. The default: 50 rows a second, nothing."""

    start: float = 2.0
    """Seconds until the first row is begun; OpenAI's `validating`."""
    rows_per_s: float = 50.0
    """Rows per second, of each batch."""
    finish: float = 1.0
    """Seconds from the last row to the results."""
    window: float = 86_400.0
    """Seconds after which rows not yet answered expire."""
    cancelling: float = 2.0
    """Seconds that a cancellation takes."""
    failing: float = 0.0
    """Share of rows that end with a server error; the same request, sent again, draws afresh."""
    rows: int | None = None
    """Rows of a batch at most. None: as the real providers, 50,000 (OpenAI) and 100,000 (Anthropic)."""
    bytes: int | None = None
    """Bytes of a batch at most. None: 200 MB (OpenAI) and 256 MB (Anthropic)."""

    def __post_init__(self) -> None:
        for name in ("start", "finish", "cancelling"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"BatchPace: {name} must be 0 s or more, not {getattr(self, name)}")
        for name in ("rows_per_s", "window", "rows", "bytes"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"BatchPace: {name} must be above 0, not {value}")
        if not 0 <= self.failing <= 1:
            raise ValueError(f"BatchPace: failing is a share between 0 and 1, not {self.failing}")

    @classmethod
    def parse(cls, text: str) -> "BatchPace":
        """Read the command line's form: fields joined by commas, `start:1,rows_per_s:100,failing:0.1`.

        Raises:
            ValueError: an item is no field with a number.
        """
        pace = cls()
        known = {each.name for each in fields(cls)}
        for item in filter(None, (each.strip() for each in text.split(","))):
            name, _, value = item.partition(":")
            if name not in known:
                raise ValueError(f"batches: {name!r} is not one of {', '.join(sorted(known))}")
            try:
                number = int(value) if name in ("rows", "bytes") else float(value)
            except ValueError:
                raise ValueError(f"batches: cannot read {item!r}: a number belongs behind the colon") from None
            pace = replace(pace, **{name: number})  # type: ignore[arg-type]
        return pace


@dataclass(frozen=True, slots=True)
class Row:
    """One request of a batch."""

    custom_id: str
    """The client's name for it."""
    body: bytes
    """The request, as it would be sent by itself."""


@dataclass(frozen=True, slots=True)
class Result:
    """What became of a row that was begun."""

    id: str
    """Twenty-four characters."""
    status: int
    """HTTP status that it would have had by itself."""
    body: JSON
    """The answer, or the error."""
    input_tokens: int = 0
    """Tokens read."""
    output_tokens: int = 0
    """Tokens written."""


@dataclass(slots=True)
class Batch:
    """A batch, as it is at any moment. Times are Unix time in seconds."""

    id: str
    """Its name."""
    rows: Sequence[Row]
    """Its requests, in the order in which they are worked on."""
    made: float
    """When."""
    pace: BatchPace
    """How fast."""
    answer: Callable[[bytes], Result]
    """Answers a row, once; counts its tokens."""
    facts: JSON = field(default_factory=dict)
    """What its dialect remembers of it."""
    flaws: list[JSON] = field(default_factory=list)
    """Why it cannot be worked on, if it cannot."""
    cancelled: float | None = None
    """When its cancellation was asked for."""
    results: list[Result] = field(default_factory=list)
    """Of the rows worked on so far, in their order."""

    @property
    def began(self) -> float:
        """When its rows are begun."""
        return self.made + self.pace.start

    @property
    def expires(self) -> float:
        """When rows not yet answered expire."""
        return self.made + self.pace.window

    @property
    def last(self) -> float:
        """When its last row is settled, one way or another."""
        return min(self.began + len(self.rows) / self.pace.rows_per_s, self._cut)

    @property
    def ended(self) -> float:
        """When its results are there."""
        if self.flaws:
            return self.began
        return self.last + (self.pace.finish if self.cancelled is None else self.pace.cancelling)

    @property
    def _cut(self) -> float:
        return self.expires if self.cancelled is None else min(self.cancelled, self.expires)

    def state(self, now: float) -> State:
        """What it is doing."""
        if now >= self.ended:
            return "failed" if self.flaws else "ended"
        if self.cancelled is not None:
            return "cancelling"
        if now < self.began:
            return "validating"
        return "in_progress" if now < self.last else "finalizing"

    def fate(self) -> Fate:
        """What ends it: all is done, or what becomes of the rows that are left over."""
        if self.began + len(self.rows) / self.pace.rows_per_s <= self._cut:
            return "done"
        return "expired" if self.cancelled is None or self.cancelled > self.expires else "cancelled"

    def settle(self, now: float) -> list[Result]:
        """Work on the rows that are due by `now`; gives the results of all so far."""
        if not self.flaws:
            due = (min(now, self._cut) - self.began) * self.pace.rows_per_s
            for row in self.rows[len(self.results) : max(0, math.floor(due + 1e-6))]:
                self.results.append(self.answer(row.body))
        return self.results

    def cancel(self, now: float) -> None:
        """Begin no further row."""
        if self.cancelled is None and now < self.last:
            self.settle(now)
            self.cancelled = now

    def live(self, now: float) -> bool:
        """Whether it is still under way."""
        return now < self.ended


def shuffled(rows: Sequence[Row], seed: str) -> list[Row]:
    """Rows in the order in which they are worked on."""
    return random.Random(seed).sample(rows, len(rows))


class Shelf:
    """The batches of one dialect, newest first."""

    def __init__(self) -> None:
        self._batches: dict[str, Batch] = {}

    def put(self, batch: Batch) -> None:
        """Keep a new one."""
        self._batches = {batch.id: batch, **self._batches}

    def get(self, name: str) -> Batch | None:
        """The one of this id."""
        return self._batches.get(name)

    def drop(self, name: str) -> None:
        """Forget one."""
        del self._batches[name]

    def page(self, after: str | None, limit: int) -> tuple[list[Batch], bool]:
        """Some batches made before the one of id `after` (None: the newest), and whether there are more."""
        every = list(self._batches.values())
        begin = 0 if after is None else 1 + next((n for n, each in enumerate(every) if each.id == after), len(every))
        return every[begin : begin + limit], begin + limit < len(every)
