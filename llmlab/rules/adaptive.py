"""As many calls in flight as a controller thinks best, instead of a number by hand."""

import asyncio
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from llmlab.rules.adapt import Controller, Sample

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
    _now: float = field(default=0.0, init=False, repr=False, compare=False)
    _full: bool = field(default=False, init=False, repr=False, compare=False)
    _offered: bool = field(default=False, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        self.controller = replace(self.controller)  # type: ignore[type-var]

    @property
    def limit(self) -> int:
        """Calls in flight at most, now."""
        return self.controller.limit

    def resize(self, limit: int) -> None:
        """Pin the limit to a number by hand; the controller goes on watching."""
        self.controller.pin(limit, self._now)
        self._tell()

    def watch(self, changed: Callable[[], None]) -> None:
        """Call `changed` when a new limit may let somebody in."""
        self._changed = changed

    def wait(self, now: float, cost: Mapping[str, float]) -> float:  # noqa: ARG002  the rules share one shape
        """0 if a slot is free, else the time until the controller wants to look whether the provider is silent."""
        self._now = now
        due = self.controller.tick(now)
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

    def refuse(self, now: float) -> None:
        """Never: a slot comes free some time."""

    def _tell(self) -> None:
        if self._changed is not None:
            self._changed()
