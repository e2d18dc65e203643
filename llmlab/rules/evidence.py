"""What results say about a provider's health: why a breaker should open.

    failure ratio   failures are too large a part of the window, or the last `min_calls` results were all failures
    unreachable     so many calls running had no answer at all
    throttled       429s have come for long, with no success between; a lesser spell says nothing about health

An error counts as its verdict says (`Verdict.breaker`); a 429 only when they have come for long.
"""

from collections import deque
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from llmlab.errors import LLMError, Unreachable

Cause: TypeAlias = Literal["failure ratio", "unreachable", "throttled"]


@dataclass
class Window:
    """Results of the last `span` seconds, forgotten a tenth of the span at a time."""

    span: float
    """Seconds."""
    calls: int = 0
    """Successes and failures in it."""
    failures: int = 0
    """Failures in it."""
    _buckets: deque[list[int]] = field(default_factory=deque)  # slot, calls, failures

    def add(self, now: float, *, failed: bool) -> None:
        """Take in a result."""
        slot = int(now / self.span * 10)
        if not self._buckets or self._buckets[-1][0] != slot:
            self._buckets.append([slot, 0, 0])
        while self._buckets[0][0] <= slot - 10:
            _, calls, failures = self._buckets.popleft()
            self.calls -= calls
            self.failures -= failures
        self.calls += 1
        self.failures += failed
        newest = self._buckets[-1]
        newest[1] += 1
        newest[2] += failed


@dataclass
class Evidence:
    """Results since a breaker's last transition; 429s and calls without an answer since the last success."""

    span: float
    """Results count for so many seconds."""
    min_calls: int
    """Fewer results than this decide nothing about the ratio."""
    failure_ratio: float
    """So large a part of failures in the window is too much."""
    consecutive: int
    """So many calls running without an answer are too many."""
    throttled_for: float
    """429s for longer than so many seconds are too many."""
    silence: float
    """So many seconds between two 429s, or more, end their spell: it proves nothing."""

    def __post_init__(self) -> None:
        self._window = Window(self.span)
        self._unreached = 0  # calls running without an answer
        self._run: deque[float] = deque(maxlen=self.min_calls)  # times of failures with no success between them
        self._throttled: tuple[float, float] | None = None  # the first and the last 429 since the last success
        self._sustained = False  # the failure last taken in was one of a long spell of 429s

    @property
    def calls(self) -> int:
        """Successes and failures in the window."""
        return self._window.calls

    @property
    def failures(self) -> int:
        """Failures in the window."""
        return self._window.failures

    def add(self, now: float, *, failed: bool) -> None:
        """Count a result that came without a word: a probe that hung."""
        self._window.add(now, failed=failed)

    def succeed(self, now: float) -> None:
        """Count a success: it ends every spell."""
        self._unreached, self._throttled = 0, None
        self._run.clear()
        self._window.add(now, failed=False)

    def fail(self, now: float, error: LLMError) -> bool:
        """Take in an error; returns whether it speaks against the provider."""
        self._sustained = error.verdict.throttle and self._spell(now) > self.throttled_for
        # A 408 or 504 is a TimedOut as well, but something has answered.
        self._unreached = self._unreached + 1 if isinstance(error, Unreachable) and error.status is None else 0
        counts = error.verdict.breaker or self._sustained
        if counts:
            self._window.add(now, failed=True)
            self._run.append(now)
        return counts

    def reason(self) -> Cause | None:
        """Why the failure just counted is one too many, if it is."""
        if self._sustained:
            return "throttled"
        if self._unreached >= self.consecutive:
            return "unreachable"
        # A busy window full of old successes would take long to tip: the last min_calls results speak for themselves.
        tipped = self.calls >= self.min_calls and self.failures >= self.failure_ratio * self.calls
        solid = len(self._run) == self.min_calls and self._run[-1] - self._run[0] < self.span
        return "failure ratio" if tipped or solid else None

    def clear(self) -> None:
        """Begin a new window, as what was sent before says nothing now; spells go on until a success."""
        self._window = Window(self.span)

    def excuse_silence(self, now: float) -> None:
        """Let a spell of 429s go on: that none came meanwhile is no sign, as nothing was sent."""
        if self._throttled is not None:
            self._throttled = self._throttled[0], now

    def _spell(self, now: float) -> float:
        """Note a 429; seconds for which they have come."""
        since, last = self._throttled or (now, now)
        if now - last > self.silence:
            since = now
        self._throttled = since, now
        return now - since
