"""As many calls in flight as a controller thinks best, instead of a number by hand."""

import asyncio
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from itertools import takewhile

from llmlab.rules.adapt import Controller, Decision, Sample

LOOK = 0.05
"""Seconds between two looks at a provider that has gone silent, at least."""


@dataclass
class Adaptive:
    """At most as many calls in flight as its controller says; the controller learns from each that ends.

    The controller given is copied: the rule owns the state of its own.
    """

    controller: Controller
    """Elastic, AIMD, Gradient or Fixed, or one of your own."""
    in_use: int = field(default=0, init=False, compare=False)
    """Calls in flight now."""
    _changed: Callable[[], None] | None = field(default=None, init=False, repr=False, compare=False)
    _tell: Callable[[object], None] | None = field(default=None, init=False, repr=False, compare=False)
    _told: Decision | None = field(default=None, init=False, repr=False, compare=False)  # the last one told
    _now: float = field(default=0.0, init=False, repr=False, compare=False)
    _full: bool = field(default=False, init=False, repr=False, compare=False)
    _offered: bool = field(default=False, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        self.controller = replace(self.controller)  # type: ignore[type-var]
        self._told = next(reversed(self.controller.decisions), None)  # one of your own may hand on its history

    @property
    def limit(self) -> int:
        """Calls in flight at most, now."""
        return self.controller.limit

    @property
    def binds(self) -> str:
        """What a wait for it means to a person: provider, or else concurrency.

        "provider" while the controller stays below its `most` as more would buy nothing (its property `settled`): then
        the provider is what there is too little of. A number set by hand, or `most` reached, is "concurrency".
        """
        return "provider" if getattr(self.controller, "settled", False) else "concurrency"

    def resize(self, limit: int) -> None:
        """Pin the limit to a number by hand; the controller goes on watching."""
        self.controller.pin(limit, self._now)
        self._tell_decisions()
        self._tell_change()

    def release(self) -> None:
        """Let the controller decide again, after `resize`."""
        self.controller.unpin(self._now)
        self._tell_decisions()
        self._tell_change()

    def watch(self, changed: Callable[[], None], tell: Callable[[object], None]) -> None:
        """Call `changed` when a new limit may let somebody in, `tell` with each new `Decision` of the controller."""
        self._changed, self._tell = changed, tell

    def gauge(self, now: float) -> dict[str, float | str]:  # noqa: ARG002  the rules share one shape
        """Give `limit` and `in_flight`, for plots."""
        return {"limit": self.limit, "in_flight": self.in_use}

    def wait(self, now: float, cost: Mapping[str, float]) -> float:  # noqa: ARG002
        """0 if a slot is free, else the time until the controller wants to look whether the provider is silent."""
        self._now = now
        due = self.controller.tick(now)
        self._tell_decisions()  # before the look at the limit, which a listener may set
        self._full = self.in_use >= self.controller.limit
        self._offered = not self._full
        return (math.inf if due == math.inf else max(LOOK, due - now)) if self._full else 0.0

    def take(self, now: float, cost: Mapping[str, float]) -> int:  # noqa: ARG002
        """Occupy a slot; gives the controller's tag."""
        self._now, self._offered = now, False
        self.in_use += 1
        return self.controller.start(now)

    def settle(
        self,
        now: float,
        cost: Mapping[str, float],  # noqa: ARG002
        error: BaseException | None,
        used: Mapping[str, float] | None,
        levels: Mapping[str, tuple[float, float, float]] | None,  # noqa: ARG002
        sent: float | None,
        permit: object,
    ) -> None:
        """Free the slot and let the controller learn."""
        self._now = now
        tokens = used or {}
        read, written = tokens.get("input_tokens"), tokens.get("output_tokens")
        sample = Sample(
            0.0 if sent is None else now - sent,
            None if read is None else int(read),
            None if written is None else int(written),
        )
        never = asyncio.CancelledError() if sent is None and error is None else error
        self.controller.finish(
            now,
            permit if isinstance(permit, int) else 0,
            sample,
            never,
            in_flight=self.in_use,
            line_waiting=1 if self._full or self._offered else 0,
            rate_bound=self._offered and self.in_use < self.controller.limit,
        )
        self.in_use -= 1
        self._tell_decisions()

    def refuse(self, now: float) -> None:
        """Never: a slot comes free some time."""

    def _tell_decisions(self) -> None:
        """Tell what the controller has decided since the last time, each once."""
        decisions = self.controller.decisions
        while decisions and decisions[-1] is not self._told:
            # One by one from the oldest: a listener may cause further ones, which come after those that are there.
            *_, oldest = takewhile(lambda each: each is not self._told, reversed(decisions))
            self._told = oldest
            if self._tell is not None:
                self._tell(oldest)

    def _tell_change(self) -> None:
        if self._changed is not None:
            self._changed()
