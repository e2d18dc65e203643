"""Send a late request a second time, and take whichever answer comes first.

How long an answer will be is not known beforehand, and most of what is slow is long: a copy only costs as much again.
So time alone counts at the end of a job only. A copy is sent of what is

    late to begin    streamed, and no piece for longer than 99% of the successes of its kind took to their first
    stalled          streamed, and no piece for longer than k times the p99.9 of the gaps between pieces
    straggling       nobody waits to be sent, and it has taken `straggler` times the median of its kind's successes

and never if the call probes a provider that was down, or text of it was shown to the user (`call.committed`), soon
after a 429 or a failure that speaks against the provider, or beyond the budget. A kind is a length of prompt, on a log2
scale of characters. Time for which our own reader is behind does not count.

    what happens                             what comes of it
    neither has given a piece yet            the first that gives one leads; the other is cancelled then
    the original gave pieces before          the copy's pieces are dropped; its reply counts if it is complete first
    the copy fails                           the original goes on alone
    the original fails                       the copy goes on alone; if it fails, too: the original's error
    the copy fails after it took the lead    its error, as the original is gone by then
    text of the original is shown by now     the original goes on alone: another answer would not fit to what was read
"""

import asyncio
import contextvars
import math
from collections import deque
from copy import copy
from dataclasses import dataclass, field, replace
from functools import partial

from llmlab.call import Call, Handler
from llmlab.errors import LLMError
from llmlab.events import Delta, Event
from llmlab.rules.checks import Setting, check_all
from llmlab.types import Prompt, Reply

GRAIN, CROWD = 0.01, 500  # seconds before which nothing is late, and between two looks at up to so many calls
CAP = 10.0  # copies that can be saved up for: a quiet hour does not pay for a burst
WINDOW, FEW = 1000, 256  # latest samples that are kept, and up to how many each new one is reckoned with at once
FIRST, GAP, MEDIAN, MORE = 0.99, 0.999, 0.5, 10  # quantiles; a p99.9 takes ten times as many samples as a p99

_RANGES: tuple[Setting, ...] = (
    ("share", lambda value: 0 < value <= 1, "a number above 0 and at most 1"),
    ("k straggler", lambda value: 1 <= value < math.inf, "a number of at least 1"),
    ("quiet", lambda value: 0 <= value < math.inf, "a number of seconds of at least 0"),
    ("samples", lambda value: isinstance(value, int) and 1 <= value <= WINDOW, f"a whole number from 1 to {WINDOW}"),
)


@dataclass
class Hedge:
    """Send a late request a second time, once per pass; the copy takes a slot of its own.

    Stands above Admit and below Retry. Sends at most `share` of all requests twice, and one more. The loser is
    cancelled and has ended before the reply is returned; what it has used counts as wasted, and the provider may bill
    all of it. Of little use if the copy meets the same overloaded server.

    Raises:
        ValueError: a setting is out of its range.
    """

    share: float = 0.02
    """Copies per request at most, above 0, at most 1."""
    k: float = 3.0
    """A stream has stalled when no piece came for this many times the p99.9 of the gaps between pieces; at least 1."""
    straggler: float = 3.0
    """A call straggles when it has taken this many times the median of its kind's successes; at least 1."""
    samples: int = 20
    """Successes of a kind before its times count, from 1 to 1000; ten times as many gaps before theirs do."""
    quiet: float = 10.0
    """Seconds without copies after a 429 or a failure that speaks against the provider's health; at least 0."""
    hedged: int = field(default=0, init=False, repr=False, compare=False)
    """Copies made so far; one that got no slot in time was never sent."""
    won: int = field(default=0, init=False, repr=False, compare=False)
    """Copies whose reply was taken."""
    _watch: "_Watch" = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        check_all(self, _RANGES)
        self._watch = _Watch(self)

    async def __call__(self, call: Call, inner: Handler) -> Reply:
        """Pass the call on, and a copy of it when it is late."""
        return await _Race(self._watch, call, inner).run()


class _Recent:
    """The latest samples of a time; `limit` is `factor` times their quantile, and infinity while there are too few."""

    def __init__(self, quantile: float, factor: float, least: int, most: int = WINDOW) -> None:
        self._quantile, self._factor, self._least = quantile, factor, least
        self._samples: deque[float] = deque(maxlen=most)
        self._new, self.limit = 0, math.inf

    def add(self, seconds: float) -> None:
        self._samples.append(seconds)
        self._new += 1
        count = len(self._samples)
        if count >= self._least and (count <= FEW or self._new * 4 >= count):  # sorting many is not for each of them
            value = sorted(self._samples)[math.ceil(self._quantile * count) - 1]
            self.limit, self._new = max(GRAIN, self._factor * value), 0


