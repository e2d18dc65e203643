"""Who asks, how many rows at a time, and how rows of a frame become answers."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from fastapi import Request

from llmlab.events import Bus, Finished
from llmlab.service.desk import Client, Desk
from llmlab.service.faults import Failure, Fault, fault_of
from llmlab.service.rooms import Room
from llmlab.service.shapes import ErrorBody, RowAnswer, UsageShape
from llmlab.types import Outcome, Reply


@dataclass
class Asked:
    """A request that was let in, with room for its rows."""

    request: Request
    """The request."""
    desk: Desk
    """The service's."""
    client: Client
    """Who asks."""
    request_id: str
    """Its id."""
    room: Room
    """To be left at the end."""

    def note_texts(self, texts: object) -> None:
        """Put prompts into the log, if that is wanted."""
        if self.desk.settings.log_prompts:
            self.note(texts=texts)

    def note(self, **fields: object) -> None:
        """Put something into its line in the log; no texts of prompts or answers."""
        self.request.state.noted.update(fields)

    def note_reply(self, reply: Reply) -> None:
        """Put what an answer took into the log."""
        if reply.usage is not None:
            self.note(input_tokens=reply.usage.input_tokens, output_tokens=reply.usage.output_tokens)


def asked(request: Request, *, rows: int) -> Asked:
    """Let a request of so many rows in.

    Raises:
        Failure: it has too many, its key has asked too often, or the service is full.
    """
    desk: Desk = request.state.desk
    client: Client = request.state.client
    request.state.noted["prompts"] = rows
    if rows > desk.settings.max_prompts:
        words = f"{rows} prompts in one request, {desk.settings.max_prompts} at most: POST /v1/jobs takes more"
        raise Failure(Fault(413, "too_many_prompts", words))
    return Asked(request, desk, client, request.state.request_id, desk.take_room(desk.asks, rows, client))


@contextmanager
def named_mistakes() -> Iterator[None]:
    """Tell the client what the lab finds wrong with what it asks.

    Raises:
        Failure: the body raised a TypeError or ValueError.
    """
    try:
        yield
    except (TypeError, ValueError) as error:
        raise Failure(Fault(400, "bad_request", str(error)[:500])) from None


def paced(prompts: Sequence[Any], most: int | None, bus: Callable[[], Bus]) -> Any:
    """Prompts for a job that is to have `most` of its rows at work at a time. None: as many as the lab takes."""
    return prompts if most is None else _paced(prompts, most, bus)


async def _paced(prompts: Sequence[Any], most: int, bus: Callable[[], Bus]) -> AsyncIterator[Any]:
    free = asyncio.Semaphore(most)
    bus().subscribe(lambda _: free.release(), Finished)
    for prompt in prompts:
        await free.acquire()
        yield prompt


def row_of(outcome: Outcome) -> RowAnswer:
    """What became of a row, as its client gets it."""
    reply = outcome.reply
    if reply is None:
        return RowAnswer(index=outcome.index, status=outcome.status, error=_error_of(outcome))
    return RowAnswer(
        index=outcome.index,
        status="ok",
        content=reply.content,
        model=reply.model,
        usage=UsageShape.of(reply.usage),
        latency_ms=reply.latency_s * 1000.0,
        finish_reason=reply.finish_reason,
    )


def _error_of(outcome: Outcome) -> ErrorBody | None:
    if outcome.status != "error" or outcome.error is None:
        return None
    fault = fault_of(outcome.error)
    return ErrorBody(type=fault.type, message=fault.message, code=fault.status)
