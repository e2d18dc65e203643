"""What a job is made of: what it is to do, and who can retune it."""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Literal, Protocol

from llmlab.call import COMMON, Lane
from llmlab.events import Bus
from llmlab.flow import Flow
from llmlab.frame import Rows
from llmlab.keeper import Keeper
from llmlab.load import Load
from llmlab.views import Maker


@dataclass
class Order:
    """What a job is to do."""

    rows: Rows
    """The input."""
    stream: bool = False
    """Ask for the answers in pieces."""
    seed: int | None = None
    """Seed of the job's randomness. None: from the system."""
    view: Maker | None = None
    """Makes what shows the job while it runs. None: it is shown only when it is displayed."""
    places: Iterator[int] = field(default_factory=itertools.count)
    """Places in the lab's line, one for each row taken."""
    journal: Callable[[Bus], Keeper] | None = None
    """Makes the job's hold on its journal, if it has one."""
    lane: Lane = COMMON
    """With whom its rows share their place in the lab's line."""
    flow: Flow | None = None
    """Holds the answers back while their reader is behind."""

    def load(self) -> Load:
        """The rows for a feeder."""
        rows = self.rows
        return Load(rows.items, rows.total, self.places, self.stream, self.seed, self.flow, self.lane, rows.reader)


class Tuner(Protocol):
    """What has a concurrency to be read and set: a Lab."""

    @property
    def concurrency(self) -> int | None:
        """Requests in flight at most."""
        ...

    @concurrency.setter
    def concurrency(self, limit: int | Literal["auto"]) -> None: ...
