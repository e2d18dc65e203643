"""Who waits for admission, and who is next.

    within a lane              place: the order in which rows were taken up, so that a retry comes back to its old place
    between lanes of a class   self-clocked fair queueing (Golestani 1994): lanes share by tokens, not by how many of
                               their rows happen to stand in line; the lane with the lowest tag goes

                                   tag = start + tokens of its first     start = V when it joins, then its last tag
                                   V = the last tag that went

    between classes            level = priority - whole minutes for which it was passed over, at least 0: urgent ones
                               first, and nobody starves; at the same level classes take turns

A row is passed over while somebody of a more urgent class stands in line with it. Waiting alone does not count: where
few rows a minute may go, all rows of a long job wait for minutes, and a more urgent question must not wait behind them.
"""

import asyncio
import heapq
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from llmlab.call import Lane
from llmlab.rule import Cost

AGE = 60.0
"""Seconds of being passed over that count as much as one class of priority."""


@dataclass(order=True, slots=True)
class Waiter:
    """A call in line."""

    place: int
    """Lower goes first, within a lane."""
    turn: int
    """When it came, to break ties."""
    lane: Lane = field(compare=False)
    """With whom it waits."""
    cost: Cost = field(compare=False)
    """What it is expected to use."""
    bound: Cost = field(compare=False)
    """What it uses at most, for budgets."""
    tokens: float = field(compare=False)
    """What its lane is charged for it."""
    since: float = field(compare=False)
    """On its class's clock of being passed over: when its own waiting began; seconds."""
    granted: "asyncio.Future[Any]" = field(compare=False)
    """Done when it may go, must not, or has left."""


Held: TypeAlias = Callable[[Waiter], bool]
"""Whether something of its lane's own holds a waiter back; may refuse it (`Line.refuse`) on that occasion."""


@dataclass(slots=True)
class _Queue:
    """The waiters of one lane."""

    start: float
    heap: list[Waiter] = field(default_factory=list)
    aside: list[Waiter] = field(default_factory=list)  # paused, each for itself: they hold up nobody

    def first(self, held: Held) -> Waiter | None:
        """Its first; None if it is held back, or there is none."""
        if self.aside:
            self._take_back()
        while self.heap:
            head = self.heap[0]
            if head.granted.done():
                heapq.heappop(self.heap)  # left, or refused meanwhile
            elif not held(head):
                return head
            elif head.lane.held and head.lane.among is not None:
                self.aside.append(heapq.heappop(self.heap))
            elif not head.granted.done():
                return None
        return None

    def _take_back(self) -> None:
        aside, self.aside = self.aside, []
        for waiter in aside:
            if waiter.lane.held and not waiter.granted.done():
                self.aside.append(waiter)
            else:
                heapq.heappush(self.heap, waiter)


@dataclass(slots=True)
class _Class:
    """The lanes of one priority."""

    priority: int
    queues: dict[Lane, _Queue] = field(default_factory=dict)
    virtual: float = 0.0  # V
    passed: float = 0.0  # seconds for which somebody more urgent stood in line
    turn: int = 0  # when it last had one

    def first(self, held: Held) -> Waiter | None:
        """Who is next of this class."""
        best: Waiter | None = None
        lowest = (math.inf, 0, 0)
        for lane, queue in tuple(self.queues.items()):
            head = queue.first(held)
            if head is not None:
                rank = (queue.start + head.tokens, head.place, head.turn)
                if rank < lowest:
                    best, lowest = head, rank
            elif queue.heap or queue.aside:
                queue.start = max(queue.start, self.virtual)  # nobody saves up turns while he is held back
            else:
                self.queues.pop(lane, None)
        return best

    def level(self, head: Waiter) -> int:
        return max(0, self.priority - int((self.passed - head.since) / AGE))


