"""Carries requests to a provider's Batch API, and again where that does no harm.

Making a batch is the one request that must not be made twice: it would be paid twice. After a failure that leaves open
whether it was made (a lost answer, a 5xx, nonsense), the provider is asked first.

    the failure                               then
    never reached the provider, or a 429      made again after a wait
    the provider says no                      given up
    anything else                             looked for: found, it is the batch; not found, made again after a wait
"""

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import TypeVar

from llmlab.errors import BadPayload, ConnectFailed, LLMError, RateLimited, Rejected, TimedOut
from llmlab.policies.retry import SPREAD, Retry
from llmlab.providers.batches import BatchAPI, Parcel, Status
from llmlab.providers.endpoint import Provider

R = TypeVar("R")

SHORT, LONG = 60.0, 900.0
"""Seconds for a request and its answer; for one that carries rows."""
SETTLING, SLOW = 2.0, 30.0
"""Seconds after which a batch that was made shows in the provider's list; after a time-out it may still be at it."""
_BULKY = ("/content", "/results")


class Courier:
    """A `Send`, with patience. Lives on one loop.

    Args:
        provider: To whom.
        retry: How often and after which waits it is tried again.
        rng: Where the waits' jitter comes from.
    """

    def __init__(self, provider: Provider, retry: Retry, rng: random.Random) -> None:
        self._provider, self._retry, self._rng = provider, retry, rng

    async def __call__(
        self,
        method: str,
        path: str,
        read: Callable[[bytes], R],
        body: bytes = b"",
        kind: str = "application/json",
        *,
        again: bool = True,
    ) -> R:
        """Send one request and read its answer; see `llmlab.providers.batches.Send`."""
        patience = _Patience(self._retry, self._rng)
        within = LONG if len(body) > 1_000_000 or path.endswith(_BULKY) else SHORT  # noqa: PLR2004  a megabyte
        while True:
            try:
                return read(await self._provider.request(method, path, body, kind, within=within))
            except LLMError as error:
                delay = patience.delay(error) if again or _undone(error) else None
                if delay is None:
                    raise
            await asyncio.sleep(delay)

    async def make(
        self, api: BatchAPI, parcel: Parcel, prepared: Callable[[Parcel], Awaitable[None]] | None = None
    ) -> Status:
        """Make a batch exactly once (the table above); `prepared` is called once it has a name and before it is made.

        Raises:
            LLMError: it was not made, or nobody can tell which one it is.
        """
        await api.prepare(self, parcel)
        if prepared is not None:
            await prepared(parcel)
        patience = _Patience(self._retry, self._rng)
        while True:
            try:
                return await api.create(self, parcel)
            except LLMError as error:
                if not error.verdict.retry or _undone(error):
                    raise
                delay, failure = patience.delay(error), error
            await asyncio.sleep(max(SLOW if isinstance(failure, TimedOut) else SETTLING, delay or 0.0))
            if (found := await self.find(api, parcel, f"its answer was lost ({failure})")) is not None:
                return found
            if delay is None:
                raise failure

    async def find(self, api: BatchAPI, parcel: Parcel, why: str) -> Status | None:
        """The batch that was made of a parcel, perhaps; None: none was.

        Raises:
            LLMError: nobody can tell.
        """
        parcel.doubtful = True
        try:
            found = await api.find(self, parcel)
        except LLMError as error:
            raise _doubtful(why, f"its provider cannot be asked now ({error})") from error
        if len(found) > 1:
            ids = " and ".join(each.id for each in found)
            raise _doubtful(why, f"{ids} could both be it; lab.attach_batch(id) shows what they hold")
        parcel.doubtful = False
        return found[0] if found else None


def _undone(error: LLMError) -> bool:
    """Whether what was asked for was certainly not done."""
    never_sent = isinstance(error, Rejected | ConnectFailed) or (
        isinstance(error, TimedOut) and error.phase == "connect"
    )
    return never_sent or isinstance(error, RateLimited)


def _doubtful(why: str, what: str) -> LLMError:
    error = BadPayload(f"a batch may have been made, {why}, and {what}: nothing was made again")
    error.judge(retry=False)  # whoever resubmits must know that it may be paid twice
    return error


class _Patience:
    """What is left of a request's allowance, by a Retry's figures."""

    def __init__(self, retry: Retry, rng: random.Random) -> None:
        self._retry, self._rng = retry, rng
        self._failures = self._throttles = 0
        self._previous = 0.0

    def delay(self, error: LLMError) -> float | None:
        """Seconds until the next attempt; None: give up."""
        retry, verdict, asked = self._retry, error.verdict, error.retry_after
        if not verdict.retry or (asked is not None and asked > retry.max_retry_after):
            return None
        if verdict.throttle and retry.throttled is not None:
            self._throttles += 1
            n, left = self._throttles, self._throttles <= retry.throttled
        else:
            self._failures += 1
            n, left = self._failures, self._failures < retry.attempts
        if not left:
            return None
        self._previous = retry.seconds(n, self._previous, self._rng)
        return max(self._previous, 0.0 if asked is None else asked * (1 + self._rng.uniform(0, SPREAD)))


class Interval:
    """Seconds between two looks at a batch: a few at first, then more and more, never all clients at once.

    Args:
        most: Seconds at most, before the jitter.
        rng: Where the jitter comes from: a fifth less or more.
    """

    FIRST, GROWTH, JITTER = 5.0, 1.5, 0.2

    def __init__(self, most: float, rng: random.Random) -> None:
        self._most, self._rng = most, rng
        self._next = min(self.FIRST, most)

    def next(self, asked: float | None = None) -> float:
        """Seconds until the next look; `asked` is what the provider wants at least."""
        seconds = self._next * self._rng.uniform(1 - self.JITTER, 1 + self.JITTER)
        self._next = min(self._most, self._next * self.GROWTH)
        return max(seconds, 0.0 if asked is None else asked * (1 + self._rng.uniform(0, SPREAD)))

    def again(self) -> None:
        """Begin anew: something is about to happen."""
        self._next = min(self.FIRST, self._most)
