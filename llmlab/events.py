"""What happens while a job runs, as small frozen values (but for Delta), and the one Bus that hands them out.

`emit` is synchronous, never awaits and never raises: a listener that raises is logged and dropped, and the
run goes on. A kind of event nobody listens to costs one dictionary look-up. Times are seconds of the
running loop's clock, so that they mean the same in virtual time.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

from llmlab.errors import LLMError
from llmlab.types import Kind, Outcome, Usage

_log = logging.getLogger("llmlab")


@dataclass(frozen=True, slots=True)
class Admitted:
    """A row's attempt may go."""

    index: int
    """The row's position."""
    at: float
    """When."""
    waited: float
    """Seconds it stood in line."""
    held_by: str | None = None
    """What the line waited for when it joined: concurrency, rate limit, provider, budget. None: it went at once."""


@dataclass(frozen=True, slots=True)
class Attempted:
    """One request has ended, well or badly."""

    index: int
    """The row's position."""
    attempt: int
    """1 for the row's first request."""
    sent: float
    """When it was sent."""
    ended: float
    """When its answer was complete or its failure known."""
    error: LLMError | None
    """Why it failed; None if it did not."""
    usage: Usage | None
    """Tokens it is known to have used, also when it failed."""
    cost_usd: float | None = None
    """Dollars for them; None when the tokens or the price are not known."""
    kind: Kind = "first"
    """Why it was sent: first, packed, retry, hedge, fallback or reask."""
    target: str = ""
    """Where to: "provider:model"."""
    ttft_s: float | None = None
    """Seconds from sending to the first piece of text; None unless streamed."""
    itl_s: float | None = None
    """Mean seconds between pieces of text; None unless there were two."""
    rows: int = 1
    """Rows that shared the request: each has its share of the tokens and dollars."""


@dataclass(slots=True)  # not frozen, as the others are: one is made for each token, and that takes a third of the time
class Delta:
    """A piece of a streamed answer's text."""

    index: int
    """The row's position."""
    text: str
    """The new text only."""


@dataclass(frozen=True, slots=True)
class Retrying:
    """A row backs off before its next attempt."""

    index: int
    """The row's position."""
    attempt: int
    """The attempt that failed, from 1."""
    delay: float
    """Seconds until the next one may stand in line."""
    error: LLMError
    """Why."""


@dataclass(frozen=True, slots=True)
class Following:
    """A row waits for the answer of another one that asks the same; it stands in no line meanwhile."""

    index: int
    """The row's position."""


@dataclass(frozen=True, slots=True)
class Rerouted:
    """A row goes on to another target."""

    index: int
    """The row's position."""
    error: LLMError
    """Why the target before has given up."""
    target: str
    """Where it goes now: "provider:model"."""


@dataclass(frozen=True, slots=True)
class Told:
    """A target's rule has told something: its breaker turned, its limit was decided on, its provider asked to wait."""

    target: str
    """Whose: "provider:model"."""
    what: object
    """The rule's own value: a Transition, Decision, Pause or Learned of `llmlab.rules`."""


@dataclass(frozen=True, slots=True)
class Finished:
    """A row is settled."""

    outcome: Outcome
    """What became of it."""


@dataclass(frozen=True, slots=True)
class Reported:
    """A provider's Batch API has told how far it is; the rows' results are still to come."""

    done: int
    """Rows worked on."""
    failed: int
    """Those of them that failed."""


@dataclass(frozen=True, slots=True)
class Stopped:
    """The job takes no further rows: an error that no retry can mend, or the user's wish."""

    reason: str
    """Why, for a person."""


Event: TypeAlias = Admitted | Attempted | Delta | Following | Retrying | Rerouted | Told | Finished | Reported | Stopped
Listener: TypeAlias = Callable[[Any], None]


class Bus:
    """Hands each event to the listeners of its type, in the order in which they subscribed."""

    def __init__(self) -> None:
        self._listeners: dict[type, tuple[Listener, ...]] = {}

    def subscribe(self, listener: Listener, *kinds: type) -> Callable[[], None]:
        """Call `listener` with each event of these types; returns a function that ends it."""
        for kind in kinds:
            self._listeners[kind] = (*self._listeners.get(kind, ()), listener)
        return lambda: self._drop(listener, kinds)

    def emit(self, event: Event) -> None:
        """Hand out one event."""
        for listener in self._listeners.get(type(event), ()):
            try:
                listener(event)
            except Exception:  # noqa: BLE001  a listener's trouble is not the run's
                _log.exception("llmlab: a listener failed and gets no more events: %r", listener)
                self._drop(listener, tuple(self._listeners))

    def _drop(self, listener: Listener, kinds: tuple[type, ...]) -> None:
        for kind in kinds:
            self._listeners[kind] = tuple(each for each in self._listeners[kind] if each is not listener)
