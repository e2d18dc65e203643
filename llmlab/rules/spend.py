"""No more than so much money, or so many tokens, in all: a budget for a whole lab or for one job.

    admitted    when spent + reserved + cost <= cap, in each dimension that is limited; the cost is then reserved

    settled                              spent of what was reserved
    never sent                           nothing
    use known, failed or not             the real use
    refused by the provider              nothing: no provider bills a refusal
    otherwise, use unknown               all of it, as it may be billed: failed, cancelled, no usage in the answer

    does not fit                         the line
    while something is reserved          waits: some of it may be given back
    with nothing in flight               is refused, as nothing will ever make room

The cap holds if costs are upper bounds; what a call uses beyond its cost is spent all the same.
"""

# ruff: noqa: ARG002  the rules share one shape, and a budget knows no time

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import ClassVar, TypeAlias

from llmlab.errors import BudgetSpent, Refused
from llmlab.rules.checks import amount_above_zero, count

Cost: TypeAlias = Mapping[str, float]
Levels: TypeAlias = Mapping[str, tuple[float, float, float]]

SLACK = 1e-9
"""Share of the dollars: sums of floats are off by less, and three times $0.10 are to fit into $0.30."""
CENT = 0.01
"""US dollars."""


@dataclass
class Spend:
    """Let no call go that may bring what is spent above a cap. Knows no pace; see `Rate` for that.

    What is spent outside may be added to `spent_usd` and `spent_tokens` at any time.

    Raises:
        TypeError, ValueError: neither is given, `usd` is no finite number above 0, or `tokens` no whole number of at
            least 1.
    """

    binds: ClassVar[str] = "budget"
    """What a wait for it means to a person."""

    usd: float | None = None
    """US dollars in all, above 0. None: as many as it takes."""
    tokens: int | None = None
    """Tokens in all, input and output together, at least 1. None: as many as it takes."""
    spent_usd: float = field(default=0.0, init=False, compare=False)
    """US dollars spent so far, or possibly billed; 0 for calls without a price."""
    spent_tokens: float = field(default=0.0, init=False, compare=False)
    """Tokens spent so far, or possibly billed."""
    reserved_usd: float = field(default=0.0, init=False, compare=False)
    """US dollars that the calls in flight may cost."""
    reserved_tokens: float = field(default=0.0, init=False, compare=False)
    """Tokens that the calls in flight may use."""
    in_use: int = field(default=0, init=False, compare=False)
    """Calls in flight now."""
    _asked: Cost | None = field(default=None, init=False, repr=False, compare=False)  # the last that did not fit

    def __post_init__(self) -> None:
        if self.usd is None and self.tokens is None:
            raise ValueError("Spend: usd or tokens must be given, a budget without either limits nothing")
        if self.usd is not None:
            amount_above_zero("Spend: usd", self.usd)
        if self.tokens is not None:
            count("Spend: tokens", self.tokens)

    def price_missing(self, cost: Cost) -> bool:
        """Whether a call cannot be judged: money is limited, and its price is not known."""
        return self.usd is not None and "usd" not in cost

    def watch(self, changed: Callable[[], None], tell: Callable[[object], None]) -> None:
        """Call neither: only settled calls make room, and a budget has nothing to tell before it is spent."""

    def gauge(self, now: float) -> dict[str, float | str]:
        """Give `spent_usd` and `spent_tokens`, those that are limited, for plots."""
        seen: dict[str, float | str] = {}
        if self.usd is not None:
            seen["spent_usd"] = self.spent_usd
        if self.tokens is not None:
            seen["spent_tokens"] = self.spent_tokens
        return seen

    def wait(self, now: float, cost: Cost) -> float:
        """0 if the call fits, else infinity: only a settled call can help, or none (`refuse`)."""
        self._asked = None if self._short(cost) is None else cost
        return 0.0 if self._asked is None else math.inf

    def take(self, now: float, cost: Cost) -> None:
        """Reserve what the call may cost."""
        self.in_use += 1
        self.reserved_usd += cost.get("usd", 0.0)
        self.reserved_tokens += cost.get("total_tokens", 0.0)

    def settle(
        self,
        now: float,
        cost: Cost,
        error: BaseException | None,
        used: Cost | None,
        levels: Levels | None,
        sent: float | None,
        permit: object = None,
    ) -> None:
        """Turn what was reserved into what was spent, and give the rest back."""
        self.in_use -= 1
        # Exactly nothing is reserved when nothing is in flight: what sums of floats leave behind would add up.
        self.reserved_usd = self.reserved_usd - cost.get("usd", 0.0) if self.in_use else 0.0
        self.reserved_tokens = self.reserved_tokens - cost.get("total_tokens", 0.0) if self.in_use else 0.0
        if sent is not None:
            self.spent_usd += _spent("usd", cost, error, used)
            self.spent_tokens += _spent("total_tokens", cost, error, used)

    def refuse(self, now: float) -> BudgetSpent | None:
        """Why the call last asked for had better give up; None while there is hope, or if it fits."""
        asked = self._asked
        short = None if self.in_use or asked is None else self._short(asked)
        if asked is None or short is None:
            return None
        if self.price_missing(asked):
            return BudgetSpent(f"budget_usd={self.usd} is set, and the price of the next request is not known")
        if short == "usd":
            return _refusal(f"budget_usd={self.usd}", self.spent_usd, _usd, f"cost {_usd(asked['usd'])}")
        return _refusal(f"budget_tokens={self.tokens}", self.spent_tokens, _tokens, f"use {asked['total_tokens']:.0f}")

    def _short(self, cost: Cost) -> str | None:
        """The first dimension in which a call does not fit."""
        usd = math.inf if self.price_missing(cost) else cost.get("usd", 0.0)
        if self.usd is not None and self.spent_usd + self.reserved_usd + usd > self.usd * (1 + SLACK):
            return "usd"
        tokens = cost.get("total_tokens", 0.0)
        if self.tokens is not None and self.spent_tokens + self.reserved_tokens + tokens > self.tokens:
            return "total_tokens"
        return None


def _spent(name: str, cost: Cost, error: BaseException | None, used: Cost | None) -> float:
    """What a call that was sent has spent (the table above)."""
    if used is not None and name in used:
        return used[name]
    return 0.0 if isinstance(error, Refused) else cost.get(name, 0.0)


def _refusal(budget: str, spent: float, said: Callable[[float], str], needed: str) -> BudgetSpent:
    state = "is spent" if spent > 0 else "is too little"
    return BudgetSpent(f"{budget} {state}: {said(spent)} so far and the next request may {needed}")


def _tokens(amount: float) -> str:
    return f"{amount:.0f} tokens"


def _usd(amount: float) -> str:
    """Cents, or two figures of what is less than one."""
    places = 1 - math.floor(math.log10(amount)) if 0 < amount < CENT else 2
    return f"${amount:.{places}f}"
