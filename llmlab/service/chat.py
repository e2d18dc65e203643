"""`POST /v1/chat/completions` and `GET /v1/models`: for any OpenAI client, by changing its base URL.

Fields that llmlab does not know itself (`stop`, `top_p`, `tools`, `response_format`, …) go to the upstream provider as
they are. Not served: `n` above 1, messages of role `tool`.
"""

import time
import uuid
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Annotated, Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field

from llmlab.service.asking import Asked, asked
from llmlab.service.completions import FAILURES, failure_of
from llmlab.service.faults import Failure, Fault
from llmlab.service.sse import DONE, EventStream, event
from llmlab.streams import Stream
from llmlab.types import Reply, Usage

router = APIRouter(prefix="/v1", tags=["OpenAI-compatible"], responses=FAILURES)

OURS = {"model", "messages", "temperature", "max_tokens", "max_completion_tokens", "stream", "stream_options",
        "n", "user", "store", "metadata", "service_tier"}  # fmt: skip
"""Fields that are read here, or that speak of the client's account and not of the answer."""


class ChatRequest(BaseModel):
    """As OpenAI's; fields not named here are passed on."""

    model_config = ConfigDict(
        extra="allow",
        json_schema_extra={"examples": [{"model": "default", "messages": [{"role": "user", "content": "Say hello."}]}]},
    )

    messages: Annotated[list[dict[str, Any]], Field(min_length=1, max_length=1000)]
    model: Annotated[str, Field(max_length=200)] = "default"
    temperature: Annotated[float | None, Field(ge=0, le=2)] = None
    max_tokens: Annotated[int | None, Field(ge=1, le=10_000_000)] = None
    max_completion_tokens: Annotated[int | None, Field(ge=1, le=10_000_000)] = None
    stream: bool | None = False
    stream_options: dict[str, Any] | None = None
    n: Annotated[int | None, Field(ge=1, le=1, description="1: one answer.")] = None

    def extra_fields(self) -> dict[str, Any] | None:
        """What is passed on to the upstream provider."""
        return {name: value for name, value in (self.model_extra or {}).items() if name not in OURS} or None


@router.post("/chat/completions", responses={200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}}})
async def chat(request: Request, body: ChatRequest) -> Any:
    """Answer a conversation, in OpenAI's format."""
    ask = asked(request, rows=1)
    streamed = False
    try:
        parameters: dict[str, Any] = {
            "model": ask.desk.check_model(body.model),
            "temperature": body.temperature,
            "max_tokens": body.max_completion_tokens or body.max_tokens,
            "extra": body.extra_fields(),
        }
        ask.note_texts(body.messages)
        messages = [_turn(message) for message in body.messages]
        if body.stream:
            response = await _stream(ask, ask.client.lab.stream(messages, **parameters), body)
            streamed = True
            return response
        reply = await ask.desk.until_gone(request, ask.client.lab.run(messages, **parameters).wait())
    except (TypeError, ValueError) as error:
        raise Failure(Fault(400, "bad_request", str(error))) from None
    finally:
        if not streamed:
            ask.room.leave()
    return JSONResponse(_completion(reply))


def _turn(message: dict[str, Any]) -> dict[str, Any]:
    """A message as llmlab knows it: what a client adds without meaning (`name`, empty fields) is left out."""
    return {"role": message.get("role"), "content": message.get("content")}


async def _stream(ask: Asked, stream: Stream, body: ChatRequest) -> EventStream:
    pieces = aiter(stream)
    first = await ask.desk.until_gone(ask.request, anext(pieces, ""))
    wants_usage = bool((body.stream_options or {}).get("include_usage"))
    events = _chunks(ask, stream, first, pieces, usage=wants_usage)
    return EventStream(events, ask.desk, on_end=ask.room.leave)


async def _chunks(
    ask: Asked, stream: Stream, first: str, pieces: AsyncGenerator[str, None], *, usage: bool
) -> AsyncGenerator[bytes, None]:
    head = {
        "id": _new_id(),
        "object": "chat.completion.chunk",
        "created": int(time.time()),
        "model": ask.desk.lab.target.provider.model,
    }

    def chunk(delta: dict[str, Any], finish: str | None = None) -> bytes:
        return event({**head, "choices": [{"index": 0, "delta": delta, "finish_reason": finish}]})

    async with aclosing(pieces):
        try:
            yield chunk({"role": "assistant", "content": first})
            async for piece in pieces:
                yield chunk({"content": piece})
            reply = stream.reply
        except Exception as error:  # noqa: BLE001  whatever it is, the client must hear of it
            yield event(failure_of(error, ask.request_id))
            return
    if reply.tool_calls:
        calls = [{"index": place, **call} for place, call in enumerate(reply.tool_calls)]
        yield chunk({"tool_calls": calls})
    yield chunk({}, _finish(reply))
    if usage:
        yield event({**head, "choices": [], "usage": _usage(reply.usage)})
    yield DONE


def _completion(reply: Reply) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": reply.content, "refusal": None}
    if reply.tool_calls:
        message["tool_calls"] = list(reply.tool_calls)
    return {
        "id": _new_id(),
        "object": "chat.completion",
        "created": int(time.time()),
        "model": reply.model,
        "choices": [{"index": 0, "message": message, "finish_reason": _finish(reply), "logprobs": None}],
        "usage": _usage(reply.usage),
    }


def _finish(reply: Reply) -> str:
    return "stop" if reply.finish_reason == "other" else reply.finish_reason


def _usage(usage: Usage | None) -> dict[str, int] | None:
    if usage is None:
        return None
    asked_for, answered = usage.input_tokens, usage.output_tokens
    return {"prompt_tokens": asked_for, "completion_tokens": answered, "total_tokens": asked_for + answered}


def _new_id() -> str:
    return f"chatcmpl-{uuid.uuid4().hex}"


@router.get("/models")
async def models(request: Request) -> dict[str, Any]:
    """The models that may be asked for."""
    desk = request.state.desk
    names = [desk.lab.target.provider.model, *sorted(desk.settings.models or ())]
    return {
        "object": "list",
        "data": [
            {"id": name, "object": "model", "created": 0, "owned_by": desk.lab.target.provider.name}
            for name in dict.fromkeys(names)
        ],
    }
