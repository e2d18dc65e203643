"""How much may be at work at a time, and that nobody takes all of it.

A pool with several owners gives none of them more than it leaves free for the others: alone, one gets half of it, two
get a third each, and there is always something left for who comes next (dynamic thresholds of Choudhury and Hahne,
"Dynamic queue length thresholds for shared-memory packet switches", 1998, with alpha = 1).
"""

import asyncio
from collections import Counter
from dataclasses import dataclass, field
from typing import Self

from llmlab.service.faults import SOON, Failure, Fault


@dataclass
class Pool:
    """What is at work of one kind."""

    limit: int
    """At most."""
    unit: str
    """What is counted, for complaints: prompts, bytes."""
    shared: bool = False
    """Whether several owners share it."""
    used: int = 0
    """So much is at work."""
    idle: asyncio.Event = field(default_factory=asyncio.Event)
    """Set while nothing is."""
    _own: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.idle.set()

    def take(self, amount: int, owner: str) -> "Room":
        """Count something as at work until its room is left.

        Raises:
            Failure: there is no room for it.
        """
        room = Room(self, owner)
        room.grow(amount)
        return room

    def _check(self, amount: int, owner: str) -> None:
        left = self.limit - self.used - amount
        if left < 0:
            words = f"{self.used:,} {self.unit} are at work, of {self.limit:,} at most"
            raise Failure(Fault(429, "queue_full", words, SOON))
        own = self._own[owner] + amount
        if self.shared and own > max(1, left):
            words = f"this key has {self._own[owner]:,} {self.unit} at work; the rest is kept for others"
            raise Failure(Fault(429, "queue_full", words, SOON))

    def _count(self, amount: int, owner: str) -> None:
        self.used += amount
        self._own[owner] += amount
        if not self._own[owner]:
            del self._own[owner]
        if self.used:
            self.idle.clear()
        else:
            self.idle.set()


class Room:
    """Somebody's share of a pool."""

    def __init__(self, pool: Pool, owner: str) -> None:
        self._pool, self._owner, self._held = pool, owner, 0

    def grow(self, amount: int, *, forced: bool = False) -> None:
        """Take more; `forced`: whether there is room for it or not, as for work taken up again after a restart.

        Raises:
            Failure: there is no room for it.
        """
        if not forced:
            self._pool._check(amount, self._owner)  # noqa: SLF001  both are one
        self._held += amount
        self._pool._count(amount, self._owner)  # noqa: SLF001

    def shrink(self, amount: int) -> None:
        """Give some of it back."""
        amount = min(amount, self._held)
        self._held -= amount
        self._pool._count(-amount, self._owner)  # noqa: SLF001

    def leave(self) -> None:
        """Give all of it back; a second call does nothing."""
        self.shrink(self._held)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.leave()
