"""What goes over the wire of the service's own state: its health and its figures."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic.config import JsonDict

_METRICS: JsonDict = {
    "circuit_breaker": {"openai:MODEL": "closed"},
    "queue_size": 0,
    "in_flight": 3,
    "concurrency": 32,
    "pending": 3,
    "job_prompts": 0,
    "requests": {"ok": 120, "error": 1},
    "errors": {"ServerError": 1},
    "retries": {"RateLimited": 4},
    "attempts": 125,
    "latency_ms": {"p50": 410.0, "p95": 900.0, "p99": 1210.0, "mean": 455.0},
    "rows_per_s": 2.0,
    "output_tokens_per_s": 120.0,
    "input_tokens": 1080,
    "output_tokens": 7200,
    "cost_usd": 0.0123,
    "last_errors": [{"at": 1.7e9, "error_type": "ServerError", "message": "HTTP 500"}],
}


class HealthAnswer(BaseModel):
    """Whether the service can serve."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "status": "ok",
                    "circuit_breaker": "closed",
                    "targets": {"openai:MODEL": "closed"},
                    "queue_size": 0,
                    "in_flight": 3,
                    "version": "0.1.0",
                }
            ]
        }
    )

    status: Literal["ok", "unavailable"]
    circuit_breaker: Annotated[
        Literal["closed", "open", "half_open"], Field(description="Of the target that fares best.")
    ]
    targets: Annotated[dict[str, str] | None, Field(description="Each target's breaker, for who has a key.")]
    queue_size: Annotated[int, Field(description="Calls in line.")]
    in_flight: Annotated[int, Field(description="Requests at the upstream provider.")]
    reason: Annotated[str | None, Field(description="Why it is not able to serve.")] = None
    version: str


class LastError(BaseModel):
    """A row that failed lately."""

    at: Annotated[float, Field(description="Unix time.")]
    error_type: str
    message: str


class MetricsAnswer(BaseModel):
    """How the service fares."""

    model_config = ConfigDict(json_schema_extra={"examples": [_METRICS]})

    circuit_breaker: Annotated[dict[str, str], Field(description="Of each target.")]
    queue_size: Annotated[int, Field(description="Calls in line.")]
    in_flight: Annotated[int, Field(description="Requests at the upstream provider.")]
    concurrency: Annotated[int | None, Field(description="Of them at most.")]
    pending: Annotated[int, Field(description="Prompts whose clients wait.")]
    job_prompts: Annotated[int, Field(description="Prompts of long jobs at work.")]
    requests: Annotated[dict[str, int], Field(description="Prompts settled, by status.")]
    errors: Annotated[dict[str, int], Field(description="Prompts failed, by class of error.")]
    retries: Annotated[dict[str, int], Field(description="Requests repeated, by class of the error before.")]
    attempts: Annotated[int, Field(description="Requests sent upstream.")]
    latency_ms: Annotated[dict[str, float | None], Field(description="p50, p95, p99 and mean of recent answers.")]
    rows_per_s: Annotated[float, Field(description="Prompts settled per second of the last minute.")]
    output_tokens_per_s: float
    input_tokens: int
    output_tokens: int
    cost_usd: float | None
    last_errors: list[LastError]
