"""One prompt on its way through the strategy, and the shape that all policies share.

A policy wraps a call: `async (call, inner) -> Reply`. It may call `inner` never, once or often, and it
lets errors it does not handle through unchanged. `chain` folds policies around an endpoint.
"""

import random
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol, TypeAlias

from llmlab.columns import Column
from llmlab.flow import Hold
from llmlab.types import Kind, Prompt, Reply, Schema, Usage

PRIORITIES = range(4)
"""0 critical, 1 high, 2 normal, 3 low."""
NORMAL = 2


@dataclass(slots=True, eq=False)
class Lane:
    """Calls that belong together in a lab's line, as those of one job: lanes of one priority share it fairly."""

    priority: int = NORMAL
    """0 critical, 1 high, 2 normal, 3 low."""
    patient: bool = True
    """Its calls are held back by whoever makes them; those of an impatient lane are refused when the line is full."""
    budgets: tuple[Any, ...] = ()
    """Rules on what its calls may spend (see `llmlab.rule.Budget`); others may share them."""
    held: bool = False
    """Nobody of it is admitted for now: the user has paused it."""
    among: "Lane | None" = None
    """The lane whose turns it shares, as the single calls of one priority do: a crowd of them is one to the others."""

    @property
    def turns(self) -> "Lane":
        """The lane by which the line knows whose turn it is."""
        return self if self.among is None else self.among


class Tariff(Protocol):
    """What a model's tokens cost; see `llmlab.prices.Price`."""

    def cost(self, usage: Usage) -> float:
        """US dollars for these tokens."""
        ...

    def most(self, input_tokens: float, output_tokens: float) -> float:
        """US dollars that so many tokens cost at most."""
        ...


class Reader(Protocol):
    """Reads answers into what was asked for; see `llmlab.typed.Typed`."""

    @property
    def schema(self) -> Schema:
        """The form to ask for."""
        ...

    @property
    def reask(self) -> int:
        """How often an answer that does not fit is asked for again."""
        ...

    @property
    def columns(self) -> tuple[Column, ...]:
        """What `cells` gives."""
        ...

    def read(self, reply: Reply) -> Reply:
        """The reply with its `parsed`. Raises SchemaMismatch."""
        ...

    def cells(self, reply: Reply | None) -> tuple[Any, ...]:
        """The columns' values, plain; all None for a row without an answer that fits."""
        ...


COMMON = Lane()
"""The lane of calls that belong to nobody in particular."""


@dataclass(slots=True)
class Call:
    """One row's way to its answer. The policies keep the row's account in it."""

    index: int
    """The row's position in its job."""
    prompt: Prompt
    """What is asked."""
    emit: Callable[[Any], None]
    """Publish one of `llmlab.events`. Never awaits, never raises."""
    rng: random.Random = field(default_factory=random.Random)
    """The job's source of randomness."""
    stream: bool = False
    """Ask for the answer in pieces, published as Delta events."""
    seq: int = 0
    """Place in the lab's line: rows taken up earlier go first, retries included."""
    attempts: int = 0
    """Requests sent so far."""
    queue_s: float = 0.0
    """Seconds stood in line so far."""
    wait_s: float = 0.0
    """Seconds backed off so far."""
    deadline: float | None = None
    """Loop time by which the row must be settled; no attempt is worth starting past it."""
    connect_timeout: float | None = None
    """Seconds within which a connection must stand."""
    sent: float | None = None
    """Loop time at which the present attempt was sent. None: not yet."""
    probe: bool = False
    """The present attempt tries out a provider that was down: if it fails, the row is not to blame."""
    usage: Usage | None = None
    """Tokens that the present attempt is known to have used."""
    levels: Mapping[str, tuple[float, float, float]] | None = None
    """What the answer's headers said of the provider's limits: dimension -> limit, remaining, seconds until full."""
    provider: str = ""
    """Name of the provider that the call is on its way to."""
    model: str = ""
    """Model that the call is on its way to: the prompt's own, or else the target's."""
    price: Tariff | None = None
    """Of that model. None: not known."""
    kind: Kind = "first"
    """Why the next request is sent."""
    lane: Lane = COMMON
    """With whom it shares its place in the lab's line."""
    arrived: float | None = None
    """Loop time at which it first stood in line."""
    wasted: Usage | None = None
    """Tokens that failed attempts are known to have used so far. None: none."""
    wasted_usd: float | None = None
    """Dollars for them. None: none, or no price is known."""
    hold: Hold | None = None
    """Holds back the reading of a streamed answer while its consumer is behind. None: nobody can be behind."""
    committed: bool = False
    """Text of this answer was handed to the user: a retry would repeat it."""
    reader: Reader | None = None
    """Reads the answer into what was asked for. None: it is text."""

    def waste(self, usage: Usage, cost: float | None) -> None:
        """Account for an attempt that used tokens and gave no answer."""
        self.wasted = usage if self.wasted is None else self.wasted + usage
        if cost is not None:
            self.wasted_usd = (self.wasted_usd or 0.0) + cost


Handler: TypeAlias = Callable[[Call], Awaitable[Reply]]


class Policy(Protocol):
    """One layer around a call."""

    async def __call__(self, call: Call, inner: Handler) -> Reply:
        """Answer the call by way of `inner`."""
        ...


def chain(policies: Iterable[Policy], endpoint: Handler) -> Handler:
    """Fold policies around an endpoint, the first one outermost."""
    handler = endpoint
    for policy in reversed(tuple(policies)):
        handler = partial(policy, inner=handler)
    return handler
