"""OpenTelemetry for a lab: what happens to each row as spans, and the figures of its requests as histograms.

    stop = llmlab.otel.instrument(lab)      # by the process's own providers, as opentelemetry-instrument sets them up

    row        a span `llmlab run_many`, under whatever span was current when the job began: its status and waits
    attempt    under it a span `chat MODEL` for each request, with the attributes of the GenAI conventions (`gen_ai.*`)
    metrics    gen_ai.client.operation.duration, .time_to_first_chunk and gen_ai.client.token.usage, of each request;
               llmlab.rows, by status

Names and bucket bounds are those of the OpenTelemetry semantic conventions for generative AI, status "development", of
November 2026 (github.com/open-telemetry/semantic-conventions-genai). Texts of prompts and answers are left out unless
asked for, and so are the words of errors, which may quote them.

Spans are written when a row is settled, with the times at which things happened.
"""

import contextlib
import json
from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx

try:
    from opentelemetry import context, metrics, propagate, trace
    from opentelemetry.trace import SpanKind, Status, StatusCode
except ImportError as missing:
    raise ImportError(f'llmlab.otel needs {missing.name}: pip install "llmlab[otel]"') from missing

from llmlab.clock import wall_offset
from llmlab.core import Core
from llmlab.events import Attempted, Finished
from llmlab.job import Job
from llmlab.types import Outcome, Prompt, Reply
from llmlab.version import __version__

SECONDS = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92)
"""Bucket bounds for times, as the conventions want them."""
TOKENS = tuple(4**power for power in range(14))
"""Bucket bounds for tokens, likewise: 1 to 67,108,864."""
PACKS = 64
"""Requests of several rows that are remembered, so that each is measured once."""
NAMES = {
    "azure": "azure.ai.openai",
    "gemini": "gcp.gemini",
    "mistral": "mistral_ai",
    "xai": "x_ai",
}
"""Providers that the conventions know by another name."""

Attributes = dict[str, Any]


def instrument(
    lab: Core,
    *,
    content: bool = False,
    tracer_provider: trace.TracerProvider | None = None,
    meter_provider: metrics.MeterProvider | None = None,
) -> Callable[[], None]:
    """Trace and measure all jobs of a lab from now on.

    Args:
        lab: The lab; its `member` labs are seen, too.
        content: Put the texts of prompts and answers into spans, and what errors say.
        tracer_provider: Makes spans. None: the process's own.
        meter_provider: Takes the figures. None: likewise.

    Returns:
        A function that ends it.
    """
    tracer = trace.get_tracer("llmlab", __version__, tracer_provider)
    figures = _Figures(metrics.get_meter("llmlab", __version__, meter_provider))
    place = _place_of(lab)
    return lab.watch(lambda job: _Follower(tracer, figures, place, job.name, content=content).follow(job))


def _place_of(lab: Core) -> tuple[str, Attributes]:
    """A lab's own target, and where it is."""
    target = f"{lab.target.provider.name}:{lab.target.provider.model}"
    url = httpx.URL(lab.target.provider.shown_url)
    port = url.port or {"https": 443, "http": 80}.get(url.scheme)
    known = bool(url.host) and port is not None and lab.target.provider.name != "sim"
    return target, {"server.address": url.host, "server.port": port} if known else {}


class _Figures:
    """The instruments."""

    def __init__(self, meter: metrics.Meter) -> None:
        def histogram(name: str, unit: str, words: str, bounds: tuple[float, ...]) -> metrics.Histogram:
            return meter.create_histogram(name, unit, words, explicit_bucket_boundaries_advisory=bounds)

        self.duration = histogram("gen_ai.client.operation.duration", "s", "GenAI operation duration.", SECONDS)
        self.first = histogram(
            "gen_ai.client.operation.time_to_first_chunk", "s", "Time to receive the first chunk.", SECONDS
        )
        self.tokens = histogram("gen_ai.client.token.usage", "{token}", "Number of tokens used.", TOKENS)
        self.rows = meter.create_counter("llmlab.rows", "{row}", "Rows settled.")


