"""One thread that writes what an event loop hands it, in groups, and tells when a group is safe.

    put     never waits: the loop goes on whatever the disk does
    group   250 items, or those of 25 ms: one commit for many
    trouble the disk is full or locked: the thread says so, waits, tries the same group again until it works
    failure the file is gone or corrupt: nothing more is written and nothing more is reported

An item's `then` is called after its group is written, in the order of `put`, and never otherwise.
"""

import logging
import sqlite3
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import Generic, TypeAlias, TypeVar

T = TypeVar("T")
Then: TypeAlias = Callable[[], object]
Deliver: TypeAlias = Callable[[Then], object]

GROUP = 250
"""Items of one group at most."""
DELAY = 0.025
"""Seconds that an item waits for others at most."""
FIRST_PAUSE, LONGEST_PAUSE = 0.05, 1.0
"""Seconds between two tries while there is trouble; doubled from the first to the longest."""

_log = logging.getLogger("llmlab")


class Writer(Generic[T]):
    """A thread with a queue in front of it.

    Args:
        write: Writes one group, all or nothing; called on the thread. Raises sqlite3.OperationalError for trouble that
            may pass; any other exception is a failure.
        deliver: Calls a function where the callbacks belong, from any thread.
        on_trouble: Called with the trouble in words when it begins or changes, with None when it is over.
        on_failure: Called with the exception that ended the writing.
        name: What the file is, for messages and the thread's name.
    """

    def __init__(
        self,
        write: Callable[[list[T]], None],
        *,
        deliver: Deliver,
        on_trouble: Callable[[str | None], object],
        on_failure: Callable[[Exception], object],
        name: str = "journal",
    ) -> None:
        self.failure: Exception | None = None
        """What ended the writing; None while all is well."""
        self.pending = 0
        """Items handed over and not yet written."""
        self._write, self._deliver, self._name = write, deliver, name
        self._on_trouble, self._on_failure = on_trouble, on_failure
        self._queue: deque[tuple[T, Then | None] | Future[None]] = deque()
        self._turn = threading.Condition()
        self._hurry = False
        self._closing = threading.Event()
        self._trouble: str | None = None
        # A daemon: the interpreter waits for other threads before it runs what atexit holds, that is, for ever.
        self._thread = threading.Thread(target=self._run, name=f"llmlab-{name}", daemon=True)
        self._thread.start()

    # -- the loop's side ----------------------------------------------------------------------------------

    def put(self, item: T, then: Then | None = None) -> None:
        """Hand over one item; returns at once. `then` is called once it is written.

        Raises:
            RuntimeError: the writer has failed or is closed.
        """
        with self._turn:
            self._refuse()
            self._queue.append((item, then))
            self.pending += 1
            if len(self._queue) in (1, GROUP):  # between the two the thread has nothing to do
                self._turn.notify()

    def barrier(self) -> "Future[None]":
        """Write at once; the future is done when all that was handed over is written and told, or has failed.

        Raises:
            RuntimeError: the writer has failed or is closed.
        """
        future: Future[None] = Future()
        with self._turn:
            self._refuse()
            self._queue.append(future)
            self._hurry = True
            self._turn.notify()
        return future

    def close(self) -> None:
        """Write the rest and end the thread; waits for it. While there is trouble it tries once more, then fails."""
        with self._turn:
            self._closing.set()
            self._turn.notify()
        self._thread.join()

    def _refuse(self) -> None:
        if self.failure is not None:
            raise RuntimeError(f"the {self._name} has failed: {self.failure}") from self.failure
        if self._closing.is_set():
            raise RuntimeError(f"the {self._name} is closed")

    # -- the thread's side --------------------------------------------------------------------------------

    def _run(self) -> None:
        group: list[tuple[T, Then | None] | Future[None]] = []
        try:
            while group := self._next_group():
                self._settle(group)
        except Exception as error:  # noqa: BLE001  whatever it is, the loop must hear of it
            self._fail(error, group)

    def _next_group(self) -> list[tuple[T, Then | None] | Future[None]]:
        """Wait for a group; an empty one means the end."""
        with self._turn:
            self._turn.wait_for(lambda: self._queue or self._closing.is_set())
            self._turn.wait_for(self._due, timeout=DELAY)
            group = [self._queue.popleft() for _ in range(min(GROUP, len(self._queue)))]
            self._hurry = self._hurry and bool(self._queue)
            return group

    def _due(self) -> bool:
        return len(self._queue) >= GROUP or self._hurry or self._closing.is_set()

    def _settle(self, group: list[tuple[T, Then | None] | Future[None]]) -> None:
        rows = [each for each in group if isinstance(each, tuple)]
        if rows:
            self._persist([item for item, _ in rows])
            with self._turn:
                self.pending -= len(rows)
            self._tell([then for _, then in rows if then is not None])
        for each in group:
            if isinstance(each, Future) and each.set_running_or_notify_cancel():
                each.set_result(None)

    def _persist(self, items: list[T]) -> None:
        pause = FIRST_PAUSE
        while True:
            last = self._closing.is_set()
            try:
                self._write(items)
            except sqlite3.OperationalError as error:
                if last:
                    raise
                self._say(str(error))
                self._closing.wait(pause)
                pause = min(2 * pause, LONGEST_PAUSE)
            else:
                self._say(None)
                return

    def _say(self, trouble: str | None) -> None:
        if trouble != self._trouble:
            self._trouble = trouble
            self._tell([partial(self._on_trouble, trouble)])

    def _fail(self, error: Exception, group: list[tuple[T, Then | None] | Future[None]]) -> None:
        with self._turn:
            self.failure = error
            waiting = [*group, *self._queue]
            self._queue.clear()
        self._tell([partial(self._on_failure, error)])
        for each in waiting:
            if isinstance(each, Future) and not each.done() and each.set_running_or_notify_cancel():
                each.set_exception(error)

    def _tell(self, callbacks: list[Then]) -> None:
        try:
            self._deliver(partial(_call, callbacks))
        except RuntimeError:  # the loop is closed: nobody is left to be told
            _log.debug("llmlab: the %s's news came after its loop was closed", self._name)


def _call(callbacks: list[Then]) -> None:
    for callback in callbacks:
        try:
            callback()
        except Exception:  # noqa: BLE001  one listener's trouble must not cost the others their news
            _log.exception("llmlab: a listener of a file's writer failed: %r", callback)
