"""`POST /v1/chat/completions` and `GET /v1/models`: for any OpenAI client, by changing its base URL.

Fields that llmlab does not know itself (`stop`, `top_p`, `tools`, `response_format`, …) go to the upstream provider as
they are, and so do messages with more than a role and a content (tool calls and their results, names), if it speaks
the same format. Not served: `n` above 1, `logprobs` in the answer.
"""

import time
import uuid
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Annotated, Any

from fastapi import APIRouter, Path, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field, model_validator

from llmlab.providers.openai import OpenAI
from llmlab.service.asking import Asked, asked, named_mistakes
from llmlab.service.completions import failure_of
from llmlab.service.desk import Desk
from llmlab.service.faults import Failure, Fault
from llmlab.service.shapes import FAILURES, JSONObject, sendable, streamed
from llmlab.service.sse import DONE, EventStream, event
from llmlab.streams import Stream
from llmlab.types import ROLES, Reply, Usage

router = APIRouter(prefix="/v1", tags=["OpenAI-compatible"], responses=FAILURES)

OURS = {"model", "messages", "temperature", "max_tokens", "max_completion_tokens", "stream", "stream_options",
        "n", "user", "store", "metadata", "service_tier", "priority"}  # fmt: skip
"""Fields that are read here, or that speak of the client's account and not of the answer."""
EXAMPLE = (
    'data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":0,"model":"small",'
    '"choices":[{"index":0,"delta":{"role":"assistant","content":"Hello."},"finish_reason":null}]}\n\n'
    "data: [DONE]\n\n"
)


_OPENAI = streamed("As OpenAI's; with `stream` as server-sent events.", EXAMPLE)
_OPENAI["content"]["application/json"] = {
    "schema": {"type": "object"},
    "example": {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 0,
        "model": "small",
        "choices": [
            {"index": 0, "message": {"role": "assistant", "content": "Hello."}, "finish_reason": "stop"},
        ],
        "usage": {"prompt_tokens": 9, "completion_tokens": 3, "total_tokens": 12},
    },
}
_MODEL = {"id": "small", "object": "model", "created": 0, "owned_by": "sim"}


def _listed(example: Any) -> dict[int | str, dict[str, Any]]:
    return {200: {"content": {"application/json": {"example": example}}}}


class ChatRequest(BaseModel):
    """As OpenAI's; fields not named here are passed on."""

    model_config = ConfigDict(
        extra="allow",
        json_schema_extra={"examples": [{"model": "default", "messages": [{"role": "user", "content": "Say hello."}]}]},
    )

    messages: Annotated[list[JSONObject], Field(min_length=1, max_length=1000)]
    model: Annotated[str, Field(max_length=200)] = "default"
    temperature: Annotated[float | None, Field(ge=0, le=2)] = None
    max_tokens: Annotated[int | None, Field(ge=1, le=10_000_000)] = None
    max_completion_tokens: Annotated[int | None, Field(ge=1, le=10_000_000)] = None
    stream: bool | None = False
    stream_options: dict[str, Any] | None = None
    n: Annotated[int | None, Field(ge=1, le=1, description="1: one answer.")] = None
    priority: Annotated[int, Field(ge=0, le=3, description="llmlab's own: 0 critical to 3 low.")] = 2

    @model_validator(mode="after")
    def _passes_on(self) -> "ChatRequest":
        sendable(self.model_extra)
        return self

    def parameters(self, desk: Desk) -> dict[str, Any]:
        """As a lab's verbs take them.

        Raises:
            Failure: there is no such model, or its provider takes no such messages.
        """
        extra = {name: value for name, value in (self.model_extra or {}).items() if name not in OURS}
        if not all(map(_is_plain, self.messages)):
            if not isinstance(desk.lab.target.provider.codec, OpenAI):
                words = "tool calls, their results and names in messages need an upstream that speaks OpenAI's format"
                raise Failure(Fault(400, "unsupported_messages", words))
            extra["messages"] = self.messages
        return {
            "model": desk.check_model(self.model),
            "temperature": self.temperature,
            "max_tokens": self.max_completion_tokens or self.max_tokens,
            "priority": self.priority,
            "extra": extra or None,
        }

    def turns(self) -> list[dict[str, Any]]:
        """The messages as llmlab knows them; of others their text, by which their tokens are estimated."""
        return [_turn(message) if _is_plain(message) else _outline(message) for message in self.messages]


