"""A job played through with a real strategy: every policy and rule as it is, in virtual time, on a fitted provider.

Slower than `llmlab.closed` by an order of magnitude, and exact about the client: retries, breaker, what 429s teach,
deadlines of attempts, hedges and controllers are the very code. Answers come whole: streams are not played.
"""

import asyncio
import math
import random
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from itertools import count

import numpy as np

from llmlab import errors
from llmlab.call import Call, Lane
from llmlab.clock import run_virtual
from llmlab.closed import Draw, Played
from llmlab.machine import Machine, Visit
from llmlab.sim.buckets import Bucket
from llmlab.strategy import Strategy
from llmlab.types import Prompt, Reply, Usage

PROMPT = Prompt.of("x" * 200)
"""Stands for each of the pilot's prompts: strategies see what their answers used, not what they say."""


class Stage:
    """One run of a strategy.

    Args:
        draws: What becomes of the attempts, in the order in which they are sent; never ends.
        rows: How many.
        slots: The provider's, None: not known.
        rpm: Requests a minute that the provider takes, a minute's worth at once; more get a 429. None: no limit.
        seed: Of the jitter.
    """

    def __init__(self, draws: Iterator[Draw], *, rows: int, slots: float | None, rpm: float | None, seed: int) -> None:
        self._draws, self._rows, self._rpm = draws, rows, rpm
        self._machine = Machine(slots, slack=1.0)  # who leaves is followed a few passes of the loop later
        self._bucket: Bucket | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._rng = random.Random(seed)
        self._latency: list[float] = []
        self._ends: list[float] = []
        self._failed = self._attempts = self._throttled = 0
        self._cost = 0.0

    def play(self, strategy: Strategy) -> Played:
        """Play a strategy that is nobody else's, on a thread of its own: the caller's loop may be running."""
        done: Future[Played] = Future()
        threading.Thread(target=self._run, args=(strategy, done), daemon=True).start()
        return done.result()

    def _run(self, strategy: Strategy, done: "Future[Played]") -> None:
        try:
            done.set_result(run_virtual(lambda: self._main(strategy)))
        except BaseException as error:  # noqa: BLE001  it belongs to who waits
            done.set_exception(error)

    async def _main(self, strategy: Strategy) -> Played:
        loop = asyncio.get_running_loop()
        if self._rpm is not None:
            self._bucket = Bucket(self._rpm, now=loop.time())
        handler, lane, places = strategy.handler(self._answer), Lane(), count()
        ahead = asyncio.Semaphore(max(64, 2 * (strategy.slots.limit if strategy.slots else self._rows)))

        async def row(index: int) -> None:
            call = Call(index, PROMPT, _deaf, self._rng, seq=next(places), provider="twin", model="twin", lane=lane)
            try:
                self._latency.append((await handler(call)).latency_s)
            except errors.LLMError:
                self._failed += 1
            self._ends.append(loop.time())
            ahead.release()

        began = loop.time()
        async with asyncio.TaskGroup() as group:
            for index in range(self._rows):
                await ahead.acquire()
                group.create_task(row(index))
        return self._told(loop.time() - began)

    async def _answer(self, call: Call) -> Reply:
        loop = asyncio.get_running_loop()
        call.attempts += 1
        call.kind = "retry"
        sent = call.sent = loop.time()
        self._attempts += 1
        if self._bucket is not None:
            self._check_limit(self._bucket, sent)
        draw = next(self._draws)
        visit = Visit(draw.alone, draw.each, loop.create_future())
        self._machine.enter(sent, visit, slot=not draw.error)
        self._arm()
        try:
            await visit.note
        finally:
            self._machine.leave(loop.time(), visit)
            self._arm()
        return self._reply(call, draw, loop.time() - sent)

    def _check_limit(self, bucket: Bucket, now: float) -> None:
        wait = bucket.wait(1.0, now)
        if wait > 0:
            self._throttled += 1
            raise errors.RateLimited("as the pilot's 429s show", status=429, retry_after=wait)
        bucket.take(1.0, now)

    def _reply(self, call: Call, draw: Draw, latency: float) -> Reply:
        if not math.isnan(draw.cost):
            self._cost += draw.cost
        if draw.error:
            kind = getattr(errors, draw.error, errors.ServerError)
            self._throttled += draw.verdict.throttle
            error = errors.LLMError("as in the pilot", retry_after=draw.retry_after)
            if kind is not errors.TimedOut and issubclass(kind, errors.LLMError):
                error = kind("as in the pilot", retry_after=draw.retry_after)
            error.verdict = draw.verdict
            raise error
        usage = call.usage = Usage(round(draw.n_in), round(draw.n_out))
        return Reply("", "stop", "twin", "twin", usage, latency_s=latency)

    def _arm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        due = self._machine.next_end()
        if due < math.inf:
            self._timer = asyncio.get_running_loop().call_at(due, self._fire)

    def _fire(self) -> None:
        self._timer = None
        while (visit := self._machine.ended(asyncio.get_running_loop().time())) is not None:
            if not visit.note.done():
                visit.note.set_result(None)
        self._arm()

    def _told(self, makespan: float) -> Played:
        first, last = self._rows // 4, max(self._rows // 4 + 2, 3 * self._rows // 4)
        over = self._ends[min(last, self._rows) - 1] - self._ends[first]
        rate = (last - first - 1) / over if over > 0 else self._rows / makespan
        return Played(
            np.array(self._latency), makespan, self._rows, self._failed, self._attempts, self._throttled,
            self._cost, self._machine.area / makespan, self._machine.peak, rate,
        )  # fmt: skip


def _deaf(_: object) -> None:
    """Nobody listens to a prediction's events."""
