"""One prompt on its way through the strategy, and the shape that all policies share.

A policy wraps a call: `async (call, inner) -> Reply`. It may call `inner` never, once or often, and it
lets errors it does not handle through unchanged. `chain` folds policies around an endpoint.
"""

import random
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol, TypeAlias

from llmlab.types import Prompt, Reply, Usage


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
    committed: bool = False
    """Text of this answer was handed to the user: a retry would repeat it."""


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