class _Watch:
    """What the calls of one Hedge share: times, budget, trouble seen, and one timer, for the first that may be due."""

    def __init__(self, hedge: Hedge) -> None:
        self.hedge = hedge
        self.gaps = _Recent(GAP, hedge.k, MORE * hedge.samples, MORE * WINDOW)
        self._kinds: dict[int, tuple[_Recent, _Recent]] = {}
        self._races: dict[_Race, None] = {}  # in order of arrival
        self._tokens, self._quiet_until = 1.0, -math.inf
        self._timer: asyncio.TimerHandle | None = None

    def enter(self, race: "_Race", now: float) -> None:
        self._races[race] = None
        self._arm(race.due(now, last=False))

    def leave(self, race: "_Race", now: float) -> None:
        """A call that has ended pays for copies, and may have taught what late means: the others are looked at."""
        del self._races[race]
        poor, self._tokens = self._tokens < 1, min(CAP, self._tokens + self.hedge.share)
        if not self._races and self._timer is not None:
            self._timer.cancel()
            self._timer = None
        elif self._races and (self._timer is None or (poor and self._tokens >= 1)):
            self._arm(now)

    def kind(self, prompt: Prompt) -> tuple[_Recent, _Recent]:
        """What successes with prompts of about this length took from sending: to their first piece, and as a whole."""
        size, least = sum([len(message.text) for message in prompt.messages]).bit_length(), self.hedge.samples
        if size not in self._kinds:
            self._kinds[size] = _Recent(FIRST, 1.0, least), _Recent(MEDIAN, self.hedge.straggler, least)
        return self._kinds[size]

    def note(self, error: Exception, now: float) -> None:
        """Send no copies for a while after an error that says the provider has enough to do."""
        if isinstance(error, LLMError) and (error.verdict.throttle or error.verdict.breaker):
            self._quiet_until = now + self.hedge.quiet
            for race in filter(_Race.waits, self._races):
                race.dismiss()

    def _arm(self, at: float) -> None:
        """Look at the calls when `at` has come, yet never at once: of many, the less often."""
        loop = asyncio.get_running_loop()
        at = max(at, loop.time() + GRAIN * max(1, len(self._races) / CROWD))
        if at < math.inf and (self._timer is None or at < self._timer.when()):
            if self._timer is not None:
                self._timer.cancel()
            self._timer = loop.call_at(at, self._look)

    def _look(self) -> None:
        """Send a copy of each call that is due, and see when the next may be."""
        self._timer = None
        now, soonest = asyncio.get_running_loop().time(), math.inf
        last = not any(race.waits() for race in reversed(self._races))  # if anybody stands in line, the latest do
        for race in tuple(self._races):
            due = max(race.due(now, last=last), self._quiet_until)
            if due > now:
                soonest = min(soonest, due)
            elif self._tokens >= 1:  # the call whose end brings the next one has them looked at again
                self._tokens, self.hedge.hedged = self._tokens - 1, self.hedge.hedged + 1
                race.start()
        self._arm(soonest)


