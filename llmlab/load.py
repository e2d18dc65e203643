"""What a feeder is given: the rows of a job, the ground they run on, and where they are written down."""

from collections.abc import AsyncIterable, Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

from llmlab.call import COMMON, Handler, Lane, Reader
from llmlab.flow import Flow
from llmlab.plan import Plan
from llmlab.policies.admit import Admit
from llmlab.rules.adaptive import Adaptive
from llmlab.rules.slots import Slots
from llmlab.types import Item, Outcome, Prompt


@dataclass
class Ground:
    """What a job runs on, handed over by the lab when the job starts on the lab's loop."""

    handler: Handler
    """The strategy's stack around the provider."""
    slots: Slots | Adaptive | None
    """The stack's limit of requests in flight, if it has one."""
    lines: tuple[tuple[str, Admit], ...] = ()
    """The line of each target, by its name: "provider:model"."""
    rows_per_request: int = 1
    """Rows that may share a request: so many more are taken, for requests to be had."""


@dataclass
class Load:
    """The rows of one job."""

    items: Iterable[Item] | AsyncIterable[Item] | Plan
    """The rows, lazily."""
    total: int | None
    """How many; None if unknown. If known, rows that a stop keeps from being taken are marked, too."""
    places: Iterator[int]
    """Places in the lab's line, one for each row taken."""
    stream: bool = False
    """Ask for the answers in pieces."""
    seed: int | None = None
    """Seed of the job's randomness. None: from the system."""
    flow: Flow | None = None
    """Holds the answers back while their reader is behind. None: nobody reads them piece by piece."""
    lane: Lane = COMMON
    """With whom the rows share their place in the lab's line."""
    reader: Reader | None = None
    """Reads the answers into what was asked for. None: they are text."""


class Work(Protocol):
    """What settles a job's rows, each exactly once; see `llmlab.feeder.Feeder`. Lives on the lab's loop."""

    async def go(self) -> None:
        """Settle all rows, or as many as there are until somebody stops it."""
        ...

    def stop(self, reason: str) -> None:
        """Bring it to an end soon; rows not yet settled become `cancelled`."""
        ...

    def keep_only(self, index: int) -> None:
        """Go on with one row alone."""
        ...

    def drop(self, index: int) -> None:
        """Cancel one row."""
        ...

    @property
    def waits_for(self) -> str:
        """What the job waits for while nobody of it stands in line."""
        ...


class Store(Protocol):
    """Where rows are written down before they are reported; see `llmlab.keeper.Keeper`."""

    @property
    def full(self) -> bool:
        """Whether no further rows should be taken for now."""
        ...

    @property
    def has_a_chunk(self) -> bool:
        """Whether it is time to `recall`."""
        ...

    def knows(self, index: int, item: object) -> bool:
        """Note a row that is taken up; True if it is answered already, and `recall` will report it."""
        ...

    async def recall(self, announce: Callable[[Outcome], None]) -> Mapping[int, Prompt]:
        """Report the rows answered already; gives back those that must be asked after all."""
        ...

    def keep(self, outcome: Outcome, announce: Callable[[Outcome], None]) -> None:
        """Write an outcome down, and report it when it is safe."""
        ...

    async def close(self, announce: Callable[[Outcome], None], *, at_once: bool) -> None:
        """Report what is still to be reported, and let go."""
        ...
