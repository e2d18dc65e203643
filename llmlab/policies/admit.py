"""One line for all calls of a lab, and one synchronous block that asks every rule.

    line empty, all rules say 0     admitted at once
    otherwise                       stands in line (`llmlab.line` says who is next)
    a call is settled, a rule       the first is asked again; whoever may go, goes, in order
    changes, or the timer fires
    the first may not go            nobody passes it: a large request would starve. But a lane that its own budget
                                    holds, or that the user has paused, holds nobody else
    cancelled in line               leaves it
    cancelled after the grant       what the rules took is given back, the next is asked
    the line is full                refused with QueueFull, unless its lane is patient (held back elsewhere), or it
                                    was here before: a retry keeps its place

All checks and debits happen without an `await` between them, so under asyncio they need no lock.
"""

import asyncio
import math
from dataclasses import dataclass, field, replace
from typing import TypeAlias

from llmlab.call import Call, Handler, Lane
from llmlab.errors import LLMError, QueueFull, Rejected, Unsendable
from llmlab.estimate import Estimate, Estimator
from llmlab.events import Admitted, Bus
from llmlab.line import Line, Waiter
from llmlab.rule import Budget, Cost, Rule
from llmlab.types import Reply

Permits: TypeAlias = tuple[object, ...]

QUEUE = 10_000
LOOK = 1.0
"""Seconds between two looks at budgets while they hold all that wait: another target's calls may leave them room."""
HEADROOM = 1.25
"""Times the guessed input that a request may come to: prompts of one job differ by so much in tokens per character."""
BUDGET, PAUSED = "budget", "paused"
"""What a lane waits for that is held back alone, in a person's words."""

_ONE_REQUEST: Cost = {"requests": 1.0}


