"""Answers piece by piece, for whoever reads them as they come.

    Streams   many answers, merged as their pieces arrive
    Stream    one answer
    Race      many requests, of which the first to say something is heard

    the reader            what becomes of the connections
    is behind             nothing is read from them until it has caught up (see `llmlab.flow`)
    leaves the loop       they are closed as soon as the event loop gets its turn
    leaves `async with`   they are closed when the block has been left; likewise after `aclose()`
    is cancelled          they are closed before the cancellation goes on

Text that was handed out is not taken back: from the first piece on a failure is no longer retried, but ends its stream.
"""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from contextlib import aclosing
from functools import partial
from types import TracebackType
from typing import Any, Self, TypeAlias

from llmlab.errors import LLMError
from llmlab.events import Delta, Finished, Rerouted, Retrying
from llmlab.flow import Flow, Pipe
from llmlab.frame import Frame
from llmlab.job import Job
from llmlab.pieces import By, Cutter, cutter
from llmlab.types import Item, Outcome, Reply

BREATH = 0.005
"""Seconds after which the event loop gets a turn, though there is more to read: a loop's body need not wait for it."""

Piece: TypeAlias = tuple[int, str | LLMError]
"""A row's position and a piece of its text, or the error that ended it."""
Open: TypeAlias = Callable[[Flow], Job[Any]]
"""Begins the job whose answers are streamed."""


class Closing(ABC):
    """What may stand in `async with`."""

    @abstractmethod
    async def aclose(self) -> None:
        """Close the connections and end the loop that reads, if there is one. A second call does nothing."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()


class Streams(Closing):
    """Many answers, merged: `async for position, piece in …`. A piece is text, or the LLMError that ended its row.

    Made by `lab.stream_many`. Nothing is sent before the first piece is asked for. Leaving the loop early closes the
    connections; `async with` waits until they are.
    """

    def __init__(self, open_job: Open, by: By = "piece") -> None:
        cutter(by)  # complains here, before anything is sent
        self._open, self._by = open_job, by
        self._job: Job[Any] | None = None
        self._pipe: Pipe[LLMError] | None = None
        self._cutters: dict[int, Cutter] = {}
        self._flow = Flow()
        self.closed = False
        """Whether `aclose` was called."""
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

    async def aclose(self) -> None:
        """Close the connections and end the loop that reads, if there is one. A second call does nothing."""
        self.closed = True
        if self._pipe is not None:
            self._pipe.drop()
            await self._pipe.aclose()

    async def __aiter__(self) -> AsyncGenerator[Piece, None]:
        pipe = self._begin()
        loop = asyncio.get_running_loop()
        breath = loop.time() + BREATH
        try:
            while batch := await pipe.take():
                for piece in batch:
                    yield piece
                    if loop.time() > breath:
                        await asyncio.sleep(0)
                        breath = loop.time() + BREATH
            pipe.check()
        finally:
            await pipe.aclose()

    def _begin(self) -> Pipe[LLMError]:
        if self.closed or self._job is not None:
            raise RuntimeError("a stream can be read once: begin another one")
        job = self._job = self._open(self._flow)
        pipe = self._pipe = Pipe(job, self._flow)
        self._listen(job, pipe)
        return pipe

    # -- on the job's loop --------------------------------------------------------------------------------

    def _listen(self, job: Job[Any], pipe: Pipe[LLMError]) -> None:
        calls = self._flow.calls  # what comes of a row that is settled comes too late

        def whole(event: Delta) -> None:  # the short cut of `_hand_over`: it is called for each token
            if event.text and (call := calls.get(event.index)) is not None:
                call.committed = True
                pipe.put(event.index, event.text)

        def cut(event: Delta) -> None:
            if event.index in calls:
                self._hand_over(pipe, event.index, self._cutter(event.index).feed(event.text))

        def again(event: Retrying | Rerouted) -> None:
            self._cutters.pop(event.index, None)  # what was held back belongs to an attempt that has failed

        job.bus.subscribe(whole if self._by == "piece" else cut, Delta)
        job.bus.subscribe(again, Retrying, Rerouted)
        job.bus.subscribe(lambda event: self._finished(pipe, event.outcome), Finished)

    def _cutter(self, index: int) -> Cutter:
        found = self._cutters.get(index)
        if found is None:
            found = self._cutters[index] = cutter(self._by)
        return found

    def _hand_over(self, pipe: Pipe[LLMError], index: int, pieces: Iterable[str]) -> None:
        for piece in pieces:
            self._flow.calls[index].committed = True
            pipe.put(index, piece)

    def _finished(self, pipe: Pipe[LLMError], outcome: Outcome) -> None:
        index, call = outcome.index, self._flow.calls.get(outcome.index)
        held_back = self._cutters.pop(index, None)
        if outcome.reply is not None and call is not None and not call.committed:
            whole = cutter(self._by)  # what was held back may be of another attempt: a hedge's copy says nothing
            self._hand_over(pipe, index, (*whole.feed(outcome.reply.content), *whole.flush()))
        elif held_back is not None and self._gives_rest(outcome):
            self._hand_over(pipe, index, held_back.flush())
        self._flow.calls.pop(index, None)
        self.outcomes[index] = outcome
        if outcome.status == "error":
            pipe.put(index, _llm_error(outcome))

    def _gives_rest(self, outcome: Outcome) -> bool:  # noqa: ARG002  a race has its own rule
        """Whether text that waits for the end of its sentence is given out."""
        return True


class Stream(Closing):
    """One answer: `async for piece in …`. Made by `lab.stream`; afterwards `reply` is the whole answer.

    Nothing is sent before the first piece is asked for. Leaving the loop early closes the connection; `async with`
    waits until it is. A failure raises its LLMError, after the text that had come, and so does a job that was stopped.
    """

    def __init__(self, open_job: Open, by: By = "piece") -> None:
        self._streams = Streams(open_job, by)

    async def __aiter__(self) -> AsyncGenerator[str, None]:
        async with aclosing(aiter(self._streams)) as pieces:
            async for _, piece in pieces:
                if isinstance(piece, LLMError):
                    raise piece
                yield piece
        if self._streams.outcomes[0].status == "cancelled" and not self._streams.closed:
            raise _stopped()

    async def aclose(self) -> None:
        """Close the connection and end the loop that reads, if there is one. A second call does nothing."""
        await self._streams.aclose()

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


class _Heat(Streams):
    """Some of a race's requests, until one of them says something or has answered without a word."""

    winner: int | None = None

    def _listen(self, job: Job[Any], pipe: Pipe[LLMError]) -> None:
        job.bus.subscribe(lambda event: self._heard(event.index) if event.text else None, Delta)
        super()._listen(job, pipe)

    def _heard(self, index: int) -> None:
        if self.winner is None:
            self.winner = index
            self.job.keep_only(index)

    def _finished(self, pipe: Pipe[LLMError], outcome: Outcome) -> None:
        if outcome.status == "ok":
            self._heard(outcome.index)
        super()._finished(pipe, outcome)

    def _gives_rest(self, outcome: Outcome) -> bool:
        return outcome.status == "ok" or self._flow.calls[outcome.index].committed  # else another may yet answer


