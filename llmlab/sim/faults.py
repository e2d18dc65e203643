"""What goes wrong, as data: per request, drawn from the seed, or for a window of time.

A request's own fault depends on the seed, its body and how often that body has been seen, never on the order
of arrival: the same rows meet the same faults at every concurrency and under every strategy. A retry is the
body seen once more, so it draws afresh. Windows (`Outage`, `Burst`) go by the time since the first request.
"""

import bisect
import math
import random
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from llmlab.sim.kinds import KINDS, Kind

MIXED = {
    "rate_limited": 3.0,
    "rate_limited_ms": 1.0,
    "rate_limited_text": 1.0,
    "overloaded": 2.0,
    "server_error": 2.0,
    "unavailable": 1.0,
    "bad_gateway_html": 1.0,
    "timeout": 0.5,
    "conflict": 0.5,
    "reset": 2.0,
    "hangup": 1.0,
    "reset_midway": 1.0,
    "cut": 1.0,
    "cut_silent": 1.0,
    "stall": 0.5,
    "stall_midway": 0.5,
    "malformed": 0.5,
    "html_200": 0.5,
    "error_in_stream": 1.0,
}
"""Shares of the recoverable mixture."""

QUIRKS = tuple(kind.name for kind in KINDS.values() if kind.family == "quirk" and kind.name != "big_line")
"""Shapes of other servers, without the one that costs 2 MB."""

MISFITS = ("misfit_type", "misfit_missing", "misfit_cut", "misfit_prose")
"""Ways in which JSON that was asked for is not what was asked for."""


@dataclass(frozen=True, slots=True)
class Outage:
    """A window of time in which requests fail."""

    start: float
    """Seconds after the simulator's first request."""
    duration: float
    """Seconds that it lasts."""
    kind: str = "unavailable"
    """What the requests meet that arrive in it."""
    rate: float = 1.0
    """Share of them that meet it."""

    def __post_init__(self) -> None:
        _known(self.kind)
        _share(self.kind, self.rate)
        if self.start < 0 or self.duration < 0:
            raise ValueError(
                f"an outage starts at 0 or later and lasts 0 s or longer, not {self.start}+{self.duration}"
            )

    def holds(self, at: float, seed: int) -> bool:  # noqa: ARG002  a Burst needs it
        """Say whether it is on, `at` seconds after the first request."""
        return self.start <= at < self.start + self.duration