@dataclass
class Admit:
    """Let a call pass when every rule agrees, in a fair order; settle with the rules when it has ended.

    The rules given are copied: an Admit owns the state of its own.

    Raises:
        ValueError: `queue` is below 1.
    """

    rules: tuple[Rule, ...] = ()
    """Asked in this order; all must agree."""
    estimator: Estimator | None = None
    """Guesses a call's tokens before it is sent. None: calls cost one request and nothing else."""
    queue: int = QUEUE
    """Calls in line from which on a further one is refused, at least 1. Rows of a job are held back before that."""
    budget: Budget | None = field(default=None, init=False, repr=False, compare=False)
    """Of the lab whose line this is, also for the calls of other labs; set by the lab."""
    bus: Bus = field(default_factory=Bus, init=False, repr=False, compare=False)
    """What the rules have to tell, as values of their own: transitions, decisions, pauses."""
    held_by: str | None = field(default=None, init=False, repr=False, compare=False)
    """What the first in line waits for, in a person's words: a rule's `binds`, budget or paused. None: nobody waits."""
    _pumping: bool = field(default=False, init=False, repr=False, compare=False)
    _changed: bool = field(default=False, init=False, repr=False, compare=False)
    _reading: dict[int, Call] = field(default_factory=dict, init=False, repr=False, compare=False)  # by identity
    _line: Line = field(default_factory=Line, init=False, repr=False, compare=False)
    _timer: asyncio.TimerHandle | None = field(default=None, init=False, repr=False, compare=False)
    _loop: asyncio.AbstractEventLoop | None = field(default=None, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if isinstance(self.queue, bool) or not isinstance(self.queue, int) or self.queue < 1:
            raise ValueError(f"Admit: queue must be a whole number of at least 1, not {self.queue!r}")
        self.rules = tuple(replace(rule) for rule in self.rules)  # type: ignore[type-var]
        self.estimator = None if self.estimator is None else replace(self.estimator)
        for rule in self.rules:
            rule.watch(self.pump, self.bus.emit)

    @property
    def waiting(self) -> int:
        """Calls standing in line."""
        return self._line.waiting

    def waits_for(self, lane: Lane) -> str | None:
        """What a lane's calls wait for, in a person's words. None: none of them stands in line."""
        first = self._line.first_of(lane)
        if first is None or self._loop is None:
            return None
        if lane.held:
            return PAUSED
        return BUDGET if _over(self._budgets(lane), self._loop.time(), first.bound) else self.held_by

    def gauge(self, now: float) -> dict[str, float | str]:
        """What there is to see of all rules and the line, by the columns of `llmlab.history.LIMITS`."""
        seen: dict[str, float | str] = {"waiting": self.waiting}
        for rule in (*self.rules, *(() if self.budget is None else (self.budget,))):
            seen.update(rule.gauge(now))
        return seen

    async def __call__(self, call: Call, inner: Handler) -> Reply:
        """Wait for admission, pass the call on, settle."""
        loop = asyncio.get_running_loop()
        arrived = loop.time()
        call.sent = call.usage = call.levels = None
        cost = self._cost(call)
        budgets = self._budgets(call.lane)
        bound = self._bound(call, cost, budgets) if budgets else cost
        if self._line.waiting or self._wait(arrived, cost) > 0 or call.lane.held or _over(budgets, arrived, bound):
            held, permits = await self._stand_in_line(call, cost, bound)
        else:
            held, permits = None, self._take(arrived, cost, bound, budgets)
        call.probe = any(getattr(permit, "probe", False) for permit in permits)
        error: BaseException | None = None
        now = loop.time()
        if call.hold is not None:
            self._reading[id(call)], call.hold.at_wait = call, self.pump
        try:
            call.queue_s += now - arrived
            call.emit(Admitted(call.index, now, now - arrived, held))
            return await inner(call)
        except BaseException as failure:
            error = failure
            raise
        finally:
            if call.sent is None and not isinstance(error, asyncio.CancelledError | Rejected):
                call.sent = now  # by an endpoint that keeps no account of it
            self._reading.pop(id(call), None)
            self._settle(loop.time(), call, cost, bound, permits, error)

    async def _stand_in_line(self, call: Call, cost: Cost, bound: Cost) -> tuple[str | None, Permits]:
        loop = self._loop = asyncio.get_running_loop()
        arrived = loop.time()
        self._refuse_if_full(call)
        if call.arrived is None:
            call.arrived = arrived
        waited = arrived - call.arrived
        waiter = self._line.join(call.seq, call.lane, cost, bound, now=arrived, waited=waited)
        if self._line.leads(waiter):
            self.pump()
        held = None if waiter.granted.done() else self.held_by
        try:
            permits: Permits = await waiter.granted
        except (asyncio.CancelledError, LLMError) as gone:
            call.queue_s += loop.time() - arrived
            if waiter.granted.cancelled():
                self._leave(waiter)
            elif waiter.granted.exception() is None:
                self._settle(loop.time(), call, cost, bound, waiter.granted.result(), gone)
            raise
        return held, permits

    def _refuse_if_full(self, call: Call) -> None:
        # A retry keeps its place, however long the line has become meanwhile; it may never have stood in line before.
        new = call.arrived is None and not call.attempts
        if new and self._line.waiting >= self.queue and not call.lane.patient:
            raise QueueFull(
                f"{self._line.waiting} requests wait in the lab's line already, its bound is {self.queue}",
                hint="send fewer at once, or let run_many take them as there is room",
            )

    def _leave(self, waiter: Waiter) -> None:
        # A cancelled waiter elsewhere in its lane is skipped when its turn comes; only a first one blocks others.
        if self._line.leave(waiter):
            self.pump()

    def pump(self) -> None:
        """Admit from the head of the line until a rule says no. To be called when something has changed."""
        self._changed = True
        if self._pumping:  # called by who listens to a rule that is being asked: all of them must be asked again
            return
        self._pumping = True
        try:
            while self._changed:
                self._changed = False
                self._admit_waiting()
        finally:
            self._pumping = False

    def _admit_waiting(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        while self._line.waiting and self._loop is not None:
            self.held_by = None
            now = self._loop.time()
            first = self._line.first(now, self._held_back)
            if first is None:
                self._set_timer(LOOK if self.held_by == BUDGET else math.inf)
                return
            wait = self._wait(now, first.cost)
            if self._changed:
                return
            if wait > 0:
                if not self._refuse(now):
                    self._set_timer(wait)
                    self._release_readers(wait)
                    return
            else:
                self._line.admit(first, self._take(now, first.cost, first.bound, self._budgets(first.lane)))
        self.held_by = None

    def _set_timer(self, seconds: float) -> None:
        if seconds < math.inf and self._loop is not None:
            self._timer = self._loop.call_at(self._loop.time() + seconds, self.pump)

    def _release_readers(self, wait: float) -> None:
        """Answers held back by a slow reader are read to their ends when others can only go once they have."""
        if wait == math.inf:
            for call in self._reading.values():
                if call.hold is not None and call.hold.held_back and self._line.others(call.lane):
                    call.hold.release()

    def _refuse(self, now: float) -> bool:
        """Send everybody home if a rule says that waiting is pointless."""
        for rule in self.rules:
            if rule.refuse(now) is not None:
                self._line.dismiss(lambda rule=rule: rule.refuse(now) or LLMError("refused"))  # type: ignore[misc]
                return True
        return False

    # -- budgets ------------------------------------------------------------------------------------------

    def _budgets(self, lane: Lane) -> tuple[Budget, ...]:
        own = self.budget
        if own is None or any(each is own for each in lane.budgets):
            return lane.budgets
        return (own, *lane.budgets)

    def _held_back(self, waiter: Waiter) -> bool:
        """Whether a budget, or the user, holds a waiter back; sends it home if that is for good."""
        lane = waiter.lane
        if lane.held:
            self.held_by = self.held_by or PAUSED
            return True
        budgets = self._budgets(lane)
        if not budgets or self._loop is None:
            return False
        now = self._loop.time()
        for budget in budgets:
            if budget.wait(now, waiter.bound) > 0:
                why = budget.refuse(now)  # of this very request, so before another one is asked about
                if why is None:
                    self.held_by = BUDGET
                else:
                    self._line.refuse(waiter, self._of_whom(budget, why, lane))
                return True
        return False

    def _of_whom(self, budget: Budget, error: LLMError, lane: Lane) -> LLMError:
        """Another lab that serves as a target may have spent its budget: further targets have not."""
        if not any(each is budget for each in lane.budgets):
            error.judge(fallback=True)
        return error

    def _bound(self, call: Call, cost: Cost, budgets: tuple[Budget, ...]) -> Cost:
        """What the call uses at most: an answer may be as long as it is allowed to be, and nothing of it cached."""
        read = HEADROOM * (max(cost.guess, cost["input_tokens"]) if isinstance(cost, Estimate) else 0.0)
        written = max(cost.get("output_tokens", 0.0), float(call.prompt.max_tokens or 0))
        bound = {"requests": 1.0, "total_tokens": read + written}
        if call.price is not None:
            bound["usd"] = call.price.most(read, written)
        if any(budget.price_missing(bound) for budget in budgets):
            error = Unsendable(
                f"there is a budget in dollars, and the price of {call.model or 'the model'} is not known",
                hint="name it: Lab(prices={model: (input, output)}), dollars per million tokens",
            )
            error.judge(fallback=True)  # another target's price may be known
            raise error
        return bound

    # -- the rules together -------------------------------------------------------------------------------

    def _cost(self, call: Call) -> Cost:
        if self.estimator is None:
            return _ONE_REQUEST
        cost = self.estimator.cost(call.prompt, call.model)
        if call.price is not None:
            cost["usd"] = call.price.most(cost["input_tokens"], cost["output_tokens"])
        return cost

    def _wait(self, now: float, cost: Cost) -> float:
        longest = 0.0
        for rule in self.rules:
            wait = rule.wait(now, cost)
            if wait > longest:
                longest, self.held_by = wait, rule.binds
        return longest

    def _take(self, now: float, cost: Cost, bound: Cost, budgets: tuple[Budget, ...]) -> Permits:
        permits = tuple([rule.take(now, cost) for rule in self.rules])
        return (*permits, *[budget.take(now, bound) for budget in budgets]) if budgets else permits

    def _settle(
        self, now: float, call: Call, cost: Cost, bound: Cost, permits: Permits, error: BaseException | None
    ) -> None:
        used = self._used(call, cost, error)
        budgets = self._budgets(call.lane)
        for rule, permit in zip(self.rules, permits, strict=False):
            rule.settle(now, cost, error, used, call.levels, call.sent, permit)
        for budget, permit in zip(budgets, permits[len(self.rules) :], strict=True):
            budget.settle(now, bound, error, used, call.levels, call.sent, permit)
        self.pump()

    def _used(self, call: Call, cost: Cost, error: BaseException | None) -> Cost | None:
        usage = call.usage
        if usage is None or not isinstance(cost, Estimate) or self.estimator is None:
            return None
        if error is None:  # what a broken answer had come to says nothing about how long answers are
            self.estimator.learn(cost, usage)
        used = {
            "requests": 1.0,
            "input_tokens": float(usage.input_tokens),
            "output_tokens": float(usage.output_tokens),
            "total_tokens": float(usage.input_tokens + usage.output_tokens),
        }
        if call.price is not None:
            used["usd"] = call.price.cost(usage)
        return used


def _over(budgets: tuple[Budget, ...], now: float, bound: Cost) -> bool:
    return any(budget.wait(now, bound) > 0 for budget in budgets)
