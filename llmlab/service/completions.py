"""`POST /v1/completions` and `/v1/completions/batch`: the service's own API."""

import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from llmlab.events import Finished
from llmlab.service.asking import Asked, asked, paced, row_of
from llmlab.service.faults import Failure, Fault, fault_of
from llmlab.service.guard import internal
from llmlab.service.shapes import (
    BatchAnswer,
    BatchRequest,
    CompletionAnswer,
    CompletionRequest,
    ErrorAnswer,
    RowAnswer,
)
from llmlab.service.sse import DONE, EventStream, event
from llmlab.streams import Stream

FAILURES: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorAnswer, "description": words}
    for status, words in {
        400: "The request is wrong, or the provider says so.",
        401: "No valid key.",
        404: "No such model.",
        413: "Too large.",
        422: "The request is not as the schema says.",
        429: "Too many requests, or the queue is full; see Retry-After.",
        502: "The upstream provider failed.",
        503: "Not able to serve for now.",
        504: "No answer in time.",
    }.items()
}

router = APIRouter(prefix="/v1", tags=["completions"], responses=FAILURES)


@router.post(
    "/completions",
    response_model=CompletionAnswer,
    responses={
        200: {
            "description": 'The answer; with `stream` server-sent events: `data: {"content": …}` for each piece, one '
            "with `finish_reason`, `usage`, `model`, `latency_ms`, `request_id`, then `data: [DONE]`. A failure after "
            "the first piece is an event `error`, and no [DONE] follows.",
            "content": {"text/event-stream": {"schema": {"type": "string"}}},
        }
    },
)
async def complete(request: Request, body: CompletionRequest) -> Any:
    """Answer one prompt."""
    ask, streamed = asked(request, rows=1), False
    try:
        model = ask.desk.check_model(body.model)
        given = body.asked()
        ask.note_texts(given)
        if body.stream:
            stream = ask.client.lab.stream(given, priority=body.priority, **body.parameters(model))
            response = await _stream(ask, stream, body)
            streamed = True
            return response
        job = ask.client.lab.run(given, priority=body.priority, **body.parameters(model))
        reply = await ask.desk.until_gone(request, job.wait(), body.timeout)
    except (TypeError, ValueError) as error:
        raise Failure(Fault(400, "bad_request", str(error))) from None
    finally:
        if not streamed:
            ask.room.leave()
    answer = CompletionAnswer.of(reply, ask.request_id)
    ask.note(tokens=None if answer.usage is None else answer.usage.total_tokens)
    return JSONResponse(answer.model_dump())


async def _stream(ask: Asked, stream: Stream, body: CompletionRequest) -> Response:
    """Begin to answer when the first piece is there: what fails before has a status of its own."""
    pieces = aiter(stream)
    first = await ask.desk.until_gone(ask.request, anext(pieces, ""), body.timeout)
    return EventStream(_events(ask, stream, first, pieces), ask.desk, on_end=ask.room.leave)


async def _events(
    ask: Asked, stream: Stream, first: str, pieces: AsyncGenerator[str, None]
) -> AsyncGenerator[bytes, None]:
    async with aclosing(pieces):
        try:
            if first:
                yield event({"content": first})
            async for piece in pieces:
                yield event({"content": piece})
            answer = CompletionAnswer.of(stream.reply, ask.request_id)
        except Exception as error:  # noqa: BLE001  whatever it is, the client must hear of it
            yield event(failure_of(error, ask.request_id), name="error")
            return
    yield event({**answer.model_dump(exclude={"content"}), "content": ""})
    yield DONE


def failure_of(error: Exception, request_id: str) -> dict[str, Any]:
    """What is said of a failure after the answer has begun."""
    fault = fault_of(error)
    return (fault if fault.status != INTERNAL else internal(error, request_id)).body(request_id)


INTERNAL = 500


@router.post("/completions/batch", response_model=BatchAnswer)
async def complete_batch(request: Request, body: BatchRequest) -> Any:
    """Answer many prompts; the results stand in the order of the prompts, failures in their places."""
    ask = asked(request, rows=len(body.prompts))
    ask.note_texts(body.prompts)
    begun = time.perf_counter()
    try:
        job = ask.client.lab.run_many(
            paced(body.prompts, body.max_concurrency, lambda: job.bus),
            priority=body.priority,
            progress=False,
            **body.parameters(ask.desk.check_model(body.model)),
        )
        found: dict[int, RowAnswer] = {}
        job.bus.subscribe(lambda event: found.update({event.outcome.index: row_of(event.outcome)}), Finished)
        await ask.desk.until_gone(request, job.wait())
    finally:
        ask.room.leave()
    not_asked = (RowAnswer(index=index, status="cancelled") for index in range(len(body.prompts)))
    results = [found.get(row.index, row) for row in not_asked]
    latencies = [row.latency_ms for row in results if row.latency_ms is not None]
    answer = BatchAnswer(
        results=results,
        total_time_ms=(time.perf_counter() - begun) * 1000.0,
        avg_latency_ms=sum(latencies) / len(latencies) if latencies else None,
        success_count=sum(row.status == "ok" for row in results),
        error_count=sum(row.status != "ok" for row in results),
        request_id=ask.request_id,
    )
    return JSONResponse(answer.model_dump())
