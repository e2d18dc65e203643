"""Try again, later, what may succeed later.

The delay before retry n (from 1), with base b and cap c, seconds:

    growth        v(n)                      jitter         delay
    constant      b                         none           min(c, v)
    linear        b n                       full           U(0, min(c, 2v))
    exponential   b 2^(n-1)                 equal          w/2 + U(0, w/2), w = min(c, 2v)
                                            decorrelated   min(c, U(b, 3 previous)), previous from b

Full, equal and decorrelated jitter as in the AWS architecture blog's simulator ("Exponential Backoff And Jitter",
where full jitter with exponential growth is U(0, min(c, b 2^n))); 2v makes full jitter's mean the plain delay.
`backoff=` puts another formula in their place: a name of `llmlab.backoff`, or a function of your own.
A provider's Retry-After is a minimum: 0 to 25% is added on top, so that rows told the same do not return together.
"""

import asyncio
import math
import random
from dataclasses import dataclass, field
from typing import Literal, TypeAlias, get_args

from llmlab.backoff import BACKOFFS, FAR, Backoff
from llmlab.call import Call, Handler
from llmlab.errors import LLMError
from llmlab.events import Retrying
from llmlab.types import Reply

Growth: TypeAlias = Literal["exponential", "linear", "constant"]
Jitter: TypeAlias = Literal["full", "equal", "decorrelated", "none"]

SPREAD = 0.25


@dataclass
class Retry:
    """Try again while the error's verdict and the allowances permit; the last error is let through as it is.

    Attempts spent on 429s are counted apart from those spent on failures: a provider that says "slow down" is
    working. Stands above Admit: a row that sleeps holds no slot.
    """

    attempts: int = 6
    """Attempts at most that end in a failure, the first one included; 1: no retries."""
    throttled: int | None = 30
    """429s at most per row, counted apart. None: they count as any other failure, as in most clients."""
    growth: Growth = "exponential"
    """How the delay grows: exponential, linear or constant."""
    jitter: Jitter = "full"
    """How the delay is spread: full, equal, decorrelated or none."""
    base: float = 0.5
    """First delay, seconds, above 0."""
    cap: float = 60.0
    """Longest delay of our own, seconds; a Retry-After may be longer."""
    backoff: str | Backoff | None = None
    """Another formula instead of `growth`, `jitter`, `base` and `cap`: "openai", "stamina", "botocore" (see
    `llmlab.backoff`), or a function (n, previous, rng) -> seconds: n counts retries from 1, `previous` is the delay
    before the last one (0: none), `rng` the row's `random.Random`."""
    max_retry_after: float = 600.0
    """Longest Retry-After that is waited for, seconds; a longer one ends the row with its error.

    As long as the breaker bears with a provider that is down: who asks for five minutes gets them, and no row is lost.
    """
    deadline: float | None = None
    """No retry starts later than this many seconds after the row's first attempt was sent. None: no limit."""

    def __post_init__(self) -> None:
        _one_of("growth", self.growth, get_args(Growth))
        _one_of("jitter", self.jitter, get_args(Jitter))
        if not callable(self.backoff) and self.backoff is not None:
            _one_of("backoff", self.backoff, (*BACKOFFS, "a function"))
        for name, least in (("attempts", 1), ("throttled", 0)):
            value = getattr(self, name)
            if value is None and name == "throttled":
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ValueError(f"Retry: {name} must be a whole number of at least {least}, not {value!r}")
        for name in ("base", "cap", "max_retry_after", "deadline"):
            value = getattr(self, name)
            if value is not None and not (isinstance(value, int | float) and 0 < value < math.inf):
                raise ValueError(f"Retry: {name} must be a number of seconds above 0, not {value!r}")

    async def __call__(self, call: Call, inner: Handler) -> Reply:
        """Pass the call on until it succeeds or there is no point in going on."""
        began = asyncio.get_running_loop().time()
        account: _Account | None = None  # most rows never need one
        while True:
            try:
                return await inner(call)
            except LLMError as error:
                account = account or _Account(self, began)
                delay = account.delay(error, call)
                if delay is None:
                    raise
                call.emit(Retrying(call.index, call.attempts, delay, error))
            await _sleep(delay, call)

    def seconds(self, n: int, previous: float, rng: random.Random) -> float:
        """Seconds before retry `n` (from 1), `previous` being the delay before the last one (formulas above).

        Raises:
            ValueError: a backoff of the user's own gave no number of at least 0.
        """
        if self.backoff is not None:
            formula = BACKOFFS[self.backoff] if isinstance(self.backoff, str) else self.backoff
            return _checked(formula(n, previous, rng))
        plain = self._plain(n)
        spread = min(self.cap, 2 * plain)
        if self.jitter == "full":
            return rng.uniform(0, spread)
        if self.jitter == "equal":
            return spread / 2 + rng.uniform(0, spread / 2)
        if self.jitter == "decorrelated":
            return min(self.cap, rng.uniform(self.base, 3 * max(previous, self.base)))
        return min(self.cap, plain)

    def _plain(self, n: int) -> float:
        if self.growth == "constant":
            return self.base
        if self.growth == "linear":
            return self.base * n
        return self.base * 2.0 ** min(n - 1, FAR)


