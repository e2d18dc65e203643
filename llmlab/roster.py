"""The jobs of a lab, for its orderly end: who must not be left hanging, and nobody comes after."""

import asyncio
import threading
import weakref
from typing import Protocol

from llmlab.errors import LabClosed

CLOSED = "the lab was closed"
"""Why a job that its lab's end has stopped was stopped."""


class Member(Protocol):
    """A job, as seen by who closes its lab."""

    @property
    def done(self) -> bool:
        """Whether it has ended."""
        ...

    @property
    def paused(self) -> bool:
        """Whether the user has paused it."""
        ...

    def stop(self, reason: str) -> None:
        """Stop it at once, on its own loop."""
        ...

    async def drained(self) -> None:
        """Wait as far as its lab waits for it at its end: until it has ended, unless it goes on elsewhere."""
        ...

    async def ended(self) -> None:
        """Wait until it has ended, however, on its own loop; one that has not begun begins."""
        ...


class Roster:
    """The jobs of one lab. May be added to and closed from any thread."""

    def __init__(self) -> None:
        self._jobs: weakref.WeakSet[Member] = weakref.WeakSet()  # one that nobody holds and that does not run is gone
        self._lock = threading.Lock()
        self.closed = False
        """Whether no further jobs are taken."""

    def add(self, job: Member) -> None:
        """Take a job.

        Raises:
            LabClosed: no further ones are taken.
        """
        with self._lock:
            self.check_open()
            self._jobs.add(job)

    def check_open(self) -> None:
        """Complain if no further jobs are taken.

        Raises:
            LabClosed: none are.
        """
        if self.closed:
            raise LabClosed("this lab is closed and takes nothing more", hint="make another one: llmlab.Lab(…)")

    def close(self) -> None:
        """Take no further jobs."""
        with self._lock:
            self.closed = True

    @property
    def left(self) -> list[Member]:
        """Those that have not ended."""
        with self._lock:
            return [job for job in self._jobs if not job.done]

    async def settle(self, *, cancel: bool = False, patience: float | None = None) -> None:
        """Return when all have ended, or go on elsewhere; on their own loop.

        Args:
            cancel: Stop them first.
            patience: Seconds after which those still at work are stopped. None: never.
        """
        left = self.left
        if cancel:
            stop_all(left)
        waiting = [asyncio.ensure_future(job.ended() if cancel else job.drained()) for job in left]
        try:
            late = (await asyncio.wait(waiting, timeout=patience))[1] if waiting else set()
            if late:
                stop_all(self.left)
                await asyncio.wait(late)
        finally:
            for each in waiting:
                each.cancel()  # of whoever was cancelled while it waited; jobs go on


def stop_all(jobs: list[Member]) -> None:
    """Stop jobs because their lab is closed, on their own loop."""
    for job in jobs:
        job.stop(CLOSED)
