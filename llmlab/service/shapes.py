"""What goes over the wire: requests and answers of the service's own API, with examples for its OpenAPI page."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from llmlab.types import Prompt, Reply, Usage

LONGEST = 1_000_000
"""Characters of one prompt at most; the provider's own limit comes much earlier."""

Text = Annotated[str, Field(max_length=LONGEST)]


class Turn(BaseModel):
    """One message of a conversation."""

    model_config = ConfigDict(extra="forbid")

    role: Literal["system", "developer", "user", "assistant"]
    content: Text | Annotated[list[dict[str, Any]], Field(min_length=1)]


class Sampling(BaseModel):
    """What requests have in common."""

    model_config = ConfigDict(extra="forbid")

    model: Annotated[str | None, Field(max_length=200, description="Default: the service's own model.")] = None
    temperature: Annotated[float | None, Field(ge=0, le=2)] = None
    max_tokens: Annotated[int | None, Field(ge=1, le=10_000_000, description="Output tokens at most.")] = None
    priority: Annotated[int, Field(ge=0, le=3, description="0 critical, 1 high, 2 normal, 3 low.")] = 2

    def parameters(self, model: str | None) -> dict[str, Any]:
        """As a lab's verbs take them."""
        return {"model": model, "temperature": self.temperature, "max_tokens": self.max_tokens}


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

    results: list[RowAnswer]
    total_time_ms: float
    avg_latency_ms: float | None
    success_count: int
    error_count: int
    request_id: str


class JobAnswer(BaseModel):
    """A long job."""

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


class HealthAnswer(BaseModel):
    """Whether the service can serve."""

    status: Literal["ok", "unavailable"]
    circuit_breaker: Literal["closed", "open", "half_open"]
    targets: dict[str, str]
    queue_size: int
    in_flight: int
    reason: str | None = None
    version: str


def prompt_of(request: CompletionRequest) -> Prompt:
    """Read what is asked, for a complaint before anything is sent."""
    return Prompt.of(request.asked())
