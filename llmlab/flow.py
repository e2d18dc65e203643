"""Back-pressure: who reads an answer waits while whoever shows it is behind.

    Flow   the tap between the answers of a job and their one consumer
    Hold   one call's share of it
    Pipe   where their pieces wait for the consumer; closes the tap, and opens it again

Nothing is read from a connection that is held back, so that the provider has to wait, too, and memory stays small.
The deadlines of an attempt stand still: a slow reader on this side is not slowness of the provider.

A call that is held back keeps its place among the requests in flight. If somebody else stands in line for it, perhaps
the consumer itself, who asks the same lab before it reads on, then answers are read to their ends, and no rows are
taken up: as many answers may be in memory as were in flight and in line.
"""

import asyncio
import math
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any, Generic, Protocol, TypeVar

E = TypeVar("E", bound=Exception)

FULL, LOW = 65_536, 16_384
"""Characters waiting for the consumer at which the tap is closed, and at which it is opened again."""
ERROR = 1_000
"""Characters that an error counts for."""


class Flow:
    """A tap between the answers of some calls and their one consumer. Lives on the calls' loop."""

    def __init__(self) -> None:
        self.calls: dict[int, Any] = {}
        """The calls under way, by their rows' positions."""
        self.open = asyncio.Event()
        """Set while the consumer keeps up: calls may be begun."""
        self.runs = asyncio.Event()
        """Set while answers may be read on."""
        self.reopen()

    def close(self) -> None:
        """Hold the answers back: the consumer is behind."""
        self.open.clear()
        self.runs.clear()

    def reopen(self) -> None:
        """Go on: the consumer has caught up."""
        self.open.set()
        self.runs.set()

    def release(self) -> None:
        """Let answers that have begun be read on, though the consumer is behind: others wait for their connections."""
        self.runs.set()


class Hold:
    """One call's share of a Flow.

    Args:
        flow: The tap.
    """

    def __init__(self, flow: Flow) -> None:
        self._flow = flow
        self._waits = False
        self._until = -math.inf
        self.at_wait: Callable[[], object] | None = None
        """Called when it begins to wait: whoever stands in line for what the call occupies may have it released."""
        self.deadline: asyncio.Timeout | None = None
        """Of the present attempt; put off while it waits. One that has ended is left alone."""
        self.held_s = 0.0
        """Seconds waited so far."""

    async def wait(self) -> None:
        """Wait until the consumer has caught up, or somebody needs what this call occupies."""
        if self._flow.runs.is_set():
            return
        if self.at_wait is not None:
            self.at_wait()
        loop = asyncio.get_running_loop()
        began, deadline = loop.time(), self.deadline
        then = None if deadline is None else deadline.when()
        _reschedule(deadline, None)
        self._waits = True
        try:
            while not self._flow.runs.is_set():  # one that was woken before may have filled it again
                await self._flow.runs.wait()
        finally:
            self._waits, self._until = False, loop.time()
            self.held_s += self._until - began
        if then is not None:
            _reschedule(deadline, then + self._until - began)

    @property
    def held_back(self) -> bool:
        """Whether its consumer is behind, and nothing has released it."""
        return not self._flow.runs.is_set()

    def release(self) -> None:
        """Let it be read on, as `Flow.release`, with all answers of its consumer."""
        self._flow.release()

    def since(self, last: float, now: float) -> float:
        """Loop time from which the provider's silence counts, its last sign of life having come at `last`."""
        return now if self._waits else max(last, self._until)


def _reschedule(deadline: asyncio.Timeout | None, when: float | None) -> None:
    if deadline is not None:
        with suppress(RuntimeError):  # its attempt has ended: a hedge's, or the one before a retry without deadlines
            deadline.reschedule(when)


