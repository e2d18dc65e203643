"""At most so many calls in flight."""

# ruff: noqa: ARG002  the rules share one shape, and a slot asks only whether a call goes or ends

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from llmlab.rules.adapt import Decision


@dataclass
class Slots:
    """At most `limit` calls in flight at once; the limit may change while in use.

    A smaller limit interrupts nobody: calls in flight end by themselves before new ones are admitted.

    Raises:
        TypeError, ValueError: `limit` is no whole number of at least 1.
    """

    binds: ClassVar[str] = "concurrency"
    """What a wait for it means to a person."""

    limit: int = 32
    """Calls in flight at most, at least 1."""
    in_use: int = field(default=0, init=False, compare=False)
    """Calls in flight now."""
    _changed: Callable[[], None] | None = field(default=None, init=False, repr=False, compare=False)
    _tell: Callable[[object], None] | None = field(default=None, init=False, repr=False, compare=False)
    _now: float = field(default=0.0, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        _check(self.limit)

    def resize(self, limit: int) -> None:
        """Change the limit; those it lets in go at once."""
        _check(limit)
        self.limit = limit
        if self._tell is not None:
            self._tell(Decision(self._now, limit, "set by hand"))
        if self._changed is not None:
            self._changed()

    def watch(self, changed: Callable[[], None], tell: Callable[[object], None]) -> None:
        """Call `changed` when a new limit may let somebody in, `tell` with it as a `Decision`."""
        self._changed, self._tell = changed, tell

    def gauge(self, now: float) -> dict[str, float | str]:
        """Give `limit` and `in_flight`, for plots."""
        return {"limit": self.limit, "in_flight": self.in_use}

    def wait(self, now: float, cost: Mapping[str, float]) -> float:
        """0 if a slot is free, else infinity: only a settled call or a resize can help."""
        self._now = now
        return 0.0 if self.in_use < self.limit else math.inf

    def take(self, now: float, cost: Mapping[str, float]) -> None:
        """Occupy a slot."""
        self._now = now
        self.in_use += 1

    def settle(
        self,
        now: float,
        cost: Mapping[str, float],
        error: BaseException | None,
        used: Mapping[str, float] | None = None,
        levels: Mapping[str, tuple[float, float, float]] | None = None,
        sent: float | None = None,
        permit: object = None,
    ) -> None:
        """Free the slot."""
        self._now = now
        self.in_use -= 1

    def refuse(self, now: float) -> None:
        """Never: a slot comes free some time."""


def _check(limit: object) -> None:
    if isinstance(limit, bool) or not isinstance(limit, int):
        raise TypeError(f"concurrency must be a whole number, not {limit!r}")
    if limit < 1:
        raise ValueError(f"concurrency must be at least 1, not {limit}")
