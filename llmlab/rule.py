"""What Admit asks before it lets a call go: the shape that all rules share, `llmlab.rules` and those of your own."""

from collections.abc import Callable, Mapping
from typing import Any, Protocol, TypeAlias

from llmlab.errors import LLMError

Cost: TypeAlias = Mapping[str, float]
"""Dimension -> amount: requests, input_tokens, output_tokens, total_tokens, usd."""
Levels: TypeAlias = Mapping[str, tuple[float, float, float]]
"""Dimension -> limit, remaining, seconds until full."""


class Rule(Protocol):
    """Something that may say "not yet". Never awaits; `now` is loop time, seconds."""

    @property
    def binds(self) -> str:
        """What a wait for it means to a person: concurrency, rate limit, provider or budget."""
        ...

    def wait(self, now: float, cost: Cost) -> float:
        """Seconds until this call may go: 0 now, infinity if only somebody's leaving can help."""
        ...

    def take(self, now: float, cost: Cost) -> object:
        """Debit an admitted call; what it returns is handed back to `settle` as the permit."""
        ...

    def settle(
        self,
        now: float,
        cost: Cost,
        error: BaseException | None,
        used: Cost | None,
        levels: Levels | None,
        sent: float | None,
        permit: object,
    ) -> None:
        """Note that an admitted call has ended; called exactly once for each `take`.

        Args:
            now: Loop time.
            cost: As given to `take`.
            error: Why it failed; None if it did not.
            used: What it has really used, in the dimensions of `cost`; None if unknown.
            levels: What the provider said of its limits; None if nothing.
            sent: When the request was sent; None if it never was.
            permit: What `take` returned.
        """
        ...

    def refuse(self, now: float) -> LLMError | None:
        """Why those who wait had better give up; None: waiting makes sense."""
        ...

    def watch(self, changed: Callable[[], None], tell: Callable[[Any], None]) -> None:
        """Call `changed` when new settings may let somebody in, `tell` with each thing that happened, as a value."""
        ...

    def gauge(self, now: float) -> Mapping[str, float | str]:
        """What there is to see of the rule, by the columns of `llmlab.history.LIMITS`."""
        ...


class Budget(Rule, Protocol):
    """A rule on what may be spent in all."""

    def price_missing(self, cost: Cost) -> bool:
        """Whether the call cannot be judged, as its price is not known."""
        ...