class Source(Protocol):
    """What makes the pieces: a Job."""

    @property
    def stopped(self) -> str | None:
        """Why it was stopped; "interrupted" by Ctrl-C or the notebook's Stop. None: it was not."""
        ...

    def wait(self) -> Coroutine[Any, Any, Any]:
        """Wait for its end, on any loop."""
        ...

    def cancel(self) -> None:
        """Stop it, from any thread."""
        ...

    def on_loop(self, callback: Callable[[], object]) -> None:
        """Run `callback` on its loop, from any thread."""
        ...


class Pipe(Generic[E]):
    """From the job's loop, which never waits, to the consumer's, which may be another one, in another thread.

    No lock is needed: each field is written by one of the two alone (`_asleep` but for a wake-up too many), and each
    looks again at what the other may have changed once it has said what it is about to do. A piece is a row's position
    and some of its text, or the error that ended it.

    Args:
        job: What makes the pieces. It is begun at the loop's next turn, and stopped when the pipe is closed.
        flow: The tap.
    """

    def __init__(self, job: Source, flow: Flow) -> None:
        self._job, self._flow = job, flow
        self._queue: list[tuple[int, str | E]] = []
        self._batch: list[tuple[int, str | E]] = []  # what the consumer has in hand, and its size
        self._size = 0
        self._put = self._taken = 0  # characters so far: the one is the job's to count, the other the consumer's
        self._consumer = asyncio.get_running_loop()
        self._asleep, self._news = False, asyncio.Event()
        self._ended = self._dropped = False
        self._waiting = self._consumer.create_task(job.wait())
        self._waiting.add_done_callback(self._end)

    # -- on the job's loop --------------------------------------------------------------------------------

    def put(self, index: int, piece: str | E) -> None:
        """Hand over a piece."""
        self._queue.append((index, piece))
        self._put += len(piece) if isinstance(piece, str) else ERROR
        if self._put - self._taken > FULL and self._flow.open.is_set():
            self._hold_back()
        if self._asleep:
            self._wake()

    def _hold_back(self) -> None:
        self._flow.close()
        if self._put - self._taken <= LOW:  # the consumer took it all just before, and found nothing to open
            self._flow.reopen()

    def _wake(self) -> None:
        self._asleep = False
        if asyncio.get_running_loop() is self._consumer:
            self._news.set()
            return
        try:
            self._consumer.call_soon_threadsafe(self._news.set)
        except RuntimeError:  # its loop is closed: nobody will read on
            self._job.cancel()

    # -- on the consumer's --------------------------------------------------------------------------------

    async def take(self) -> list[tuple[int, str | E]]:
        """All that has come since the last time, which thereby has been consumed; nothing at the end."""
        self._account()
        while self._dropped or not self._queue:
            if self._ended:
                return []
            self._news.clear()
            self._asleep = True
            if (self._dropped or not self._queue) and not self._ended:
                await self._news.wait()
            self._asleep = False
        batch = self._batch = self._queue[:]
        del self._queue[: len(batch)]
        self._size = sum([len(piece) if isinstance(piece, str) else ERROR for _, piece in batch])
        return batch

    def _account(self) -> None:
        self._taken, self._size = self._taken + self._size, 0
        if self._put - self._taken <= LOW and not self._flow.open.is_set():
            self._job.on_loop(self._flow.reopen)

    def _end(self, _: "asyncio.Future[Any]") -> None:
        if self._job.stopped == "interrupted":  # who presses Stop wants no more of it
            self.drop()
        self._ended = True
        if self._asleep:
            self._wake()

    def drop(self) -> None:
        """Throw away what the consumer has not had yet, also of the batch in its hand, and what may still come."""
        self._dropped = True
        self._batch.clear()

    def check(self) -> None:
        """Raise what the job raised, once it has ended.

        Raises:
            KeyboardInterrupt: it was interrupted.
        """
        self._waiting.result()
        if self._job.stopped == "interrupted":
            raise KeyboardInterrupt

    async def aclose(self) -> None:
        """Stop the job, if it still runs, and wait until its connections are closed."""
        if not self._waiting.done():
            self._job.cancel()
            await asyncio.wait([self._waiting])
        _ = self._waiting.cancelled() or self._waiting.exception()  # seen: nobody else will ask
