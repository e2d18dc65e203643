"""Answers piece by piece, for whoever reads them as they come.

    Streams   many answers, merged as their pieces arrive
    Stream    one answer
    Race      many requests, of which the first to say something is heard

A reader that is behind holds the connections back (see `llmlab.flow`); one that leaves early closes them. Text that was
handed out is not taken back: from the first piece on a failure is no longer retried, but ends its stream.
"""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Sequence
from contextlib import suppress
from typing import Any, TypeAlias

from llmlab.errors import LLMError
from llmlab.events import Delta, Finished, Rerouted, Retrying
from llmlab.flow import Flow
from llmlab.frame import Frame
from llmlab.job import Job
from llmlab.pieces import By, Cutter, cutter
from llmlab.types import Item, Outcome, Reply

FULL, LOW = 65_536, 16_384
"""Characters waiting for the reader at which connections are held back, and at which they may go on."""

Piece: TypeAlias = tuple[int, str | LLMError]
"""A row's position and a piece of its text, or the error that ended it."""
Open: TypeAlias = Callable[[Flow], Job[Any]]
"""Begins the job whose answers are streamed."""


class _Pipe:
    """From the job's loop, which never waits, to the reader's, which may be another one."""

    def __init__(self, job: Job[Any], flow: Flow) -> None:
        self._job, self._flow = job, flow
        self._items: deque[Piece | None] = deque()
        self._size = 0  # characters in it; only ever approximately right, if two threads change it at once
        self._reader: asyncio.AbstractEventLoop | None = None
        self._news = asyncio.Event()

    def put(self, item: Piece | None) -> None:
        """Hand over a piece, or None for the end; on the job's loop."""
        self._items.append(item)
        if item is not None and isinstance(item[1], str):
            self._size += len(item[1])
            if self._size > FULL:
                self._flow.open.clear()
        if self._reader is not None and not self._news.is_set():
            self._reader.call_soon_threadsafe(self._news.set)

    async def __aiter__(self) -> AsyncIterator[Piece]:
        self._reader = asyncio.get_running_loop()
        while True:
            while self._items:
                item = self._items.popleft()
                if item is None:
                    return
                self._took(item)
                yield item
            self._news.clear()
            if not self._items:  # else it came between the last look and the clearing
                await self._news.wait()

    def _took(self, item: Piece) -> None:
        if isinstance(item[1], str):
            self._size -= len(item[1])
        if self._size <= LOW and not self._flow.open.is_set():
            self._job.on_loop(self._flow.open.set)


class Streams:
    """Many answers, merged: `async for position, piece in …`. A piece is text, or the LLMError that ended its row.

    Made by `lab.stream_many`. Nothing is sent before the first piece is asked for. Leaving the loop early closes the
    connections.
    """

    def __init__(self, open_job: Open, by: By = "piece", *, race: bool = False) -> None:
        cutter(by)  # complains here, before anything is sent
        self._open, self._by, self._race = open_job, by, race
        self._job: Job[Any] | None = None
        self._cutters: dict[int, Cutter] = {}
        self._flow = Flow()
        self.winner: int | None = None
        """In a race, the row whose answer came first; the others were cancelled then."""
        self.outcomes: dict[int, Outcome] = {}
        """What became of the rows settled so far, by position; with the whole Reply."""

    @property
    def job(self) -> Job[Any]:
        """The job at work: its frame, events and limits.

        Raises:
            RuntimeError: the stream has not begun.
        """
        if self._job is None:
            raise RuntimeError("the stream has not begun: write `async for …` first")
        return self._job

    @property
    def frame(self) -> Frame:
        """The rows settled so far; see `llmlab.frame.COLUMNS`."""
        return self.job.frame

    def __aiter__(self) -> AsyncIterator[Piece]:
        return self._pieces()

    async def _pieces(self) -> AsyncGenerator[Piece, None]:
        if self._job is not None:
            raise RuntimeError("a stream can be read once: begin another one")
        job = self._job = self._open(self._flow)
        pipe = _Pipe(job, self._flow)
        self._listen(job, pipe)
        waiting = asyncio.ensure_future(job.wait())
        waiting.add_done_callback(lambda _: pipe.put(None))
        try:
            async for piece in pipe:
                yield piece
            waiting.result()
            if job.stopped == "interrupted":
                raise KeyboardInterrupt
        finally:
            job.on_loop(self._flow.open.set)
            await _end(job, waiting)

    def _listen(self, job: Job[Any], pipe: _Pipe) -> None:
        def delta(event: Delta) -> None:
            if self._race and self.winner is None and event.text:
                self.winner = event.index
                job.keep_only(event.index)
            self._take(event.index, self._cutter(event.index).feed(event.text), pipe)

        def again(event: Retrying | Rerouted) -> None:
            self._cutters.pop(event.index, None)  # what was held back belongs to an attempt that has failed

        def finished(event: Finished) -> None:
            index, error = event.outcome.index, event.outcome.error
            self._take(index, self._cutter(index).flush(), pipe)
            del self._cutters[index]
            self._flow.calls.pop(index, None)
            self.outcomes[index] = event.outcome
            if event.outcome.status == "error":
                pipe.put((index, error if isinstance(error, LLMError) else LLMError(str(error))))

        job.bus.subscribe(delta, Delta)
        job.bus.subscribe(again, Retrying, Rerouted)
        job.bus.subscribe(finished, Finished)

    def _cutter(self, index: int) -> Cutter:
        found = self._cutters.get(index)
        if found is None:
            found = self._cutters[index] = cutter(self._by)
        return found

    def _take(self, index: int, pieces: Iterable[str], pipe: _Pipe) -> None:
        for piece in pieces:
            if (call := self._flow.calls.get(index)) is not None:
                call.committed = True
            pipe.put((index, piece))


