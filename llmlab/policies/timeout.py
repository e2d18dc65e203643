"""Deadlines, seconds: one for the whole row, or those of a single attempt.

    Timeout(total=…)                                    outermost: covers every attempt and every wait
    Timeout(attempt=…, connect=…, first_token=…,        below Admit: one request; a slow one is a failed attempt
            between_tokens=…)

`first_token` and `between_tokens` hold for streamed answers only and count pieces of text or reasoning: a
server's pings and comments do not keep an answer alive.
"""

import asyncio
import math
from dataclasses import dataclass, fields

from llmlab.call import Call, Handler
from llmlab.errors import Phase, TimedOut
from llmlab.events import Delta, Event
from llmlab.types import Reply


@dataclass
class Timeout:
    """End what takes too long with TimedOut, whose `phase` names the deadline that passed."""

    total: float | None = None
    """The row's promise, all attempts and waits included. None: no limit. Not together with the others."""
    attempt: float | None = None
    """One request, from sending to the complete answer. None: no limit."""
    connect: float | None = None
    """Until the connection stands. None: no limit."""
    first_token: float | None = None
    """Until the first piece of a streamed answer. None: no limit."""
    between_tokens: float | None = None
    """Between two pieces of a streamed answer. None: no limit."""

    def __post_init__(self) -> None:
        for each in fields(self):
            value = getattr(self, each.name)
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if value is not None and not (number and 0 < value < math.inf):
                raise ValueError(f"Timeout: {each.name} must be a number of seconds above 0, not {value!r}")
        if self.total is not None and any((self.attempt, self.connect, self.first_token, self.between_tokens)):
            raise ValueError(
                "Timeout: total covers the whole row and stands outermost; give the deadlines of an attempt to a "
                "Timeout of their own, below Admit"
            )

    async def __call__(self, call: Call, inner: Handler) -> Reply:
        """Pass the call on within the deadlines."""
        if self.total is not None:
            return await self._whole_row(call, inner, self.total)
        call.connect_timeout = self.connect
        phase: Phase = "attempt"
        try:
            async with asyncio.timeout(self.attempt) as scope:
                if not call.stream:
                    return await inner(call)
                if call.hold is not None:
                    call.hold.deadline = scope
                pulse = _Pulse(call, scope, self.first_token, self.between_tokens)
                try:
                    return await inner(call)
                finally:
                    phase = pulse.stop()
        except TimeoutError:
            if not scope.expired():
                raise
            raise TimedOut(_say(phase, getattr(self, phase)), phase=phase) from None

    async def _whole_row(self, call: Call, inner: Handler, total: float) -> Reply:
        then = asyncio.get_running_loop().time() + total
        call.deadline = (
            then if call.deadline is None else min(call.deadline, then)
        )  # a fallback's own, within the row's
        try:
            async with asyncio.timeout(total) as scope:
                return await inner(call)
        except TimeoutError:
            if not scope.expired():
                raise
            raise TimedOut(_say("total", total), phase="total") from None


def _say(phase: Phase, seconds: float) -> str:
    what = {
        "total": "the row was not answered",
        "attempt": "the attempt had no complete answer",
        "first_token": "no token came",
        "between_tokens": "no further token came",
    }[phase]
    return f"{what} within {seconds:g} s"


class _Pulse:
    """Watches a stream's pieces. One timer, re-armed only when it fires: a piece costs one clock reading."""

    def __init__(self, call: Call, scope: asyncio.Timeout, first: float | None, between: float | None) -> None:
        self._call, self._scope, self._first, self._between = call, scope, first, between
        self._emit = call.emit
        self._loop = asyncio.get_running_loop()
        self._began = self._loop.time()
        self._phase: Phase = "attempt"
        self._last: float | None = None
        self._timer = self._loop.call_later(first, self._check) if first is not None else None
        call.emit = self._watch

    def _watch(self, event: Event) -> None:
        if type(event) is Delta:
            if self._last is None:
                self._rearm()
            self._last = self._loop.time()
        self._emit(event)

    def _rearm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None if self._between is None else self._loop.call_later(self._between, self._check)

    def _check(self) -> None:
        now, hold = self._loop.time(), self._call.hold
        phase: Phase = "first_token" if self._last is None else "between_tokens"
        last, allowed = (self._began, self._first) if self._last is None else (self._last, self._between)
        due = (last if hold is None else hold.since(last, now)) + (allowed or 0.0)
        if due > now:
            self._timer = self._loop.call_at(due, self._check)
        else:
            self._expire(phase, now)

    def _expire(self, phase: Phase, now: float) -> None:
        self._phase = phase
        self._scope.reschedule(now)

    def stop(self) -> Phase:
        """Stop watching; the deadline that passed, if one did."""
        if self._timer is not None:
            self._timer.cancel()
        self._call.emit = self._emit
        return self._phase
