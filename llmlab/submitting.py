"""`lab.submit`: one prompt into the lab's queue, begun without being waited for.

    the queue is full                   what becomes of it
    as is certain when it is submitted  `submit` raises QueueFull
    when it comes to the line           the job's error is QueueFull: others had been faster, or a rate limit holds them

What was submitted a moment ago and has not yet come to the line counts as standing in it.
"""

import asyncio
import weakref
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import cached_property
from typing import Any

from llmlab.call import NORMAL, Call
from llmlab.core import Core
from llmlab.errors import LabClosed, LLMError, QueueFull
from llmlab.events import Finished
from llmlab.job import Job
from llmlab.load import Ground
from llmlab.roster import CLOSED
from llmlab.settings import check_priority
from llmlab.streaming import one
from llmlab.typed import REASK, reader_of
from llmlab.types import Message, Prompt, Reply


class Submitting(Core):
    """A lab with the verb that submits; the arguments are described at `llmlab.Lab`."""

    def submit(
        self,
        prompt: str | Prompt | Iterable[Message | Mapping[str, Any]],
        *,
        priority: int = NORMAL,
        model: str | None = None,
        system: str | None = None,
        temperature: float | None = None,
        max_tokens: int | None = None,
        extra: Mapping[str, Any] | None = None,
        schema: object = None,
        reask: int = REASK,
        stream: bool = False,
    ) -> Job[Reply]:
        """Put one prompt into the lab's queue, and go on.

        It begins without being waited for: in a notebook and under `asyncio.run` as soon as the event loop gets its
        turn, in a script without a loop, and with `Lab(loop="thread")`, on the lab's private thread. Nobody need hold
        the job for it to be done; what is still at work when the program ends is lost, unless `lab.close()` waits.

        Args:
            prompt: A text, or a list of messages.
            priority: Place in the queue: 0 critical, 1 high, 2 normal, 3 low. Who has been passed over for a minute
                counts as one class more urgent, so that nobody starves.
            model: Overrides the lab's model, likewise the other parameters.
            system: System prompt.
            temperature: Sampling temperature, 0 to 2.
            max_tokens: Output tokens at most.
            extra: Further request fields; replaces the lab's.
            schema: What the answer is to be, as in `run_many`; then the reply's `parsed`.
            reask: How often an answer that does not fit the schema is asked for again.
            stream: Ask for the answer in pieces, so that it has a time to first token.

        Returns:
            A Job: `await` it, or call its `result()`, for the Reply. A failure raises its LLMError, likewise QueueFull
            if the queue was full only when it came to it, and LabClosed if the lab was closed with `cancel=True`.

        Raises:
            TypeError, ValueError: the prompt or a parameter is not usable; nothing was sent.
            QueueFull: as many as `Lab(queue=…)` wait already.
            LabClosed: the lab was closed.
        """
        rows = one(prompt, self._parameters(model, system, temperature, max_tokens, extra))
        rows = rows.asking(reader_of(schema, reask))
        check_priority(priority)
        self._home.roster.check_open()
        self._check_room()
        opening = _Opening(self._open, self._coming)
        job: Job[Reply] = self._job(
            "submit", rows, stream=stream, finish=only_reply, lane=self._single(priority), open_ground=opening
        )
        opening.count(job)
        job.begin()
        return job

    @cached_property
    def _coming(self) -> "weakref.WeakSet[Job[Reply]]":
        """Jobs submitted that have not come to the line yet."""
        return weakref.WeakSet()

    def _check_room(self) -> None:
        line, slots, coming = self.target.line, self.strategy.slots, len(self._coming)
        if line is None or slots is None:
            return
        waiting = line.waiting + max(0, coming - max(0, slots.limit - slots.in_use))
        if waiting >= line.queue:
            raise QueueFull(
                f"{waiting} requests wait in the lab's line already, its bound is {line.queue}",
                hint="wait for some of them first, or give it more room: Lab(queue=…)",
            )


class _Opening:
    """Counts a job as coming until its prompt has entered the stack, which leads to the line without a pause."""

    def __init__(self, open_ground: Callable[[], Ground], coming: "weakref.WeakSet[Job[Reply]]") -> None:
        self._open, self._coming = open_ground, coming
        self._job: weakref.ref[Job[Reply]] | None = None

    def count(self, job: Job[Reply]) -> None:
        self._job = weakref.ref(job)
        self._coming.add(job)
        job.bus.subscribe(self._come, Finished)  # cancelled before it came

    def _come(self, _: object) -> None:
        job = None if self._job is None else self._job()
        if job is not None:
            self._coming.discard(job)

    def __call__(self) -> Ground:
        ground = self._open()

        async def enter(call: Call) -> Reply:
            self._come(call)
            return await ground.handler(call)

        return replace(ground, handler=enter)


def only_reply(job: Job[Reply]) -> Reply:
    """What a job of one row gives back; raises what became of it instead.

    Raises:
        LLMError: its failure; LabClosed if the lab's end has stopped it.
        asyncio.CancelledError: it was cancelled.
    """
    outcome = job.last
    assert outcome is not None  # noqa: S101  a job of one row has settled it
    if outcome.reply is not None:
        return outcome.reply
    if isinstance(outcome.error, asyncio.CancelledError) and job.stopped == CLOSED:
        raise LabClosed("the lab was closed before there was an answer")
    raise outcome.error or LLMError("the row has neither a reply nor an error")
