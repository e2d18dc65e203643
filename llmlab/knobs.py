"""What may be turned in a strategy by hand: its rate, how often it retries, and how it spreads retries."""

import math
from dataclasses import dataclass, replace
from typing import Any, Self, get_args

from llmlab.backoff import BACKOFFS
from llmlab.policies.admit import Admit
from llmlab.policies.retry import Jitter, Retry
from llmlab.rules.rate import Rate
from llmlab.strategy import Strategy

JITTERS = (*get_args(Jitter), *BACKOFFS)
"""How retries may be spread: the jitters of Retry, and the named formulas of `llmlab.backoff`."""
OWN = "own"
"""Stands for a formula of the user's own."""


@dataclass(frozen=True)
class Knobs:
    """How they stand."""

    rpm: float | None
    """Requests per minute at most; None: no limit of ours."""
    attempts: int | None
    """Attempts at most that end in a failure; None: the strategy has no Retry."""
    jitter: str | None
    """One of JITTERS, or OWN; None: the strategy has no Retry."""
    rated: bool
    """Whether the strategy has a Rate that could be set."""

    def __post_init__(self) -> None:
        if self.rpm is not None and not 0 < self.rpm < math.inf:
            raise ValueError(f"rpm must be above 0, not {self.rpm!r}")
        if self.jitter not in (None, OWN, *JITTERS):
            raise ValueError(f"jitter must be one of {', '.join(JITTERS)}, not {self.jitter!r}")

    @classmethod
    def of(cls, strategy: Strategy) -> Self:
        """As a strategy has them."""
        retry = next((each for each in strategy.policies if isinstance(each, Retry)), None)
        rate = next((rule for rule in _rules(strategy) if isinstance(rule, Rate)), None)
        rpm = None if rate is None else rate.rpm
        if retry is None:
            return cls(rpm, None, None, rate is not None)
        spread = retry.jitter if retry.backoff is None else retry.backoff
        return cls(rpm, retry.attempts, spread if isinstance(spread, str) else OWN, rate is not None)

    def on(self, strategy: Strategy) -> Strategy:
        """A fresh copy of a strategy with them; the same strategy, fresh, if it has them already."""
        if self == type(self).of(strategy):
            return strategy.fresh()
        return replace(strategy, policies=tuple(self._turned(each) for each in strategy.fresh().policies))

    def _turned(self, policy: Any) -> Any:
        if isinstance(policy, Retry) and self.attempts is not None:
            return replace(policy, attempts=self.attempts, **self._spread)
        if isinstance(policy, Admit):
            return replace(policy, rules=tuple(self._rated(rule) for rule in policy.rules))
        return policy

    def _rated(self, rule: Any) -> Any:
        return replace(rule, rpm=self.rpm) if isinstance(rule, Rate) else rule

    @property
    def _spread(self) -> dict[str, Any]:
        if self.jitter in BACKOFFS:
            return {"backoff": self.jitter}
        return {} if self.jitter in (None, OWN) else {"backoff": None, "jitter": self.jitter}

    def __str__(self) -> str:
        retry = "" if self.attempts is None else f"retry attempts={self.attempts}, jitter={self.jitter!r}"
        rate = f"rpm={self.rpm:g}" if self.rpm is not None else ""
        return ", ".join(filter(None, (retry, rate)))


def _rules(strategy: Strategy) -> tuple[Any, ...]:
    return () if strategy.admit is None else strategy.admit.rules