class Line:
    """Waiters by class and lane. Neither waits nor reads a clock; `now` is loop time, seconds."""

    def __init__(self) -> None:
        self.waiting = 0
        """Calls in line that have not left."""
        self._classes: dict[int, _Class] = {}
        self._turns = 0
        self._urgent: float = math.inf  # the most urgent class of those who could go when they were last looked at
        self._at = 0.0  # when the clocks of being passed over were last set

    def join(self, place: int, lane: Lane, cost: Cost, bound: Cost, *, now: float, waited: float = 0.0) -> Waiter:
        """Stand in line; the waiter's future belongs to the running loop.

        Args:
            place: Lower goes first, within the lane.
            lane: With whom it waits.
            cost: What it is expected to use; the lane is charged its `total_tokens`, or else 1.
            bound: What it uses at most.
            now: Loop time.
            waited: Seconds for which it has waited before, as a retry or elsewhere; they count as passed over.
        """
        self._set_clocks(now)
        group = self._classes.get(lane.priority)
        if group is None:
            group = self._classes[lane.priority] = _Class(lane.priority)
        queue = group.queues.get(lane.turns)
        if queue is None:
            queue = group.queues[lane.turns] = _Queue(group.virtual)
        self._turns += 1
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        tokens = cost.get("total_tokens", 1.0)
        waiter = Waiter(place, self._turns, lane, cost, bound, tokens, group.passed - waited, future)
        heapq.heappush(queue.heap, waiter)
        self.waiting += 1
        return waiter

    def first(self, now: float, held: Held) -> Waiter | None:
        """Who is next of those that nothing of their own lane's holds back; None: nobody."""
        self._set_clocks(now)
        best: Waiter | None = None
        lowest = (math.inf, 0, 0)
        self._urgent = math.inf
        for group in self._classes.values():
            head = group.first(held) if group.queues else None
            if head is not None:
                self._urgent = min(self._urgent, group.priority)
                rank = (group.level(head), group.turn, group.priority)
                if rank < lowest:
                    best, lowest = head, rank
        return best

    def admit(self, waiter: Waiter, result: object) -> None:
        """Let go who is next."""
        group = self._classes[waiter.lane.priority]
        queue = group.queues[waiter.lane.turns]
        heapq.heappop(queue.heap)
        queue.start += waiter.tokens
        group.virtual = max(group.virtual, queue.start)
        self._turns += 1
        group.turn = self._turns
        self._count_out()
        waiter.granted.set_result(result)

    def leads(self, waiter: Waiter) -> bool:
        """Whether it is the first of its lane. If it is not, its coming and going change nothing for others."""
        queue = self._queue(waiter.lane)
        return queue is not None and bool(queue.heap) and queue.heap[0] is waiter

    def leave(self, waiter: Waiter) -> bool:
        """Note that a waiter is gone, whose future is done; whether it was the first of its lane."""
        led = self.leads(waiter)
        self._count_out()
        return led

    def refuse(self, waiter: Waiter, error: BaseException) -> None:
        """Send a waiter home."""
        self._count_out()
        waiter.granted.set_exception(error)

    def dismiss(self, error: Callable[[], BaseException]) -> None:
        """Send everybody home, each with an error of its own."""
        for waiter in self._all():
            self.refuse(waiter, error())

    def first_of(self, lane: Lane) -> Waiter | None:
        """The first of a lane; None: none of it stands in line."""
        queue = self._queue(lane)
        if queue is None:
            return None
        aside = next((waiter for waiter in queue.aside if waiter.lane is lane), None)
        return aside or queue.first(lambda _: False)

    def others(self, lane: Lane) -> bool:
        """Whether anybody of another lane may stand in line."""
        return any(
            queue.heap for group in self._classes.values() for key, queue in group.queues.items() if key is not lane
        )

    def _queue(self, lane: Lane) -> _Queue | None:
        group = self._classes.get(lane.priority)
        return None if group is None else group.queues.get(lane.turns)

    def _all(self) -> list[Waiter]:
        queues = [queue for group in self._classes.values() for queue in group.queues.values()]
        return [waiter for queue in queues for waiter in sorted(queue.heap + queue.aside) if not waiter.granted.done()]

    def _count_out(self) -> None:
        self.waiting -= 1
        if not self.waiting:  # who comes next finds all equal, and a long life leaves nothing behind
            self._urgent = math.inf
            for group in self._classes.values():
                group.queues.clear()

    def _set_clocks(self, now: float) -> None:
        for group in self._classes.values():
            if group.priority > self._urgent:
                group.passed += now - self._at
        self._at = now