@dataclass(frozen=True)
class Burst:
    """Errors that come in bursts: a provider that is good and bad in turns (Gilbert-Elliott).

    The lengths of the spells are exponential and depend on the seed alone.
    """

    good: float
    """Mean seconds of a good spell; it starts with one."""
    bad: float
    """Mean seconds of a bad spell."""
    kind: str = "server_error"
    """What the requests meet that arrive in a bad spell."""
    rate: float = 0.9
    """Share of them that meet it."""
    _turns: dict[int, tuple[random.Random, list[float]]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        _known(self.kind)
        _share(self.kind, self.rate)
        if not (self.good > 0 and self.bad > 0):
            raise ValueError(f"a burst's spells last more than 0 s, not {self.good}/{self.bad}")

    def holds(self, at: float, seed: int) -> bool:
        """Say whether it is a bad spell, `at` seconds after the first request."""
        rng, turns = self._turns.setdefault(seed, (random.Random(seed), []))
        while not turns or turns[-1] <= at:
            mean = self.bad if len(turns) % 2 else self.good
            turns.append((turns[-1] if turns else 0.0) + rng.expovariate(1 / mean))
        return bisect.bisect_right(turns, at) % 2 == 1


def _known(kind: str) -> None:
    if kind not in KINDS:
        raise ValueError(f"no fault kind {kind!r}; known: {', '.join(sorted(KINDS))}")


def _share(name: str, rate: float) -> None:
    if not 0 <= rate <= 1:
        raise ValueError(f"the rate of {name} is a share between 0 and 1, not {rate}")


@dataclass(frozen=True)
class Faults:
    """What goes wrong, how often and when. The default: nothing."""

    rates: Mapping[str, float] = field(default_factory=dict)
    """Kind of fault -> share of requests that meet it; together at most 1."""
    windows: tuple[Outage | Burst, ...] = ()
    """Spells in which requests fail besides; the first that holds counts."""
    retry_after: float = 1.5
    """Seconds that a 429 drawn here asks to wait."""
    stall: float = 2.0
    """Seconds of silence of the stalls."""

    def __post_init__(self) -> None:
        for name, rate in self.rates.items():
            _known(name)
            _share(name, rate)
        if sum(self.rates.values()) > 1 + 1e-9:
            raise ValueError(f"the rates add up to {sum(self.rates.values()):.3g}: at most 1 is possible")
        if not (0 <= self.retry_after < math.inf and 0 <= self.stall < math.inf):
            raise ValueError(f"retry_after and stall are seconds, not {self.retry_after} and {self.stall}")

    @classmethod
    def mixed(cls, rate: float = 0.1) -> "Faults":
        """Make a mixture of faults that a retry mends, met by `rate` of the requests (a share)."""
        _share("mixed", rate)
        total = sum(MIXED.values())
        return cls({name: rate * share / total for name, share in MIXED.items()})

    @classmethod
    def quirks(cls, rate: float = 1.0) -> "Faults":
        """Make a mixture of unusual but correct answers, met by `rate` of the requests (a share)."""
        _share("quirks", rate)
        return cls({name: rate / len(QUIRKS) for name in QUIRKS})

    @classmethod
    def misfits(cls, rate: float = 0.2) -> "Faults":
        """Make a mixture of answers that do not fit the schema asked for, met by `rate` of the requests (a share)."""
        _share("misfits", rate)
        return cls({name: rate / len(MISFITS) for name in MISFITS})

    @classmethod
    def only(cls, kind: str, rate: float = 1.0) -> "Faults":
        """Make one kind of fault, met by `rate` of the requests (a share)."""
        return cls({kind: rate})

    @classmethod
    def outage(cls, start: float, duration: float, *, kind: str = "unavailable") -> "Faults":
        """Make one window, in seconds after the first request, in which every request fails."""
        return cls(windows=(Outage(start, duration, kind),))

    def __or__(self, other: "Faults") -> "Faults":
        """Join two: rates add up, windows follow one another, waiting times are those of the right one."""
        names = {**self.rates, **other.rates}  # in this order: joining a window must change no other draw
        rates = {name: self.rates.get(name, 0.0) + other.rates.get(name, 0.0) for name in names}
        return replace(other, rates=rates, windows=self.windows + other.windows)

    @classmethod
    def parse(cls, text: str) -> "Faults":
        """Read the command line's form: items joined by commas.

        `none`; `mixed:0.1`; `quirks:0.2`; `misfits:0.2`; `KIND:RATE` (`cut:0.05`); `outage:START+SECONDS`, with `@KIND`
        behind it if need be; `storm:START+SECONDS` (of 429s); `burst:GOOD/BAD` (mean seconds), `@KIND`;
        `retry_after:SECONDS` and `stall_for:SECONDS` set the fields `retry_after` and `stall`.

        Raises:
            ValueError: an item is none of these.
        """
        faults = cls()
        for item in filter(None, (each.strip() for each in text.split(","))):
            name, _, value = item.partition(":")
            try:
                faults = _item(faults, name, value)
            except ValueError as error:
                raise ValueError(f"faults: cannot read {item!r}: {error}") from None
        return faults

    def pick(self, rng: random.Random, at: float, seed: int) -> Kind | None:
        """Draw a request's fault; takes the same number of draws from `rng` whatever comes out.

        Args:
            rng: The request's own source of randomness.
            at: Seconds since the first request.
            seed: The simulator's seed.
        """
        share, own = rng.random(), rng.random()
        for window in self.windows:
            if share < window.rate and window.holds(at, seed):
                return KINDS[window.kind]
        for name, rate in self.rates.items():
            own -= rate
            if own < 0:
                return KINDS[name]
        return None

    def down(self, at: float) -> bool:
        """Say whether an outage is on, `at` seconds after the first request."""
        return any(isinstance(each, Outage) and each.holds(at, 0) for each in self.windows)

    def wait(self, kind: Kind) -> float | None:
        """Seconds that a refusal of this kind asks to wait; None: it does not say."""
        if kind.error != "rate_limited" or kind.hint == "none":
            return None
        return 200.0 if kind.name == "rate_limited_long" else self.retry_after


def _item(faults: Faults, name: str, value: str) -> Faults:
    if name == "none" and not value:
        return faults
    if name == "retry_after":
        return replace(faults, retry_after=float(value))
    if name == "stall_for":
        return replace(faults, stall=float(value))
    span, _, kind = value.partition("@")
    if name in ("outage", "storm"):
        start, _, duration = span.partition("+")
        kind = kind or ("rate_limited" if name == "storm" else "unavailable")
        return replace(faults, windows=(*faults.windows, Outage(float(start), float(duration), kind)))
    if name == "burst":
        good, _, bad = span.partition("/")
        window = Burst(float(good), float(bad), kind or "server_error")
        return replace(faults, windows=(*faults.windows, window))
    mixtures = {"mixed": Faults.mixed, "quirks": Faults.quirks, "misfits": Faults.misfits}
    extra = mixtures[name](float(value)) if name in mixtures else Faults.only(name, float(value or 1))
    return replace(faults | extra, retry_after=faults.retry_after, stall=faults.stall)