def _is_plain(message: dict[str, Any]) -> bool:
    more = any(value for name, value in message.items() if name not in ("role", "content"))
    return message.get("role") in ROLES and not more


def _turn(message: dict[str, Any]) -> dict[str, Any]:
    return {"role": message.get("role"), "content": message.get("content")}


def _outline(message: dict[str, Any]) -> dict[str, Any]:
    role = "assistant" if message.get("role") == "assistant" else "user"
    rest = [value for name, value in message.items() if name not in ("role", "content") and value]
    return {"role": role, "content": f"{message.get('content') or ''}{rest or ''}"}


@router.post(
    "/chat/completions",
    responses={200: _OPENAI},
)
async def chat(request: Request, body: ChatRequest) -> Any:
    """Answer a conversation, in OpenAI's format."""
    ask, begun = asked(request, rows=1), False
    try:
        parameters = body.parameters(ask.desk)
        ask.note_texts(body.messages)
        with named_mistakes():
            stream = ask.client.lab.stream(body.turns(), **parameters) if body.stream else None
            job = None if body.stream else ask.client.lab.run(body.turns(), **parameters)
        if stream is not None:
            response = await _stream(ask, stream, body)
            begun = True
            return response
        assert job is not None  # noqa: S101  it is the one or the other
        reply = await ask.desk.until_gone(request, job.wait())
    finally:
        if not begun:
            ask.room.leave()
    ask.note_reply(reply)
    return JSONResponse(_completion(reply))


async def _stream(ask: Asked, stream: Stream, body: ChatRequest) -> EventStream:
    pieces = aiter(stream)
    first = await ask.desk.until_gone(ask.request, anext(pieces, ""))
    wants_usage = bool((body.stream_options or {}).get("include_usage"))
    model = ask.desk.check_model(body.model) or ask.desk.lab.target.provider.model

    def last_words(fault: Fault) -> bytes:
        return event(fault.body(ask.request_id))

    events = _chunks(ask, stream, first, pieces, model=model, usage=wants_usage)
    return EventStream(events, ask.desk, last_words=last_words, on_end=ask.room.leave)


async def _chunks(
    ask: Asked, stream: Stream, first: str, pieces: AsyncGenerator[str, None], *, model: str, usage: bool
) -> AsyncGenerator[bytes, None]:
    head = {"id": _new_id(), "object": "chat.completion.chunk", "created": int(time.time()), "model": model}

    def chunk(delta: dict[str, Any], finish: str | None = None) -> bytes:
        return event({**head, "choices": [{"index": 0, "delta": delta, "finish_reason": finish}]})

    async with aclosing(pieces):
        try:
            yield chunk({"role": "assistant", "content": first})
            async for piece in pieces:
                yield chunk({"content": piece})
            reply = stream.reply
        except Exception as error:  # noqa: BLE001  whatever it is, the client must hear of it
            yield event(failure_of(ask, error))
            return
    ask.note_reply(reply)
    if reply.tool_calls:
        calls = [{**call, "index": place} for place, call in enumerate(reply.tool_calls)]
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


def _usage(usage: Usage | None) -> dict[str, Any] | None:
    if usage is None:
        return None
    return {
        "prompt_tokens": usage.input_tokens,
        "completion_tokens": usage.output_tokens,
        "total_tokens": usage.input_tokens + usage.output_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
        "completion_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
    }


def _new_id() -> str:
    return f"chatcmpl-{uuid.uuid4().hex}"


@router.get("/models", responses=_listed({"object": "list", "data": [_MODEL]}))
async def models(request: Request) -> dict[str, Any]:
    """The models that may be asked for, as far as they are named."""
    desk: Desk = request.state.desk
    return {"object": "list", "data": [_model(desk, name) for name in desk.models]}


@router.get("/models/{model:path}", responses=_listed(_MODEL))
async def model(request: Request, model: Annotated[str, Path(examples=["small"])]) -> dict[str, Any]:
    """One of them."""
    desk: Desk = request.state.desk
    if model not in desk.models:
        raise Failure(Fault(404, "model_not_found", "there is no model of that name here"))
    return _model(desk, model)


def _model(desk: Desk, name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": desk.lab.target.provider.name}
