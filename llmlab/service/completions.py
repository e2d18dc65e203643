"""`POST /v1/completions` and `/v1/completions/batch`: the service's own API."""

import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from llmlab.events import Finished
from llmlab.service.asking import Asked, asked, named_mistakes, paced, row_of
from llmlab.service.faults import INTERNAL, Fault, fault_of
from llmlab.service.guard import internal
from llmlab.service.shapes import (
    FAILURES,
    BatchAnswer,
    BatchRequest,
    CompletionAnswer,
    CompletionRequest,
    RowAnswer,
    streamed,
)
from llmlab.service.sse import DONE, EventStream, event
from llmlab.streams import Stream

router = APIRouter(prefix="/v1", tags=["completions"], responses=FAILURES)

EXAMPLE = (
    'data: {"content":"Hello"}\n\ndata: {"content":" there."}\n\n'
    'data: {"content":"","model":"small","usage":{"input_tokens":9,"output_tokens":3,"total_tokens":12},'
    '"latency_ms":412.0,"finish_reason":"stop","request_id":"req_1","cost_usd":null,"cached":false}\n\n'
    "data: [DONE]\n\n"
)


@router.post(
    "/completions",
    response_model=CompletionAnswer,
    responses={
        200: streamed(
            'The answer; with `stream` server-sent events: `data: {"content": …}` for each piece, one with '
            "`finish_reason`, `usage`, `model`, `latency_ms`, `request_id`, then `data: [DONE]`. A failure after the "
            "first piece is an event `error`, and no [DONE] follows.",
            EXAMPLE,
        )
    },
)
async def complete(request: Request, body: CompletionRequest) -> Any:
    """Answer one prompt."""
    ask, begun = asked(request, rows=1), False
    try:
        model = ask.desk.check_model(body.model)
        given = body.asked()
        ask.note_texts(given)
        with named_mistakes():
            parameters = {"priority": body.priority, **body.parameters(model)}
            stream = ask.client.lab.stream(given, **parameters) if body.stream else None
            job = None if body.stream else ask.client.lab.run(given, **parameters)
        if stream is not None:
            response = await _stream(ask, stream, body.timeout)
            begun = True
            return response
        assert job is not None  # noqa: S101  it is the one or the other
        reply = await ask.desk.until_gone(request, job.wait(), body.timeout)
    finally:
        if not begun:
            ask.room.leave()
    ask.note_reply(reply)
    return JSONResponse(CompletionAnswer.of(reply, ask.request_id).model_dump())


async def _stream(ask: Asked, stream: Stream, seconds: float | None) -> Response:
    """Begin to answer when the first piece is there: what fails before has a status of its own."""
    pieces = aiter(stream)
    first = await ask.desk.until_gone(ask.request, anext(pieces, ""), seconds)

    def last_words(fault: Fault) -> bytes:
        return event(fault.body(ask.request_id), name="error")

    events = _events(ask, stream, first, pieces)
    return EventStream(events, ask.desk, seconds=seconds, last_words=last_words, on_end=ask.room.leave)


async def _events(
    ask: Asked, stream: Stream, first: str, pieces: AsyncGenerator[str, None]
) -> AsyncGenerator[bytes, None]:
    async with aclosing(pieces):
        try:
            if first:
                yield event({"content": first})
            async for piece in pieces:
                yield event({"content": piece})
            reply = stream.reply
        except Exception as error:  # noqa: BLE001  whatever it is, the client must hear of it
            yield event(failure_of(ask, error), name="error")
            return
    ask.note_reply(reply)
    yield event({**CompletionAnswer.of(reply, ask.request_id).model_dump(exclude={"content"}), "content": ""})
    yield DONE


def failure_of(ask: Asked, error: Exception) -> dict[str, Any]:
    """What is said of a failure after the answer has begun."""
    fault = fault_of(error)
    ask.note(error=fault.type)
    return (fault if fault.status != INTERNAL else internal(error, ask.request_id)).body(ask.request_id)


@router.post("/completions/batch", response_model=BatchAnswer)
async def complete_batch(request: Request, body: BatchRequest) -> Any:
    """Answer many prompts; the results stand in the order of the prompts, failures in their places."""
    begun = time.perf_counter()
    with (ask := asked(request, rows=len(body.prompts))).room:
        ask.note_texts(body.prompts)
        found = await _rows(ask, body)
    results = [found.get(index) or RowAnswer(index=index, status="cancelled") for index in range(len(body.prompts))]
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


async def _rows(ask: Asked, body: BatchRequest) -> dict[int, RowAnswer]:
    model, found = ask.desk.check_model(body.model), dict[int, RowAnswer]()
    with named_mistakes():
        job = ask.client.lab.run_many(
            paced(body.prompts, body.max_concurrency, lambda: job.bus),
            priority=body.priority,
            progress=False,
            **body.parameters(model),
        )
    job.bus.subscribe(lambda event: found.update({event.outcome.index: row_of(event.outcome)}), Finished)
    await ask.desk.until_gone(ask.request, job.wait())
    return found