@dataclass
class _Follower:
    """Follows one job."""

    tracer: trace.Tracer
    figures: _Figures
    place: tuple[str, Attributes]
    name: str
    content: bool = field(kw_only=True)
    parent: context.Context = field(default_factory=context.get_current)
    attempts: dict[int, list[Attempted]] = field(default_factory=lambda: defaultdict(list))
    packs: deque[tuple[str, float, float]] = field(default_factory=lambda: deque(maxlen=PACKS))

    def follow(self, job: Job[Any]) -> None:
        job.bus.subscribe(lambda event: self.attempts[event.index].append(event), Attempted)
        job.bus.subscribe(lambda event: self.settled(event.outcome), Finished)

    def settled(self, outcome: Outcome) -> None:
        """Tell of a row, and of its requests."""
        row = self.tracer.start_span(
            f"llmlab {self.name}", self.parent, SpanKind.INTERNAL, start_time=_ns(outcome.started_at)
        )
        row.set_attributes(_of_row(outcome))
        if outcome.error is not None and outcome.status == "error":
            self._fail(row, outcome.error)
        inside, offset = trace.set_span_in_context(row, self.parent), wall_offset()
        for event in self.attempts.pop(outcome.index, ()):
            self._attempted(event, outcome, inside, offset)
        row.end(_ns(outcome.finished_at))
        kind = {} if outcome.status != "error" else {"error.type": type(outcome.error).__name__}
        self.figures.rows.add(1, {"llmlab.status": outcome.status, **kind})

    def _attempted(self, event: Attempted, outcome: Outcome, inside: context.Context, offset: float) -> None:
        reply = outcome.reply if event.error is None else None
        asked = _of_request(event, outcome.prompt, *self.place)
        self._measure(event, asked, reply)
        span = self.tracer.start_span(
            f"chat {asked['gen_ai.request.model']}", inside, SpanKind.CLIENT, start_time=_ns(event.sent + offset)
        )
        span.set_attributes({**asked, **_sampling(outcome.prompt), **_of_attempt(event), **_of_reply(reply)})
        if self.content and outcome.prompt is not None:
            span.set_attributes(_texts(outcome.prompt, reply))
        if event.error is not None:
            self._fail(span, event.error)
        span.end(_ns(event.ended + offset))

    def _measure(self, event: Attempted, asked: Attributes, reply: Reply | None) -> None:
        of = asked if reply is None else {**asked, "gen_ai.response.model": reply.model}
        request = (event.target, event.sent, event.ended)
        if event.rows == 1 or request not in self.packs:  # rows that share a request share its time
            failed = {} if event.error is None else {"error.type": type(event.error).__name__}
            self.figures.duration.record(event.ended - event.sent, {**of, **failed})
            if event.rows > 1:
                self.packs.append(request)
        if event.ttft_s is not None:
            self.figures.first.record(event.ttft_s, of)
        if event.usage is not None:
            self.figures.tokens.record(event.usage.input_tokens, {**of, "gen_ai.token.type": "input"})
            self.figures.tokens.record(event.usage.output_tokens, {**of, "gen_ai.token.type": "output"})

    def _fail(self, span: trace.Span, error: BaseException) -> None:
        span.set_attribute("error.type", type(error).__name__)
        span.set_status(Status(StatusCode.ERROR, str(error) if self.content else None))


def _ns(seconds: float) -> int:
    return int(seconds * 1e9)


def _of_row(outcome: Outcome) -> Attributes:
    return {
        "llmlab.row": outcome.index,
        "llmlab.status": outcome.status,
        "llmlab.attempts": outcome.attempts,
        "llmlab.queue_s": outcome.queue_s,
        "llmlab.wait_s": outcome.wait_s,
        "llmlab.cache_hit": outcome.reply is not None and outcome.reply.cache_hit,
    }


