"""`GET /v1/health`, `/v1/metrics`, `/v1/metrics/stream` and Prometheus' `/metrics`: how the service fares."""

import asyncio
from collections.abc import AsyncGenerator, Iterator, Mapping
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from llmlab.service.desk import Desk
from llmlab.service.figures import HealthAnswer, MetricsAnswer
from llmlab.service.shapes import FAILURES, streamed
from llmlab.service.sse import EventStream, event
from llmlab.version import __version__

SEEN: dict[int | str, dict[str, Any]] = {status: FAILURES[status] for status in (401, 403)}
router = APIRouter(tags=["state"])

EVERY = 1.0
"""Seconds between two events of the metrics' stream."""
_RANK = {"closed": 0, "half_open": 1, "open": 2}


@router.get(
    "/v1/health",
    response_model=HealthAnswer,
    responses={403: FAILURES[403], 503: {"model": HealthAnswer, "description": "Not able to serve."}},
)
async def health(request: Request) -> Any:
    """Whether the service can serve: 503 if it is about to end, or no upstream provider is left.

    Needs no key; who the upstream providers are is told to those who have one.
    """
    desk: Desk = request.state.desk
    breakers = desk.breakers
    best = min(breakers.values(), key=lambda state: _RANK.get(state, 0), default="closed")
    reason = "shutting down" if desk.draining else "every upstream provider is down" if best == "open" else None
    answer = HealthAnswer(
        status="ok" if reason is None else "unavailable",
        circuit_breaker=best,  # type: ignore[arg-type]
        targets=None if request.state.client is None else breakers,
        queue_size=desk.queued,
        in_flight=desk.in_flight,
        reason=reason,
        version=__version__,
    )
    return JSONResponse(answer.model_dump(), 200 if reason is None else 503)


@router.get("/v1/metrics", response_model=MetricsAnswer, responses=SEEN)
async def metrics(request: Request) -> Any:
    """Counts since the service began, and how it fares now."""
    return JSONResponse(snapshot(request.state.desk))


@router.get(
    "/v1/metrics/stream",
    response_class=Response,
    responses={
        200: streamed("What /v1/metrics answers, once a second.", 'data: {"queue_size":0,"in_flight":3}\n\n'),
        **SEEN,
    },
)
async def metrics_stream(request: Request) -> Response:
    """The same as server-sent events, once a second."""
    desk: Desk = request.state.desk

    async def events() -> AsyncGenerator[bytes, None]:
        while True:
            yield event(snapshot(desk))
            await asyncio.sleep(EVERY)

    return EventStream(events(), desk, ping=True)


@router.get(
    "/metrics",
    response_class=Response,
    responses={
        200: {
            "description": "Prometheus' text format.",
            "content": {
                "text/plain": {"schema": {"type": "string"}, "example": 'llmlab_rows_total{status="ok"} 3.0\n'}
            },
        },
        **SEEN,
    },
)
async def prometheus(request: Request) -> Response:
    """The same for Prometheus."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Collector(request.state.desk))
    return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)


def snapshot(desk: Desk) -> dict[str, Any]:
    """All that the metrics say, as JSON."""
    found, now = desk.metrics, asyncio.get_running_loop().time()
    rows_per_s, tokens_per_s = found.rates(now)
    return {
        "circuit_breaker": desk.breakers,
        "queue_size": desk.queued,
        "in_flight": desk.in_flight,
        "concurrency": desk.lab.concurrency,
        "pending": desk.pending,
        "job_prompts": desk.job_prompts.used,
        "requests": dict(found.rows),
        "errors": dict(found.errors),
        "retries": dict(found.retries),
        "attempts": sum(found.attempts.values()),
        "latency_ms": found.percentiles_ms(),
        "rows_per_s": rows_per_s,
        "output_tokens_per_s": tokens_per_s,
        "input_tokens": found.input_tokens,
        "output_tokens": found.output_tokens,
        "cost_usd": found.cost_usd,
        "last_errors": list(found.last_errors),
    }


class _Collector:
    """Makes Prometheus' families of what is counted anyway."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    def collect(self) -> Iterator[Metric]:
        """All families."""
        found = self._desk.metrics
        yield _counter("llmlab_rows", "Rows settled.", ["status"], {(k,): v for k, v in found.rows.items()})
        yield _counter("llmlab_errors", "Rows failed.", ["error_type"], {(k,): v for k, v in found.errors.items()})
        yield _counter("llmlab_attempts", "Requests sent.", ["target", "outcome"], found.attempts)
        yield _counter(
            "llmlab_retries", "Requests repeated.", ["error_type"], {(k,): v for k, v in found.retries.items()}
        )
        yield _counter(
            "llmlab_http_requests",
            "Requests answered.",
            ["route", "status"],
            {(route, str(status)): count for (route, status), count in self._desk.answered.items()},
        )
        tokens = {("input",): found.input_tokens, ("output",): found.output_tokens}
        yield _counter("llmlab_tokens", "Tokens used.", ["direction"], tokens)
        yield _counter("llmlab_cost_usd", "Dollars spent, where prices are known.", [], {(): found.cost_usd or 0.0})
        yield HistogramMetricFamily(
            "llmlab_latency_seconds",
            "Latency of answers.",
            buckets=found.latency.cumulative(),
            sum_value=found.latency.total,
        )
        yield GaugeMetricFamily("llmlab_queue_size", "Calls in line.", value=self._desk.queued)
        yield GaugeMetricFamily("llmlab_in_flight", "Requests in flight.", value=self._desk.in_flight)
        yield GaugeMetricFamily("llmlab_pending", "Prompts whose clients wait.", value=self._desk.pending)
        yield GaugeMetricFamily("llmlab_job_prompts", "Prompts of long jobs.", value=self._desk.job_prompts.used)
        breakers = GaugeMetricFamily("llmlab_breaker_open", "1: open, 0.5: half open.", labels=["target"])
        for target, state in self._desk.breakers.items():
            breakers.add_metric([target], _RANK.get(state, 0) / 2)
        yield breakers


def _counter(name: str, words: str, labels: list[str], values: Mapping[Any, float]) -> Metric:
    family = CounterMetricFamily(name, words, labels=labels)
    for key, value in values.items():
        family.add_metric(list(key), value)
    return family
