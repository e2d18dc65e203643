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
from llmlab.errors import LLMError, Rejected
from llmlab.estimate import Estimate, Estimator
from llmlab.events import Admitted
from llmlab.types import Reply

Cost: TypeAlias = Mapping[str, float]
Levels: TypeAlias = Mapping[str, tuple[float, float, float]]
Permits: TypeAlias = tuple[object, ...]

_ONE_REQUEST: Cost = {"requests": 1.0}


class Rule(Protocol):
    """Something that may say "not yet". Never awaits; `now` is loop time, seconds."""

    def wait(self, now: float, cost: Cost) -> float:
        """Seconds until this call may go: 0 now, infinity if only somebody's leaving can help."""
        ...

    def take(self, now: float, cost: Cost) -> object:
        """Debit an admitted call; what it returns is handed back to `settle` as the permit."""
        ...

    def settle(
        self,
        now: float,
        cost: Cost,
        error: BaseException | None,
        used: Cost | None,
        levels: Levels | None,
        sent: float | None,
        permit: object,
    ) -> None:
        """Note that an admitted call has ended; called exactly once for each `take`.

        Args:
            now: Loop time.
            cost: As given to `take`.
            error: Why it failed; None if it did not.
            used: What it has really used, in the dimensions of `cost`; None if unknown.
            levels: What the provider said of its limits; None if nothing.
            sent: When the request was sent; None if it never was.
            permit: What `take` returned.
        """
        ...

    def refuse(self, now: float) -> LLMError | None:
        """Why those who wait had better give up; None: waiting makes sense."""
        ...

    def watch(self, changed: Callable[[], None]) -> None:
        """Call `changed` when a change of the rule's settings may let somebody in."""
        ...


@dataclass(order=True, slots=True)
class _Waiter:
    seq: int
    turn: int
    cost: Cost = field(compare=False)
    granted: "asyncio.Future[Permits]" = field(compare=False)


@dataclass
class Admit:
    """Let a call pass when every rule agrees, in order of arrival; settle with the rules when it has ended.

    The rules given are copied: an Admit owns the state of its own.
    """

    rules: tuple[Rule, ...] = ()
    """Asked in this order; all must agree."""
    estimator: Estimator | None = None
    """Guesses a call's tokens before it is sent. None: calls cost one request and nothing else."""
    _line: list[_Waiter] = field(default_factory=list, init=False, repr=False, compare=False)
    _turns: int = field(default=0, init=False, repr=False, compare=False)
    _timer: asyncio.TimerHandle | None = field(default=None, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        self.rules = tuple(replace(rule) for rule in self.rules)  # type: ignore[type-var]
        self.estimator = None if self.estimator is None else replace(self.estimator)
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
        call.sent = call.usage = call.levels = None
        cost = self._cost(call)
        if self._line or self._wait(arrived, cost) > 0:
            permits = await self._stand_in_line(call, cost)
        else:
            permits = self._take(arrived, cost)
        call.probe = any(getattr(permit, "probe", False) for permit in permits)
        error: BaseException | None = None
        now = loop.time()
        try:
            call.queue_s += now - arrived
            call.emit(Admitted(call.index, now, now - arrived))
            return await inner(call)
        except BaseException as failure:
            error = failure
            raise
        finally:
            if call.sent is None and not isinstance(error, asyncio.CancelledError | Rejected):
                call.sent = now  # by an endpoint that keeps no account of it
            self._settle(loop.time(), call, cost, permits, error)

    async def _stand_in_line(self, call: Call, cost: Cost) -> Permits:
        loop = asyncio.get_running_loop()
        self._turns += 1
        waiter = _Waiter(call.seq, self._turns, cost, loop.create_future())
        heapq.heappush(self._line, waiter)
        arrived = loop.time()
        self._pump()
        try:
            return await waiter.granted
        except asyncio.CancelledError as gone:
            call.queue_s += loop.time() - arrived
            if waiter.granted.cancelled():
                self._leave(waiter)
            elif waiter.granted.exception() is None:
                self._settle(loop.time(), call, cost, waiter.granted.result(), gone)
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
                if not self._refuse(now) and wait < math.inf:
                    self._timer = loop.call_at(now + wait, self._pump)
                return
            heapq.heappop(self._line)
            head.granted.set_result(self._take(now, head.cost))

    def _refuse(self, now: float) -> bool:
        """Send everybody home if a rule says that waiting is pointless."""
        for rule in self.rules:
            if rule.refuse(now) is not None:
                line, self._line = self._line, []
                for waiter in line:
                    if not waiter.granted.done():
                        waiter.granted.set_exception(rule.refuse(now) or LLMError("refused"))
                return True
        return False

    def _cost(self, call: Call) -> Cost:
        if self.estimator is None:
            return _ONE_REQUEST
        return self.estimator.cost(call.prompt, call.prompt.model or "")

    def _wait(self, now: float, cost: Cost) -> float:
        longest = 0.0
        for rule in self.rules:
            longest = max(longest, rule.wait(now, cost))
        return longest

    def _take(self, now: float, cost: Cost) -> Permits:
        return tuple([rule.take(now, cost) for rule in self.rules])

    def _settle(self, now: float, call: Call, cost: Cost, permits: Permits, error: BaseException | None) -> None:
        used: Cost | None = None
        if (usage := call.usage) is not None and isinstance(cost, Estimate) and self.estimator is not None:
            if error is None:  # what a broken answer had come to says nothing about how long answers are
                self.estimator.learn(cost, usage)
            used = {
                "requests": 1.0,
                "input_tokens": float(usage.input_tokens),
                "output_tokens": float(usage.output_tokens),
                "total_tokens": float(usage.input_tokens + usage.output_tokens),
            }
        for rule, permit in zip(self.rules, permits, strict=True):
            rule.settle(now, cost, error, used, call.levels, call.sent, permit)
        self._pump()