class Race(Closing):
    """Many requests at once; who says something first is heard, the others are cancelled.

    Made by `lab.race`: `async for position, piece in …`. If the winner fails before any of its text was given out, the
    others are asked again, but for those that had failed, too; if all fail, the last one's error is raised. Afterwards
    `winner` and `reply` say who won.
    """

    def __init__(self, rows: Sequence[Item], open_job: Callable[[Sequence[Item], Flow], Job[Any]], by: By) -> None:
        cutter(by)
        self._rows, self._open, self._by = rows, open_job, by
        self._heat: _Heat | None = None
        self._closed = False
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

    async def aclose(self) -> None:
        """Close the connections and end the loop that reads, if there is one. A second call does nothing."""
        self._closed = True
        if self._heat is not None:
            await self._heat.aclose()

    async def __aiter__(self) -> AsyncGenerator[tuple[int, str], None]:
        if self._closed or self._heat is not None:
            raise RuntimeError("a race can be followed once: begin another one")
        left = list(range(len(self._rows)))
        while left and not self._closed:
            heat = self._heat = _Heat(partial(self._open, [self._rows[n] for n in left]), self._by)
            async with aclosing(aiter(heat)) as pieces:
                async for place, piece in pieces:
                    if isinstance(piece, str):
                        self.winner = left[place]
                        yield self.winner, piece
            if not heat.closed:
                left = self._judge(heat, left)

    def _judge(self, heat: _Heat, left: list[int]) -> list[int]:
        """Look at a heat that is over; gives those to be asked again."""
        failed = [place for place, outcome in heat.outcomes.items() if outcome.status == "error"]
        last = heat.winner if heat.winner is not None else failed[-1] if failed else None
        if last is None or heat.outcomes[last].status == "cancelled":
            raise _stopped()
        outcome = self._outcome = heat.outcomes[last]
        if outcome.status == "ok":
            self.winner = left[last]
            return []
        again = [n for place, n in enumerate(left) if place not in failed]
        if self.winner is not None or heat.winner is None or not again:
            raise _llm_error(outcome)
        return again


def _llm_error(outcome: Outcome) -> LLMError:
    error = outcome.error
    if isinstance(error, LLMError):
        return error
    wrapped = LLMError(f"{type(error).__name__}: {error}")
    wrapped.__cause__ = error
    return wrapped


def _stopped() -> LLMError:
    return LLMError("the answer was stopped before its end")


def _reply_of(outcome: Outcome | None) -> Reply:
    if outcome is None or outcome.status == "cancelled":
        raise RuntimeError("there is no whole answer: the stream was not read to its end")
    if outcome.reply is None:
        raise _llm_error(outcome)
    return outcome.reply
