"""Stop asking a provider that is down, and find out cheaply when it is back.

    state      who asks                what happens                                    next        reason
    closed     goes (after an outage   failures are too large a part of the window     open        failure ratio
               within the ramp)        nothing answers, so many times running          open        unreachable
                                       429s for long, no success between               open        throttled
    open       waits                   the wait is over                                half_open   wait over
    half_open  goes while there are    `probes` successes                              closed      recovered
               permits, else waits     a failure, or a 429 while throttled             open again  probe failed
                                       all permits out, no answer for long             open again  probe hung
    any        -                       cancelled, or not the provider's fault:         -
                                       the permit is returned
                                       the result of a call of an earlier state        -           only counted

Every transition begins a generation. A result moves the breaker only if its permit is of the present generation: what
was sent before an outage says nothing about the provider now, and a probe's answer must not be mistaken for another's.

The n-th opening of an outage (from 0) lasts min(open_max, open_for 2^n) U(1 - jitter, 1 + jitter) seconds, and no
shorter than the Retry-After of a failure. Having closed, the breaker lets in max(probes, N/2) calls at once, N having
been in flight when it opened, and one more for each success until there are N: a burst of full width on a provider just
back would open it again. Slowness alone opens nothing: answers differ in length, and nobody says how slow is slow.
"""

# ruff: noqa: ARG002  the rules share one shape, and what a call cost or used says nothing about health

import math
import random
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal, TypeAlias

from llmlab.errors import LLMError, ProviderDown, Rejected
from llmlab.rules.checks import Setting, check_all
from llmlab.rules.evidence import Evidence

State: TypeAlias = Literal["closed", "open", "half_open"]
Reason: TypeAlias = Literal[
    "failure ratio", "unreachable", "throttled", "wait over", "recovered", "probe failed", "probe hung"
]


@dataclass(frozen=True, slots=True)
class Permit:
    """What a call was admitted under; handed back when it is settled."""

    generation: int
    """The breaker's generation at admission."""
    state: State
    """The breaker's state at admission."""

    @property
    def probe(self) -> bool:
        """Whether the call tries out a provider that was down."""
        return self.state == "half_open"


@dataclass(frozen=True, slots=True)
class Transition:
    """A breaker changed its state."""

    at: float
    """Loop time, seconds."""
    old: State
    """The state that ended."""
    new: State
    """The state that began."""
    reason: Reason
    """Why, as in the module's table."""
    failures: int
    """Failures in the window of the state that ended, a hung probe included."""
    calls: int
    """Successes and failures in that window."""
    generation: int
    """The generation that began."""
    lasts: float
    """Seconds that the breaker stays open; 0 in other states."""