class _Race:
    """One pass: the call, in its caller's task, as most need no task of their own; and its copy once there is one."""

    _copy: Call | None = None
    _begun: float | None = None  # when the original's first piece came, and its latest
    _last: float | None = None
    _leader: Call | None = None  # whose pieces the user reads
    _winner: Call | None = None  # whose answer is handed over
    _error: Exception | None = None
    _ended = _replaced = False

    def __init__(self, watch: _Watch, call: Call, inner: Handler) -> None:
        self._watch, self._call, self._inner = watch, call, inner
        self._emit, self._queue_s, self._loop = call.emit, call.queue_s, asyncio.get_running_loop()
        self._task: asyncio.Task[object] = asyncio.current_task()  # type: ignore[assignment]  # something runs this
        self._cancelling = self._task.cancelling()
        self._context = contextvars.copy_context()  # the timer that starts a copy has that of another call
        self._first, self._whole = watch.kind(call.prompt)
        if call.stream:
            call.emit = partial(self._hear, call)

    def waits(self) -> bool:
        """Whether one of its requests is still to be sent."""
        return (self._call if self._copy is None or self._running.done() else self._copy).sent is None

    def due(self, now: float, *, last: bool) -> float:
        """Loop time from which a copy is worth it, or may be, should it be sent or a piece come or all be sent now."""
        call, whole, gap = self._call, self._whole.limit, self._watch.gaps.limit
        if call.sent is None:
            return now + (min(whole, self._first.limit, gap) if call.stream else whole)
        if self._copy is not None or call.probe or call.committed or self._task.cancelling() > self._cancelling:
            return math.inf
        sent = self._since(call.sent, now)
        straggling = sent + whole if last else max(sent + whole, now + whole / 4)
        if not call.stream:
            return straggling
        if self._last is None:
            return min(straggling, sent + self._first.limit, now + gap)
        return min(straggling, self._since(self._last, now) + gap)

    def _since(self, sign: float, now: float) -> float:
        return sign if self._call.hold is None else self._call.hold.since(sign, now)

    async def run(self) -> Reply:
        """The reply of whichever is first; both have ended when it returns."""
        self._watch.enter(self, self._loop.time())
        try:
            return await self._originals_reply(self._call) or await self._copys_reply()
        finally:
            self._watch.leave(self, self._loop.time())
            self._call.emit = self._emit
            if self._copy is not None:
                await self._end(self._call, self._copy)

    async def _originals_reply(self, call: Call) -> Reply | None:
        """The original's reply; None if it is the copy's turn."""
        try:
            reply = await self._inner(call)
        except asyncio.CancelledError:
            if not self._given_up():
                raise
            self._learn(lost=True)
        except Exception as error:
            if not self._given_up():
                self._watch.note(error, self._loop.time())
                if self._copy is None:
                    raise
                self._error = error
        else:
            if self._copy is not None:
                self._answers.append((call, reply))
            if not self._given_up():  # else it has answered all the same
                self._leader = self._winner = call
                self._learn()
                return reply
        return None

    def _given_up(self) -> bool:
        """Whether the original, which has ended, was made to; its task is not cancelled from now on."""
        self._ended = True
        return self._replaced and self._task.uncancel() <= self._cancelling

    def _read(self) -> bool:
        """Whether the user has read text of the original."""
        return self._call.committed and self._leader is self._call

    async def _copys_reply(self) -> Reply:
        await asyncio.wait([self._running])
        for call, reply in self._answers:
            if call is self._copy and call is self._leader:
                self._winner = call
                return reply
        raise self._error or asyncio.CancelledError("the copy was cancelled")

    def start(self) -> None:
        """Send the copy, with an account of its own."""
        call = replace(
            self._call, kind="hedge", hold=copy(self._call.hold), queue_s=self._queue_s,
            sent=None, usage=None, levels=None, wasted=None, wasted_usd=None,
        )  # fmt: skip
        call.emit = partial(self._hear, call)
        self._before, self._answers = call.attempts, list[tuple[Call, Reply]]()
        self._running, self._copy = self._loop.create_task(self._run_copy(call), context=self._context), call

    async def _run_copy(self, call: Call) -> None:
        try:
            self._answers.append((call, await self._inner(call)))
        except Exception as error:  # noqa: BLE001  the original goes on, whatever it is
            self._error = self._error or error
            self._watch.note(error, self._loop.time())
            return
        if not self._read():
            self._lead(call)

    def _hear(self, call: Call, event: Event) -> None:
        """Publish an event of one of the two; pieces only of the one that leads, and the first piece decides which."""
        if type(event) is Delta:
            if call is self._call:
                now, last = self._loop.time(), self._last
                if last is None:
                    self._begun = now
                else:
                    self._watch.gaps.add(now - self._since(last, now))
                self._last = now
            if self._leader is None:
                self._lead(call)
            if self._leader is not call:
                return
        self._emit(event)
        if self._copy is not None and self._read():
            self.dismiss()

    def _lead(self, call: Call) -> None:
        """Let the other one give up."""
        self._leader = call
        if call is self._call:
            self.dismiss()
        elif not self._ended and self._task.cancelling() == self._cancelling:  # else it gives up already
            self._replaced = True
            self._task.cancel()  # as asyncio.timeout does it: taken back when it has arrived

    def dismiss(self) -> None:
        """Cancel the copy, once: a second cancellation would break into its cleaning up."""
        if self._copy is not None and not self._running.cancelling():
            self._running.cancel()

    async def _end(self, call: Call, theirs: Call) -> None:
        """Return when the copy has ended; a cancellation meanwhile is passed on to it, and waits for it."""
        self.dismiss()
        try:
            if not self._running.done():
                await asyncio.wait([self._running])
        except asyncio.CancelledError:
            self._winner = None
            self._running.cancel()
            await self._end(call, theirs)
            raise
        self._settle(call, theirs)

    def _learn(self, *, lost: bool = False) -> None:
        """Count what the original took; a loser's as far as it was waited for, or less and less would count as late."""
        sent, now = self._call.sent, self._loop.time()
        if sent is None:  # by an endpoint that keeps no account of it
            return
        if not lost:
            self._whole.add(now - sent)
        elif self._last is not None:
            self._watch.gaps.add(now - self._since(self._last, now))
        if self._call.stream:
            self._first.add((now if self._begun is None else self._begun) - sent)

    def _settle(self, call: Call, theirs: Call) -> None:
        """Put both on the original's account."""
        for account, reply in self._answers:
            if account is not self._winner and reply.usage is not None:
                account.waste(reply.usage, reply.cost_usd)
        call.attempts += theirs.attempts - self._before
        if theirs.wasted is not None:
            call.waste(theirs.wasted, theirs.wasted_usd)
        won = self._winner is theirs
        self._watch.hedge.won += won
        if won or self._replaced:
            call.queue_s, call.probe = theirs.queue_s, theirs.probe
            call.sent, call.usage, call.levels = theirs.sent, theirs.usage, theirs.levels
