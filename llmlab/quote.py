"""What an experiment on a real provider would cost, told before anything is sent."""

from collections.abc import Iterable
from dataclasses import dataclass, replace

import httpx

from llmlab.estimate import Estimator
from llmlab.progress import say
from llmlab.sim.transport import Simulator
from llmlab.target import Target
from llmlab.types import Prompt

_HERE = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True)
class Quote:
    """An estimate, retries not counted."""

    target: str
    """Where the requests would go."""
    requests: int
    """How many."""
    tokens: float
    """Input and output together."""
    usd: float | None
    """Dollars for them. None: a price is not known."""
    free: bool
    """Whether they can cost nothing: a simulated provider, or a server on this machine whose model has no price."""

    def scaled(self, requests: int) -> "Quote":
        """The same for another number of requests like these."""
        factor = requests / self.requests
        usd = None if self.usd is None else self.usd * factor
        return replace(self, requests=requests, tokens=self.tokens * factor, usd=usd)

    def __str__(self) -> str:
        cost = "at no cost" if self.free else "at a price that is not known" if self.usd is None else f"${self.usd:.2f}"
        return f"{self.requests:,} requests to {self.target}, about {self.tokens:,.0f} tokens, {cost}"


def quote(target: Target, prompts: Iterable[Prompt], *, times: int) -> Quote:
    """Estimate what it takes to send all prompts `times` times."""
    provider = target.provider
    estimator = Estimator()
    requests, tokens, usd, priced = 0, 0.0, 0.0, True
    for prompt in prompts:
        model = prompt.model or provider.model
        cost, price = estimator.cost(prompt, model), provider.prices.get(model)
        requests += 1
        tokens += cost["total_tokens"]
        priced = priced and price is not None
        usd += 0.0 if price is None else price.most(cost["input_tokens"], cost["output_tokens"])
    here = isinstance(provider.transport, Simulator) or httpx.URL(provider.base_url).host in _HERE
    free = here and (not priced or usd == 0)
    return Quote(target.name, requests * times, tokens * times, usd * times if priced else None, free)


def agree(offer: Quote, verb: str, *, confirm: bool, limited: bool) -> None:
    """Tell what it would cost, and go on if that is agreed to.

    Args:
        offer: What it would cost.
        verb: What wants to be done, for the message.
        confirm: The user has agreed.
        limited: There is a budget, which is an agreement, too.

    Raises:
        ValueError: it may cost money, and nobody has agreed.
    """
    if not (offer.free or confirm or limited):
        raise ValueError(f"{verb}(live=True) would send {offer}; pass confirm=True, or a budget_usd= or budget_tokens=")
    say(f"llmlab: {verb} sends {offer}, retries not counted")
