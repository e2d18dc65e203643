"""What goes over the wire: requests and answers of the service's own API, with examples for its OpenAPI page."""

from typing import Annotated, Any, Literal

import orjson
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator
from pydantic.config import JsonDict

from llmlab.types import Reply, Usage

LONGEST = 1_000_000
"""Characters of one prompt at most; the provider's own limit comes much earlier."""


def sendable(value: Any) -> Any:
    """Give back what can go on to a provider as JSON.

    Raises:
        ValueError: it has lone surrogates, numbers of more than 64 bits, or is nested hundreds deep.
    """
    try:
        orjson.dumps(value)
    except TypeError as error:
        raise ValueError(f"it cannot be sent on as JSON: {error}") from None
    return value


JSONObject = Annotated[dict[str, Any], AfterValidator(sendable)]
"""An object of which nothing is known but that it is JSON."""
Text = Annotated[str, Field(max_length=LONGEST)]


class Turn(BaseModel):
    """One message of a conversation."""

    model_config = ConfigDict(extra="forbid")

    role: Literal["system", "developer", "user", "assistant"]
    content: Text | Annotated[list[JSONObject], Field(min_length=1)]


class Sampling(BaseModel):
    """What requests have in common."""

    model_config = ConfigDict(extra="forbid")

    model: Annotated[str | None, Field(max_length=200, description="Default: the service's own model.")] = None
    temperature: Annotated[float | None, Field(ge=0, le=2)] = None
    max_tokens: Annotated[int | None, Field(ge=1, le=10_000_000, description="Output tokens at most.")] = None
    priority: Annotated[int, Field(ge=0, le=3, description="0 critical, 1 high, 2 normal, 3 low.")] = 2

    response_format: Annotated[
        JSONObject | None, Field(description="As OpenAI's; goes to the upstream provider as it is.")
    ] = None

    def parameters(self, model: str | None) -> dict[str, Any]:
        """As a lab's verbs take them."""
        extra = None if self.response_format is None else {"response_format": self.response_format}
        return {"model": model, "temperature": self.temperature, "max_tokens": self.max_tokens, "extra": extra}


class CompletionRequest(Sampling):
    """One prompt, or one conversation."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [
                {"prompt": "Say hello.", "max_tokens": 50},
                {"messages": [{"role": "user", "content": "Say hello."}], "stream": True, "priority": 1},
            ]
        },
    )

    prompt: Annotated[str, Field(min_length=1, max_length=LONGEST)] | None = None
    messages: Annotated[list[Turn], Field(min_length=1, max_length=1000)] | None = None
    stream: bool = False
    timeout: Annotated[
        float | None, Field(gt=0, le=86_400, description="Seconds to wait; the service's own deadline holds, too.")
    ] = None

    @model_validator(mode="after")
    def _one_of_both(self) -> "CompletionRequest":
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("give either prompt or messages")
        return self

    def asked(self) -> str | list[dict[str, Any]]:
        """What is asked, as a lab takes it."""
        if self.messages is None:
            return self.prompt or ""
        return [turn.model_dump() for turn in self.messages]


class BatchRequest(Sampling):
    """Many prompts, answered in one go."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={"examples": [{"prompts": ["Say hello.", "Say goodbye."], "max_concurrency": 8}]},
    )

    prompts: Annotated[list[Annotated[str, Field(min_length=1, max_length=LONGEST)]], Field(min_length=1)]
    max_concurrency: Annotated[
        int | None, Field(ge=1, le=10_000, description="Of these prompts at a time. Default: the service's own limit.")
    ] = None


_USAGE: JsonDict = {"input_tokens": 9, "output_tokens": 3, "total_tokens": 12}
_ROW: JsonDict = {
    "index": 0,
    "status": "ok",
    "content": "Hello.",
    "model": "small",
    "usage": _USAGE,
    "latency_ms": 412.0,
}
_BAD: JsonDict = {"index": 1, "status": "error", "error": {"type": "upstream_down", "message": "…", "code": 503}}