@dataclass
class _Account:
    """One row's spent allowances."""

    policy: Retry
    began: float
    failures: int = 0
    throttles: int = 0
    kinds: dict[type, int] = field(default_factory=dict)
    previous: float = 0.0

    def delay(self, error: LLMError, call: Call) -> float | None:
        """Seconds to wait before the next attempt; None: give up."""
        if not self._allowed(error, call):
            return None
        n = max(1, self.throttles if self._apart(error) else self.failures)
        delay = self.previous = self.policy.seconds(n, self.previous, call.rng)
        if error.retry_after is not None:
            delay = max(delay, error.retry_after * (1 + call.rng.uniform(0, SPREAD)))
        return delay if self._in_time(delay, call) else None

    def _allowed(self, error: LLMError, call: Call) -> bool:
        verdict = error.verdict
        if not verdict.retry or call.committed:
            return False
        if not self.failures and not self.throttles:
            self.began += call.queue_s  # its clock starts when the first attempt is sent, not in line for it
        if error.retry_after is not None and error.retry_after > self.policy.max_retry_after:
            error.hint = (
                f"the provider asks to wait {error.retry_after:.0f} s, longer than Retry's max_retry_after of "
                f"{self.policy.max_retry_after:.0f} s"
            )
            return False
        if call.probe and verdict.breaker:
            return True  # the breaker reopens and parks the line; no row pays for having tried the door
        if self._apart(error) and self.policy.throttled is not None:
            self.throttles += 1
            return self.throttles <= self.policy.throttled
        self.failures += 1
        self.kinds[type(error)] = kind = self.kinds.get(type(error), 0) + 1
        return self.failures < self.policy.attempts and (verdict.retries is None or kind <= verdict.retries)

    def _apart(self, error: LLMError) -> bool:
        return error.verdict.throttle and self.policy.throttled is not None

    def _in_time(self, delay: float, call: Call) -> bool:
        then = asyncio.get_running_loop().time() + delay
        if call.deadline is not None and then >= call.deadline:
            return False
        return self.policy.deadline is None or then - self.began <= self.policy.deadline


async def _sleep(delay: float, call: Call) -> None:
    loop = asyncio.get_running_loop()
    began = loop.time()
    try:
        await asyncio.sleep(delay)
    finally:
        call.wait_s += loop.time() - began


def _checked(seconds: float) -> float:
    if isinstance(seconds, int | float) and 0 <= seconds < math.inf:
        return seconds
    raise ValueError(f"Retry: backoff must give a number of seconds of at least 0, not {seconds!r}")


def _one_of(name: str, value: object, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"Retry: {name} must be one of {', '.join(allowed)}, not {value!r}")
