"""OpenTelemetry: spans of rows and requests, figures by the GenAI conventions, and no texts unless asked for."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

import llmlab
from llmlab import otel
from llmlab.clock import run_virtual
from llmlab.service import create_app
from llmlab.sim import Faults, Physics, Simulator

SECRET = "a thought of mine"
SECOND = Physics(ttft=1.0, itl=0.1, jitter=0.0, rtt=0.0)


@dataclass
class Heard:
    """What was exported."""

    spans: TracerProvider = field(default_factory=TracerProvider)
    kept: InMemorySpanExporter = field(default_factory=InMemorySpanExporter)
    reader: InMemoryMetricReader = field(default_factory=InMemoryMetricReader)

    def __post_init__(self) -> None:
        self.spans.add_span_processor(SimpleSpanProcessor(self.kept))
        self.figures = MeterProvider([self.reader])

    def by_kind(self, kind: SpanKind) -> list[ReadableSpan]:
        return [span for span in self.kept.get_finished_spans() if span.kind is kind]

    def points(self, name: str) -> list[Any]:
        data = self.reader.get_metrics_data()
        assert data is not None
        found = [metric for each in data.resource_metrics for scope in each.scope_metrics for metric in scope.metrics]
        return [point for metric in found if metric.name == name for point in metric.data.data_points]


@pytest.fixture
def heard() -> Iterator[Heard]:
    heard = Heard()
    yield heard
    heard.spans.shutdown()
    heard.figures.shutdown()


def run(heard: Heard, ask: Callable[[llmlab.Lab], Any], *, faults: str = "", content: bool = False, **more: Any) -> Any:
    async def main() -> Any:
        simulator = Simulator(physics=SECOND, faults=Faults.parse(faults), say=lambda _: "a word")
        lab = llmlab.Lab("openai:m", api_key="sk-secret", transport=simulator, progress=False, seed=0, **more)
        otel.instrument(lab, content=content, tracer_provider=heard.spans, meter_provider=heard.figures)
        async with lab:
            return await ask(lab)

    return run_virtual(main)


def test_a_row_and_its_requests_are_spans_with_the_times_they_took(heard: Heard) -> None:
    out = run(heard, lambda lab: lab.run_many([SECRET, SECRET + "!"], temperature=0.5, max_tokens=9))
    rows, requests = heard.by_kind(SpanKind.INTERNAL), heard.by_kind(SpanKind.CLIENT)
    assert [row.name for row in rows] == ["llmlab run_many"] * 2
    assert [request.name for request in requests] == ["chat m"] * 2
    for request in requests:
        assert request.parent is not None
        row = next(row for row in rows if row.context.span_id == request.parent.span_id)
        assert request.attributes is not None
        assert row.attributes is not None
        index = row.attributes["llmlab.row"]
        assert request.end_time is not None
        assert request.start_time is not None
        assert (request.end_time - request.start_time) / 1e6 == pytest.approx(out.latency_ms[index], abs=1)
        assert {name: request.attributes[name] for name in request.attributes if name.startswith("gen_ai.")} == {
            "gen_ai.operation.name": "chat",
            "gen_ai.provider.name": "openai",
            "gen_ai.request.model": "m",
            "gen_ai.request.temperature": 0.5,
            "gen_ai.request.max_tokens": 9,
            "gen_ai.response.model": "m",
            "gen_ai.response.id": out.request_id[index],
            "gen_ai.response.finish_reasons": ("stop",),
            "gen_ai.usage.input_tokens": out.input_tokens[index],
            "gen_ai.usage.output_tokens": out.output_tokens[index],
            "gen_ai.usage.cache_read.input_tokens": 0,
            "gen_ai.usage.cache_creation.input_tokens": 0,
            "gen_ai.usage.reasoning.output_tokens": 0,
        }
        assert request.attributes["server.address"] == "api.openai.com"
        assert request.attributes["server.port"] == 443


@pytest.mark.parametrize("content", [False, True])
def test_texts_are_told_only_if_asked_for_and_keys_never(heard: Heard, content: bool) -> None:
    run(heard, lambda lab: lab.run_many([SECRET]), content=content)
    told = "".join(span.to_json() for span in heard.kept.get_finished_spans())
    assert (SECRET in told) is content
    assert ("a word" in told) is content
    assert "sk-secret" not in told
    if content:
        attributes = heard.by_kind(SpanKind.CLIENT)[0].attributes
        assert attributes is not None
        said = json.loads(str(attributes["gen_ai.output.messages"]))
        parts = [{"type": "text", "content": "a word"}]
        assert said == [{"role": "assistant", "parts": parts, "finish_reason": "stop"}]


def test_requests_that_fail_are_spans_of_their_own_and_counted_by_their_error(heard: Heard) -> None:
    out = run(heard, lambda lab: lab.run_many([f"row {n}" for n in range(30)]), faults="server_error:0.4")
    requests = heard.by_kind(SpanKind.CLIENT)
    assert len(requests) == out.attempts.sum() > 30
    failed = [span for span in requests if span.status.status_code is StatusCode.ERROR]
    assert {span.attributes["error.type"] for span in failed if span.attributes} == {"ServerError"}
    assert {span.status.description for span in failed} == {None}
    kinds = [span.attributes["llmlab.kind"] for span in requests if span.attributes]
    assert kinds.count("retry") == len(failed) - (out.status == "error").sum()
    durations = {
        point.attributes.get("error.type"): point for point in heard.points("gen_ai.client.operation.duration")
    }
    assert durations["ServerError"].count == len(failed)
    assert durations[None].count == len(requests) - len(failed)
    assert durations[None].explicit_bounds == otel.SECONDS
    assert durations[None].sum == pytest.approx(out.latency_ms.sum() / 1000, rel=1e-6)
    tokens = {point.attributes["gen_ai.token.type"]: point for point in heard.points("gen_ai.client.token.usage")}
    assert tokens["output"].explicit_bounds == otel.TOKENS
    assert tokens["output"].sum == out.output_tokens.sum()
    assert tokens["input"].attributes["gen_ai.provider.name"] == "openai"
    rows = {point.attributes["llmlab.status"]: point.value for point in heard.points("llmlab.rows")}
    assert rows == out.status.value_counts().to_dict()


def test_a_stream_has_a_time_to_its_first_chunk(heard: Heard) -> None:
    async def read(lab: llmlab.Lab) -> None:
        async for _ in lab.stream("hello"):
            pass

    run(heard, read)
    (point,) = heard.points("gen_ai.client.operation.time_to_first_chunk")
    assert (point.count, point.sum) == (1, pytest.approx(1.0, abs=0.2))


def test_rows_of_one_request_count_its_time_once(heard: Heard) -> None:
    run(heard, lambda lab: lab.run_many([f"row {n}" for n in range(8)], pack=4))
    assert sum(point.count for point in heard.points("gen_ai.client.operation.duration")) <= 2 + 8
    packed = [each for each in heard.by_kind(SpanKind.CLIENT) if (each.attributes or {}).get("llmlab.pack_rows") == 4]
    assert len(packed) == 8


def test_rows_belong_to_the_span_that_was_current_when_they_were_asked_for(heard: Heard) -> None:
    async def ask(lab: llmlab.Lab) -> None:
        with heard.spans.get_tracer("mine").start_as_current_span("my notebook"):
            job = lab.run_many(["hello"])
        await job

    run(heard, ask)
    mine = next(span for span in heard.kept.get_finished_spans() if span.name == "my notebook")
    (row,) = [span for span in heard.by_kind(SpanKind.INTERNAL) if span is not mine]
    assert row.parent is not None
    assert row.parent.span_id == mine.context.span_id


def test_what_a_service_asks_belongs_to_its_clients_trace(heard: Heard) -> None:
    trace_id = "0af7651916cd43dd8448eb211c80319c"

    async def ask(lab: llmlab.Lab) -> None:
        app = otel.Continuing(create_app(lab))
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
            headers = {"traceparent": f"00-{trace_id}-b7ad6b7169203331-01"}
            answer = await client.post("/v1/completions", json={"prompt": SECRET}, headers=headers)
            assert answer.status_code == 200

    run(heard, ask)
    assert {f"{span.context.trace_id:032x}" for span in heard.kept.get_finished_spans()} == {trace_id}


def test_it_ends_when_it_is_told_to(heard: Heard) -> None:
    async def ask(lab: llmlab.Lab) -> None:
        stop = otel.instrument(lab, tracer_provider=heard.spans, meter_provider=heard.figures)
        stop()
        await lab.run_many(["hello"])

    run(heard, ask)
    assert len(heard.by_kind(SpanKind.CLIENT)) == 1, "of the first one, which goes on"