class Stream:
    """One answer: `async for piece in …`. Made by `lab.stream`; afterwards `reply` is the whole answer.

    Nothing is sent before the first piece is asked for. Leaving the loop early closes the connection. A failure
    raises its LLMError, after the text that had come.
    """

    def __init__(self, open_job: Open, by: By = "piece") -> None:
        self._streams = Streams(open_job, by)

    def __aiter__(self) -> AsyncIterator[str]:
        return self._pieces()

    async def _pieces(self) -> AsyncGenerator[str, None]:
        pieces = aiter(self._streams)
        try:
            async for _, piece in pieces:
                if isinstance(piece, LLMError):
                    raise piece
                yield piece
        finally:
            await _close(pieces)

    @property
    def reply(self) -> Reply:
        """The whole answer, with its usage, time to first token (`ttft_s`) and time between pieces (`itl_s`).

        Raises:
            LLMError: the answer failed.
            RuntimeError: the stream was not read to its end.
        """
        return _reply_of(self._streams.outcomes.get(0))

    @property
    def job(self) -> Job[Any]:
        """The job at work; see `Streams.job`."""
        return self._streams.job


class Race:
    """Many requests at once; who says something first is heard, the others are cancelled.

    Made by `lab.race`: `async for position, piece in …`. If the winner fails before any of its text was given out, the
    others are asked again; if all fail, the last one's error is raised. Afterwards `winner` and `reply` say who won.
    """

    def __init__(self, rows: Sequence[Item], open_job: Callable[[Sequence[Item], Flow], Job[Any]], by: By) -> None:
        cutter(by)
        self._rows, self._open, self._by = rows, open_job, by
        self.winner: int | None = None
        """Position of the one that is heard."""
        self._outcome: Outcome | None = None

    @property
    def reply(self) -> Reply:
        """The winner's whole answer.

        Raises:
            LLMError: it failed.
            RuntimeError: the race was not followed to its end.
        """
        return _reply_of(self._outcome)

    def __aiter__(self) -> AsyncIterator[tuple[int, str]]:
        return self._pieces()

    async def _pieces(self) -> AsyncGenerator[tuple[int, str], None]:
        left = list(range(len(self._rows)))
        while left:
            heat = Streams(lambda flow, left=left: self._open([self._rows[n] for n in left], flow), self._by, race=True)
            shown, errors = False, []
            pieces = aiter(heat)
            try:
                async for place, piece in pieces:
                    if isinstance(piece, LLMError):
                        errors.append(piece)
                        continue
                    shown, self.winner = True, left[place]
                    yield left[place], piece
            finally:
                await _close(pieces)
            self._outcome = None if heat.winner is None else heat.outcomes.get(heat.winner)
            if self._outcome is not None and self._outcome.status == "ok":
                self.winner = left[heat.winner or 0]
                return
            if shown or heat.winner is None or len(left) == 1:
                raise errors[-1] if errors else LLMError("the race was stopped")
            left = [n for n in left if n != left[heat.winner]]


async def _end(job: Job[Any], waiting: "asyncio.Future[Any]") -> None:
    """Stop a job whose reader has gone, and wait until its connections are closed."""
    if not waiting.done():
        job.cancel()
        with suppress(Exception):
            await asyncio.shield(waiting)


async def _close(pieces: AsyncIterator[Any]) -> None:
    if isinstance(pieces, AsyncGenerator):
        await pieces.aclose()


def _reply_of(outcome: Outcome | None) -> Reply:
    if outcome is None or outcome.status == "cancelled":
        raise RuntimeError("there is no whole answer: the stream was not read to its end")
    if outcome.reply is None:
        raise outcome.error or LLMError("the row has neither a reply nor an error")
    return outcome.reply