@dataclass
class Breaker:
    """Hold calls back while the provider is down. They wait, none fails; the job may give up, see `given_up`.

    Speaks of one target: one endpoint, model and key. Errors count as their verdict says (`Verdict.breaker`).
    """

    binds: ClassVar[str] = "provider"
    """What a wait for it means to a person."""

    window: float = 30.0
    """Results count for so many seconds."""
    min_calls: int = 20
    """Fewer results in the window than this decide nothing about the ratio."""
    failure_ratio: float = 0.5
    """Opens at this part of failures in the window, above 0, at most 1; or after `min_calls` failures running."""
    consecutive: int = 10
    """Opens when so many calls running had no answer at all: the host is dead, no need to fill the window."""
    throttled_for: float = 60.0
    """Opens when 429s have come for longer than so many seconds without a success; a lesser spell is the limiter's."""
    open_for: float = 5.0
    """First opening of an outage, seconds; doubles with each further one."""
    open_max: float = 120.0
    """Longest opening before jitter, seconds; a Retry-After may be longer."""
    jitter: float = 0.2
    """An opening's length varies by this part, from 0 to below 1."""
    probes: int = 3
    """Calls let through to try the provider; so many successes close the breaker."""
    probe_timeout: float = 30.0
    """Probes that stay silent for longer than this, and than three times the p99 of successes, have failed; seconds."""
    give_up_after: float = 600.0
    """Waiting on is pointless after so many seconds of outage. 0: at once; infinity: never."""
    late_success_probe: bool = False
    """A success of a call sent before the outage ends the wait, but not a Retry-After."""
    seed: int = 0
    """Seeds the jitter. Processes that share a provider should not share the seed."""

    state: State = field(default="closed", init=False, compare=False)
    """closed, open or half_open; time alone moves it only when somebody asks."""
    generation: int = field(default=0, init=False, compare=False)
    """Transitions so far."""
    transitions: deque[Transition] = field(init=False, repr=False, compare=False)
    """The last thousand transitions, oldest first."""
    down_since: float = field(default=math.inf, init=False, compare=False)
    """Loop time at which the outage began; infinity: there is none."""
    reopened: int = field(default=0, init=False, compare=False)
    """Times the breaker has opened again in this outage."""
    last_error: str = field(default="", init=False, compare=False)
    """The last failure seen, safe to show."""
    not_permitted: int = field(default=0, init=False, compare=False)
    """Times somebody asked and had to wait; who asks again is counted again."""
    late_results: int = field(default=0, init=False, compare=False)
    """Results of calls of an earlier generation."""
    cancelled_permits: int = field(default=0, init=False, compare=False)
    """Calls that ended without a word about the provider."""

    def __post_init__(self) -> None:
        check_all(self, _SETTINGS)
        if self.open_max < self.open_for:
            raise ValueError(f"Breaker: open_max must be at least open_for, {self.open_for!r}, not {self.open_max!r}")
        self.transitions = deque(maxlen=1000)
        self._rng = random.Random(self.seed)
        self._permit = Permit(self.generation, self.state)
        self._evidence = Evidence(
            self.window, self.min_calls, self.failure_ratio, self.consecutive, self.throttled_for, self.open_max
        )
        self._tell: Callable[[object], None] | None = None
        self._out = 0  # permits of this generation not yet settled
        self._room = math.inf  # of which there may be so many
        self._width = 0  # calls in flight when the outage began
        self._until = self._asked_until = 0.0  # when the wait is over; the latest Retry-After since a success
        self._durations: deque[float] = deque(maxlen=256)  # of successes, seconds
        self._patience = self.probe_timeout
        # A stopwatch of the probes' silence. It stands while none is out and only an answer sets it back: callers that
        # give up on a hung provider sooner than the watchdog must not keep it from barking.
        self._silent = self._silent_since = 0.0

    def watch(self, changed: Callable[[], None], tell: Callable[[object], None]) -> None:
        """Call `tell` with each `Transition`; `changed` never: only the time and settled calls change its mind."""
        self._tell = tell

    def gauge(self, now: float) -> dict[str, float | str]:
        """Give the state as it is, for plots: looking does not move it."""
        return {"breaker": self.state}

    def wait(self, now: float, cost: Mapping[str, float]) -> float:
        """Seconds until the wait's end, the watchdog or the giving up; infinity within the ramp: others must leave."""
        if self.state != "closed":
            self._advance(now)
        if self._out < self._room:
            return 0.0
        self.not_permitted += 1
        if self.state == "closed":
            return math.inf
        if self.state == "half_open":
            return self._silent_since + self._patience - now
        give_up = self.down_since + self.give_up_after
        return (min(self._until, give_up) if now < give_up else self._until) - now

    def take(self, now: float, cost: Mapping[str, float]) -> Permit:
        """Admit a call; a `RuntimeError` if `wait` did not just say 0."""
        if self._out >= self._room:
            raise RuntimeError(f"the breaker is {self.state} and has no permit left: ask `wait` first")
        if self._out == 0:
            self._silent_since = now - self._silent
        self._out += 1
        return self._permit

    def settle(
        self, now: float, cost: Mapping[str, float], error: BaseException | None, used: object, levels: object,
        sent: float | None, permit: object,
    ) -> None:  # fmt: skip
        """Learn from a call that has ended; `sent` is None if it never left, `permit` is what `take` gave."""
        if not isinstance(permit, Permit):
            raise TypeError(f"a breaker settles with the permit that `take` gave, not with {permit!r}")
        said_nothing = _said_nothing(error, sent)
        self.cancelled_permits += said_nothing
        if permit.generation != self.generation:
            if not said_nothing:
                self._count_late(now, success=error is None)
            return
        self._out -= 1
        if said_nothing:
            self._silent = now - self._silent_since
            return
        self._silent, self._silent_since = 0.0, now
        if isinstance(error, LLMError):
            self._weigh(now, error)
        elif sent is not None:  # pragma: no branch  only the type checker doubts it here
            self._succeed(now, now - sent)

    def given_up(self, now: float) -> bool:
        """Whether the outage has lasted for `give_up_after`. Not while probes are out or due: they may end it."""
        return self.down_since + self.give_up_after <= now < self._until

    def refuse(self, now: float) -> ProviderDown | None:
        """The error that ends a job which has given up; None while there is hope."""
        return (
            None
            if not self.given_up(now)
            else ProviderDown(f"down for {now - self.down_since:.0f} s; last error: {self.last_error}")
        )

    def _advance(self, now: float) -> None:
        if self.state == "open":
            if now >= self._until:
                self._half_open(now)
        elif self._out >= self._room and now >= self._silent_since + self._patience:
            self.last_error = f"probes hung: no answer for {self._patience:.0f} s"
            self._evidence.add(now, failed=True)
            self._open(now, "probe hung")

    def _count_late(self, now: float, *, success: bool) -> None:
        self.late_results += 1
        if self.late_success_probe and success and self.state == "open":
            self._until = max(now, self._asked_until)

    def _succeed(self, now: float, took: float) -> None:
        self._asked_until = 0.0
        self._durations.append(took)
        self._evidence.succeed(now)
        if self.state == "half_open":
            self._room -= 1  # the permit is used up, not returned
            if self._room == 0:
                self._close(now)
        elif self._room < math.inf:
            self._widen(self._room + 1)

    def _weigh(self, now: float, error: LLMError) -> None:
        """Decide what an error says about the provider."""
        if not self._evidence.fail(now, error):
            return
        self.last_error = f"{type(error).__name__}: {error}"
        self._asked_until = max(self._asked_until, now + (error.retry_after or 0.0))
        if self.state == "half_open":
            self._open(now, "probe failed")
        elif reason := self._evidence.reason():
            self._open(now, reason)

    def _open(self, now: float, reason: Reason) -> None:
        if self.state == "closed":
            self.down_since, self.reopened = now, 0
            self._width = self._out + 1  # the call being settled was in flight as well
        else:
            self.reopened += 1
        lasts = min(self.open_max, self.open_for * 2.0 ** min(self.reopened, 64))
        lasts *= self._rng.uniform(1 - self.jitter, 1 + self.jitter)
        self._until = max(now + lasts, self._asked_until)
        self._room = 0
        self._turn(now, "open", reason, self._until - now)

    def _half_open(self, now: float) -> None:
        if now - self._until > self.open_max:
            # Nobody has asked for long: an idle lab has not been waiting for the provider.
            self.down_since = now
        else:
            self._evidence.excuse_silence(now)
        self._room = self.probes
        self._silent = 0.0
        ranked = sorted(self._durations) or [0.0]
        self._patience = max(self.probe_timeout, 3 * ranked[math.ceil(0.99 * len(ranked)) - 1])
        self._turn(now, "half_open", "wait over")

    def _close(self, now: float) -> None:
        self.down_since = math.inf
        self._widen(max(self.probes, self._width // 2))
        self._turn(now, "closed", "recovered")

    def _widen(self, room: float) -> None:
        self._room = room if room < self._width else math.inf

    def _turn(self, now: float, new: State, reason: Reason, lasts: float = 0.0) -> None:
        """Begin a generation. Last in each transition: who listens finds the new state complete."""
        old, failures, calls = self.state, self._evidence.failures, self._evidence.calls
        self.state, self.generation = new, self.generation + 1
        self._permit = Permit(self.generation, new)
        self._evidence.clear()
        self._out = 0
        transition = Transition(now, old, new, reason, failures, calls, self.generation, lasts)
        self.transitions.append(transition)
        if self._tell is not None:
            self._tell(transition)


_SETTINGS: tuple[Setting, ...] = (
    ("min_calls consecutive probes", lambda v: isinstance(v, int) and v >= 1, "a whole number of at least 1"),
    ("window throttled_for open_for open_max probe_timeout", lambda v: 0 < v < math.inf, "seconds above 0"),
    ("give_up_after", lambda v: v >= 0, "seconds of at least 0, or infinity"),
    ("failure_ratio", lambda v: 0 < v <= 1, "above 0 and at most 1"),
    ("jitter", lambda v: 0 <= v < 1, "at least 0 and below 1"),
    ("seed", lambda v: isinstance(v, int), "a whole number"),
)


def _said_nothing(error: BaseException | None, sent: float | None) -> bool:
    """Whether a call ended without a word about the provider: cancelled, never sent, or a mistake of our own."""
    if isinstance(error, LLMError):
        return isinstance(error, Rejected)
    return error is not None or sent is None