def _of_request(event: Attempted, prompt: Prompt | None, own: str, where: Attributes) -> Attributes:
    """What spans and figures of a request have in common."""
    provider, _, model = event.target.partition(":")
    if event.target == own and prompt is not None and prompt.model is not None:
        model = prompt.model
    return {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": NAMES.get(provider, provider),
        "gen_ai.request.model": model,
        **(where if event.target == own else {}),
    }


def _sampling(prompt: Prompt | None) -> Attributes:
    if prompt is None:
        return {}
    given = {
        "gen_ai.request.temperature": prompt.temperature,
        "gen_ai.request.max_tokens": prompt.max_tokens,
        "gen_ai.output.type": None if prompt.schema is None else "json",
    }
    return {name: value for name, value in given.items() if value is not None}


def _of_attempt(event: Attempted) -> Attributes:
    found: Attributes = {"llmlab.attempt": event.attempt, "llmlab.kind": event.kind}
    if event.rows > 1:
        found["llmlab.pack_rows"] = event.rows
    if event.ttft_s is not None:
        found |= {"gen_ai.request.stream": True, "gen_ai.response.time_to_first_chunk": event.ttft_s}
    if event.usage is not None:
        found |= {
            "gen_ai.usage.input_tokens": event.usage.input_tokens,
            "gen_ai.usage.output_tokens": event.usage.output_tokens,
            "gen_ai.usage.cache_read.input_tokens": event.usage.cached_tokens,
            "gen_ai.usage.cache_creation.input_tokens": event.usage.cache_write_tokens,
            "gen_ai.usage.reasoning.output_tokens": event.usage.reasoning_tokens,
        }
    if event.cost_usd is not None:
        found["llmlab.cost_usd"] = event.cost_usd
    return found


def _of_reply(reply: Reply | None) -> Attributes:
    if reply is None:
        return {}
    found: Attributes = {"gen_ai.response.model": reply.model, "gen_ai.response.finish_reasons": [reply.finish_reason]}
    return found if reply.request_id is None else {**found, "gen_ai.response.id": reply.request_id}


def _texts(prompt: Prompt, reply: Reply | None) -> Attributes:
    asked = [{"role": each.role, "parts": [{"type": "text", "content": each.text}]} for each in prompt.messages]
    found = {"gen_ai.input.messages": json.dumps(asked)}
    if reply is not None:
        parts = [{"type": "text", "content": reply.content}]
        said = [{"role": "assistant", "parts": parts, "finish_reason": reply.finish_reason}]
        found["gen_ai.output.messages"] = json.dumps(said)
    return found


class Continuing:
    """ASGI middleware: what a request begins belongs to the trace that its `traceparent` header names.

    Args:
        app: What is called.
    """

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Take up the trace of a request."""
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope.get("headers", ())}
        token = context.attach(propagate.extract(headers))
        try:
            await self._app(scope, receive, send)
        finally:
            context.detach(token)


@contextlib.contextmanager
def exporting() -> Iterator[tuple[trace.TracerProvider, metrics.MeterProvider]]:
    """Providers that send to an OTLP collector while the block runs, as the OTEL_* variables say.

    Raises:
        ImportError: the SDK or its exporter is not installed.
    """
    try:
        from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter  # noqa: PLC0415
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # noqa: PLC0415
        from opentelemetry.sdk.metrics import MeterProvider  # noqa: PLC0415
        from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader  # noqa: PLC0415
        from opentelemetry.sdk.resources import Resource  # noqa: PLC0415
        from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
        from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415
    except ImportError as missing:
        raise ImportError(f'sending telemetry needs {missing.name}: pip install "llmlab[otel]"') from missing
    resource = Resource.create({"service.name": "llmlab"}).merge(Resource.create())
    spans = TracerProvider(resource=resource)
    spans.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    figures = MeterProvider([PeriodicExportingMetricReader(OTLPMetricExporter())], resource=resource)
    try:
        yield spans, figures
    finally:
        spans.shutdown()
        figures.shutdown()
