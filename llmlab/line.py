"""Who waits for admission, and who is next.

What decides:

    within a lane      place: the order in which rows were taken up, so that a retry comes back to its old place
    between lanes      level = priority - (seconds waited by the lane's first) / AGE, whole levels only: urgent ones
                       first, and nobody starves, as who has waited a minute counts as one class more urgent
    at the same level  start-time fair queueing (Goyal, Vin, Cheng 1996): the lane with the lowest start tag goes, so
                       that lanes share by tokens, not by how many of their rows happen to stand in line

    start = max(V, finish of the lane's last)      finish = start + tokens      V = start of the last who left
"""

import asyncio
import heapq
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from llmlab.call import Lane

Cost: TypeAlias = Mapping[str, float]

AGE = 60.0
"""Seconds of waiting that count as much as one class of priority."""


@dataclass(order=True, slots=True)
class Waiter:
    """A call in line."""

    place: int
    """Lower goes first, within a lane."""
    turn: int
    """When it came, to break ties."""
    since: float = field(compare=False)
    """Loop time from which its waiting counts."""
    lane: Lane = field(compare=False)
    """With whom it waits."""
    cost: Cost = field(compare=False)
    """What it is expected to use."""
    bound: Cost = field(compare=False)
    """What it uses at most, for budgets."""
    granted: "asyncio.Future[Any]" = field(compare=False)
    """Done when it may go, must not, or has left."""


@dataclass(slots=True)
class _Row:
    """The waiters of one lane."""

    lane: Lane
    heap: list[Waiter] = field(default_factory=list)
    finish: float = 0.0

    def head(self) -> Waiter | None:
        while self.heap and self.heap[0].granted.done():
            heapq.heappop(self.heap)  # left meanwhile
        return self.heap[0] if self.heap else None


class Line:
    """Waiters by lane. Neither waits nor reads a clock."""

    def __init__(self) -> None:
        self.waiting = 0
        """Calls in line that have not left."""
        self._rows: dict[Lane, _Row] = {}
        self._turns = 0
        self._virtual = 0.0  # V

    def join(self, place: int, since: float, lane: Lane, cost: Cost, bound: Cost) -> Waiter:
        """Stand in line; the waiter's future belongs to the running loop."""
        self._turns += 1
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        waiter = Waiter(place, self._turns, since, lane, cost, bound, future)
        row = self._rows.get(lane)
        if row is None:
            row = self._rows[lane] = _Row(lane)
        heapq.heappush(row.heap, waiter)
        self.waiting += 1
        return waiter

    def leave(self, waiter: Waiter) -> bool:
        """Note that a waiter is gone, whose future is done; whether it was the first of its lane."""
        self.waiting -= 1
        row = self._rows.get(waiter.lane)
        return row is not None and bool(row.heap) and row.heap[0] is waiter

    def first(self, now: float, held: Callable[[Waiter], bool]) -> Waiter | None:
        """Who is next of those that their own lane's budget does not hold; None: nobody."""
        best: Waiter | None = None
        lowest: tuple[float, float, int, int] | None = None
        for row in tuple(self._rows.values()):
            head = row.head()
            if head is None:
                if row.finish <= self._virtual:  # it would start at V as a new lane does
                    del self._rows[row.lane]
                continue
            rank = (_level(head, now), max(self._virtual, row.finish), head.place, head.turn)
            if (lowest is None or rank < lowest) and not held(head):
                best, lowest = head, rank
        return best

    def admit(self, waiter: Waiter, result: object) -> None:
        """Let the first of a lane go."""
        row = self._rows[waiter.lane]
        heapq.heappop(row.heap)
        self._virtual = max(self._virtual, row.finish)
        row.finish = self._virtual + waiter.cost.get("total_tokens", 1.0)
        self.waiting -= 1
        waiter.granted.set_result(result)

    def dismiss(self, error: Callable[[], BaseException], lane: Lane | None = None) -> None:
        """Send everybody home, or a lane's waiters, each with an error of its own."""
        for waiter in self._members(lane):
            if not waiter.granted.done():
                self.waiting -= 1
                waiter.granted.set_exception(error())

    def _members(self, lane: Lane | None) -> Iterator[Waiter]:
        for row in [row for row in self._rows.values() if lane is None or row.lane is lane]:
            heap, row.heap = row.heap, []
            yield from sorted(heap)


def _level(waiter: Waiter, now: float) -> int:
    return waiter.lane.priority - int((now - waiter.since) / AGE)
