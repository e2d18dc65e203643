"""Back-pressure: who reads an answer waits while whoever shows it is behind.

Nothing is read from the connection meanwhile, so that the provider has to wait, too, and memory stays small. The
deadlines of an attempt stand still: a slow reader on this side is not slowness of the provider.
"""

import asyncio
import math
from contextlib import suppress
from typing import Any


class Flow:
    """A tap between the answers of some calls and their one consumer. Lives on the calls' loop."""

    def __init__(self) -> None:
        self.calls: dict[int, Any] = {}
        """The calls under way, by their rows' positions."""
        self.open = asyncio.Event()
        """Set while readers may read on."""
        self.open.set()


class Hold:
    """One call's share of a Flow.

    Args:
        flow: The tap.
    """

    def __init__(self, flow: Flow) -> None:
        self._flow = flow
        self._waits = False
        self._until = -math.inf
        self.deadline: asyncio.Timeout | None = None
        """Of the present attempt; put off while it waits. One that has ended is left alone."""

    async def wait(self) -> None:
        """Wait until the consumer has caught up."""
        if self._flow.open.is_set():
            return
        loop = asyncio.get_running_loop()
        began, deadline = loop.time(), self.deadline
        then = None if deadline is None else deadline.when()
        _reschedule(deadline, None)
        self._waits = True
        try:
            while not self._flow.open.is_set():  # one that was woken before may have filled it again
                await self._flow.open.wait()
        finally:
            self._waits, self._until = False, loop.time()
        if then is not None:
            _reschedule(deadline, then + self._until - began)

    def since(self, last: float, now: float) -> float:
        """Loop time from which the provider's silence counts, its last sign of life having come at `last`."""
        return now if self._waits else max(last, self._until)


def _reschedule(deadline: asyncio.Timeout | None, when: float | None) -> None:
    if deadline is not None:
        with suppress(RuntimeError):  # its attempt has ended: a hedge's, or the one before a retry without deadlines
            deadline.reschedule(when)
