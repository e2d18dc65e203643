"""One line for all calls of a lab, and one synchronous block that asks every rule.

    line empty, all rules say 0     admitted at once
    otherwise                       stands in line, ordered by arrival of the row (retries keep their place)
    a call is settled, a rule       the head is asked again; whoever may go, goes, in order
    changes, or the timer fires
    cancelled in line               leaves it
    cancelled after the grant       what the rules took is given back, the next is asked

All checks and debits happen without an `await` between them, so under asyncio they need no lock.
"""

import asyncio
import heapq
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Protocol, TypeAlias

from llmlab.call import Call, Handler
from llmlab.events import Admitted
from llmlab.types import Reply

Cost: TypeAlias = Mapping[str, float]

_ONE_REQUEST: Cost = {"requests": 1.0}


class Rule(Protocol):
    """Something that may say "not yet". Never awaits; `now` is loop time, seconds."""

    def wait(self, now: float, cost: Cost) -> float:
        """Seconds until this call may go: 0 now, infinity if only somebody's leaving can help."""
        ...

    def take(self, now: float, cost: Cost) -> None:
        """Debit an admitted call."""
        ...

    def settle(self, now: float, cost: Cost, error: BaseException | None) -> None:
        """Note that an admitted call has ended; called exactly once for each `take`."""
        ...

    def watch(self, changed: Callable[[], None]) -> None:
        """Call `changed` when a change of the rule's settings may let somebody in."""
        ...


@dataclass(order=True, slots=True)
class _Waiter:
    seq: int
    turn: int
    cost: Cost = field(compare=False)
    granted: "asyncio.Future[None]" = field(compare=False)


@dataclass
class Admit:
    """Let a call pass when every rule agrees, in order of arrival; settle with the rules when it has ended.

    The rules given are copied: an Admit owns the state of its own.
    """

    rules: tuple[Rule, ...] = ()
    """Asked in this order; all must agree."""
    _line: list[_Waiter] = field(default_factory=list, init=False, repr=False, compare=False)
    _turns: int = field(default=0, init=False, repr=False, compare=False)
    _timer: asyncio.TimerHandle | None = field(default=None, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        self.rules = tuple(replace(rule) for rule in self.rules)  # type: ignore[type-var]
        for rule in self.rules:
            rule.watch(self._pump)

    @property
    def waiting(self) -> int:
        """Calls standing in line."""
        return len(self._line)

    async def __call__(self, call: Call, inner: Handler) -> Reply:
        """Wait for admission, pass the call on, settle."""
        loop = asyncio.get_running_loop()
        arrived = loop.time()
        cost = _ONE_REQUEST
        if self._line or self._wait(arrived, cost) > 0:
            await self._stand_in_line(call, cost)
        else:
            self._take(arrived, cost)
        error: BaseException | None = None
        try:
            now = loop.time()
            call.queue_s += now - arrived
            call.emit(Admitted(call.index, now, now - arrived))
            return await inner(call)
        except BaseException as failure:
            error = failure
            raise
        finally:
            self._settle(loop.time(), cost, error)

    async def _stand_in_line(self, call: Call, cost: Cost) -> None:
        loop = asyncio.get_running_loop()
        self._turns += 1
        waiter = _Waiter(call.seq, self._turns, cost, loop.create_future())
        heapq.heappush(self._line, waiter)
        arrived = loop.time()
        self._pump()
        try:
            await waiter.granted
        except asyncio.CancelledError as gone:
            call.queue_s += loop.time() - arrived
            if waiter.granted.cancelled():
                self._leave(waiter)
            else:
                self._settle(loop.time(), cost, gone)
            raise

    def _leave(self, waiter: _Waiter) -> None:
        # A cancelled waiter elsewhere in the heap is skipped when its turn comes; only the head blocks others.
        if self._line and self._line[0] is waiter:
            self._pump()

    def _pump(self) -> None:
        """Admit from the head of the line until a rule says no."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        while self._line:
            head = self._line[0]
            if head.granted.done():
                heapq.heappop(self._line)
                continue
            loop = head.granted.get_loop()
            now = loop.time()
            wait = self._wait(now, head.cost)
            if wait > 0:
                if wait < math.inf:
                    self._timer = loop.call_at(now + wait, self._pump)
                return
            heapq.heappop(self._line)
            self._take(now, head.cost)
            head.granted.set_result(None)

    def _wait(self, now: float, cost: Cost) -> float:
        longest = 0.0
        for rule in self.rules:
            longest = max(longest, rule.wait(now, cost))
        return longest

    def _take(self, now: float, cost: Cost) -> None:
        for rule in self.rules:
            rule.take(now, cost)

    def _settle(self, now: float, cost: Cost, error: BaseException | None) -> None:
        for rule in self.rules:
            rule.settle(now, cost, error)
        self._pump()