class UsageShape(BaseModel):
    """Tokens of an answer."""

    input_tokens: int
    output_tokens: int
    total_tokens: int

    @classmethod
    def of(cls, usage: Usage | None) -> "UsageShape | None":
        """From llmlab's own."""
        if usage is None:
            return None
        total = usage.input_tokens + usage.output_tokens
        return cls(input_tokens=usage.input_tokens, output_tokens=usage.output_tokens, total_tokens=total)


class CompletionAnswer(BaseModel):
    """One answer."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "content": "Hello.",
                    "model": "small",
                    "usage": _USAGE,
                    "latency_ms": 412.0,
                    "finish_reason": "stop",
                    "request_id": "req_1",
                }
            ]
        }
    )

    content: str
    model: str
    usage: UsageShape | None
    latency_ms: float
    finish_reason: str
    request_id: str
    cost_usd: float | None = None
    cached: bool = False

    @classmethod
    def of(cls, reply: Reply, request_id: str) -> "CompletionAnswer":
        """From a lab's reply; the id is the service's."""
        return cls(
            content=reply.content,
            model=reply.model,
            usage=UsageShape.of(reply.usage),
            latency_ms=reply.latency_s * 1000.0,
            finish_reason=reply.finish_reason,
            request_id=request_id,
            cost_usd=reply.cost_usd,
            cached=reply.cache_hit,
        )


class ErrorBody(BaseModel):
    """What went wrong."""

    type: str
    message: str
    code: int
    request_id: str | None = None
    retry_after_s: float | None = None


class ErrorAnswer(BaseModel):
    """A failure."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"error": {"type": "queue_full", "message": "…", "code": 429, "request_id": "r-1", "retry_after_s": 1}}
            ]
        }
    )

    error: ErrorBody


FAILURES: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorAnswer, "description": words}
    for status, words in {
        400: "The request is wrong, or the provider says so.",
        401: "No valid key.",
        403: "Without keys the service answers on loopback only.",
        404: "No such model, or no such job.",
        408: "The body did not come in time.",
        413: "Too large.",
        422: "The request is not as the schema says.",
        429: "Too many requests, or the queue is full; see Retry-After.",
        502: "The upstream provider failed.",
        503: "Not able to serve for now.",
        504: "No answer in time.",
    }.items()
}
"""What any route that asks may answer."""


def streamed(words: str, example: str) -> dict[str, Any]:
    """The description of an answer that is, or may be, server-sent events."""
    return {
        "description": words,
        "content": {"text/event-stream": {"schema": {"type": "string"}, "example": example}},
    }


class RowAnswer(BaseModel):
    """One prompt's answer, or why there is none."""

    index: int
    status: Literal["ok", "error", "cancelled"]
    content: str | None = None
    model: str | None = None
    usage: UsageShape | None = None
    latency_ms: float | None = None
    finish_reason: str | None = None
    error: ErrorBody | None = None


class BatchAnswer(BaseModel):
    """The answers of a batch, in the order of its prompts."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "results": [_ROW, _BAD],
                    "total_time_ms": 530.0,
                    "avg_latency_ms": 412.0,
                    "success_count": 1,
                    "error_count": 1,
                    "request_id": "req_1",
                }
            ]
        }
    )

    results: list[RowAnswer]
    total_time_ms: float
    avg_latency_ms: float | None
    success_count: int
    error_count: int
    """Those without an answer, for whatever reason."""
    request_id: str


class JobAnswer(BaseModel):
    """A long job."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "id": "job_6f1c",
                    "status": "running",
                    "total": 2,
                    "done": 1,
                    "success_count": 1,
                    "error_count": 0,
                    "created_at": 1.7e9,
                    "durable": True,
                    "results": [_ROW],
                }
            ]
        }
    )

    id: str
    status: Literal["running", "done", "cancelled", "failed"]
    total: int
    done: int
    success_count: int
    error_count: int
    created_at: float
    durable: bool
    """Whether it survives a restart of the service."""
    error: str | None = None
    results: list[RowAnswer] | None = None
