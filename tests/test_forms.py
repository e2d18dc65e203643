"""In which form a model is asked for a schema: learned from refusals and from answers."""

from typing import Any, Literal

import httpx
import orjson
import pytest
import respx
from pydantic import BaseModel, Field

import llmlab
from llmlab.clock import run_virtual
from llmlab.errors import BadRequest, LLMError
from llmlab.providers.forms import Forms
from llmlab.sim.faults import Faults
from llmlab.sim.transport import Simulator
from llmlab.typed import typed
from tests.shapes import KINDS, LOOSE, NAMES

REFUSALS = [
    "Invalid parameter: 'response_format' of type 'json_schema' is not supported with this model.",
    "This model does not support response format `json_schema`.",
    "This response_format type is unavailable now",
    "output_config: Extra inputs are not permitted",
    "The provided JSON schema contains features not supported by xgrammar.",
    "'response_format.type' must be 'json_schema' or 'text'",
    "Structured outputs are not available for this model",
    "Unknown name \"additionalProperties\" at 'generation_config.response_schema': Cannot find field.",
]


@pytest.mark.parametrize("message", REFUSALS)
def test_a_refusal_of_the_form_is_told_from_others(message: str, capsys: pytest.CaptureFixture[str]) -> None:
    forms = Forms("openai", ("json_schema", "json_object"))
    assert type(forms.judge("m", "json_schema", BadRequest(message, status=400))).__name__ == "NoStructuredOutput"
    assert forms.of("m") == "json_object"
    assert forms.of("other") == "json_schema"
    forms.judge("m", "json_schema", BadRequest(message, status=400))
    assert forms.of("m") == "json_object", "those in flight are refused alike"
    forms.judge("m", "json_object", BadRequest(message, status=400))
    assert forms.of("m") == "instructions"
    assert capsys.readouterr().err.count("openai:m takes no") == 2, "each is said once"


@pytest.mark.parametrize(
    "error",
    [BadRequest("temperature must be at most 1"), llmlab.errors.ContextTooLong("response_format"), LLMError("x")],
)
def test_other_errors_stay_what_they_are(error: LLMError) -> None:
    forms = Forms("openai", ("json_schema",))
    assert forms.judge("m", "json_schema", error) is error
    assert forms.of("m") == "json_schema"


def test_a_server_that_ignores_the_form_is_found_out_after_three_answers() -> None:
    forms = Forms("vllm", ("json_schema", "json_object"))
    for _ in range(2):
        forms.listen("m", "json_schema", "Sure, I liked it.")
    assert forms.of("m") == "json_schema"
    forms.listen("m", "json_schema", "Sure, I liked it.")
    assert forms.of("m") == "json_object"
    forms.listen("n", "json_schema", "{}")
    for _ in range(9):
        forms.listen("n", "json_schema", "a slip")
    assert forms.of("n") == "json_schema", "who has obeyed once does know the field"


def test_a_form_counts_again_when_an_answer_comes_later_that_obeys_it(capsys: pytest.CaptureFixture[str]) -> None:
    forms = Forms("openai", ("json_schema", "json_object"))
    for _ in range(3):  # refusals are short, and arrive first
        forms.listen("m", "json_schema", "I cannot help with that.")
    assert forms.of("m") == "json_object"
    forms.listen("m", "json_object", '{"from": "one asked meanwhile"}')
    forms.listen("m", "json_schema", 'Sure: {"prose": "around it"}')
    assert forms.of("m") == "json_object"
    forms.listen("m", "json_schema", ' {"asked": "before"}')
    assert forms.of("m") == "json_schema"
    assert "after all" in capsys.readouterr().err


def test_a_server_that_ignores_the_form_is_found_out_one_row_at_a_time_too() -> None:
    """Asked again in words it answers in JSON, which says nothing of the form."""
    sim = Simulator(structured="ignored", seed=1)
    lab = llmlab.Lab("openai:m", transport=sim, concurrency=1, progress=False, seed=1)
    out = run_virtual(lambda: _awaited(lab.run_many([f"Review {n}" for n in range(20)], schema=Review)))
    assert (out.status == "ok").all()
    assert sim.requests <= 20 + 6


async def _awaited(job: Any) -> Any:
    return await job


class Review(BaseModel):
    label: Literal["good", "bad"]
    stars: int = Field(ge=1, le=5)


def judged(structured: Any, provider: str, **options: Any) -> tuple[Any, Any, Simulator]:
    sim = Simulator(structured=structured, seed=1, **options)
    job = llmlab.Lab(f"{provider}:m", transport=sim).run_many([f"Review {n}" for n in range(40)], schema=Review)

    async def main() -> Any:
        return await job

    return run_virtual(main), job, sim


@pytest.mark.parametrize("provider", ["openai", "anthropic"])
@pytest.mark.parametrize("structured", ["json_schema", "json_object", "none", "ignored"])
@pytest.mark.parametrize("stream", [False, True])
def test_any_server_gives_typed_rows_in_the_end(
    provider: str, structured: str, stream: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    sim = Simulator(structured=structured, seed=1)  # type: ignore[arg-type]
    lab = llmlab.Lab(f"{provider}:m", transport=sim, concurrency=4)
    job = lab.run_many([f"Review {n}" for n in range(40)], schema=Review, stream=stream)

    async def main() -> Any:
        return await job

    out = run_virtual(main)
    assert (out.status == "ok").all()
    assert out["stars"].between(1, 5).all()
    assert set(out["label"]) == {"good", "bad"}
    assert sim.requests == out.attempts.sum() == len(job.attempts)
    needless = (job.attempts.status == "error").sum() + (job.attempts.kind == "reask").sum()
    assert needless <= {"json_schema": 0, "json_object": 4, "none": 8, "ignored": 12}[structured]
    said = capsys.readouterr().err.count("takes no")
    steps = {"json_schema": 0, "json_object": 1, "none": 2, "ignored": 1}
    assert said == (min(1, steps[structured]) if provider == "anthropic" else steps[structured])


@pytest.mark.parametrize("provider", ["openai", "anthropic"])
@pytest.mark.parametrize("kind", [*KINDS, *LOOSE], ids=[*NAMES, *map(str, LOOSE)])
def test_every_kind_of_answer_comes_in_form_at_once(provider: str, kind: Any) -> None:
    sim = Simulator(seed=2)
    job = llmlab.Lab(f"{provider}:m", transport=sim).run_many([f"Row {n}" for n in range(5)], schema=kind)

    async def main() -> Any:
        return await job

    out = run_virtual(main)
    assert (out.status == "ok").all()
    assert sim.requests == 5
    assert out.columns.tolist()[-len(typed(kind).columns) :] == [column.name for column in typed(kind).columns]


def test_a_400_of_another_kind_is_the_rows_error() -> None:
    out, _, sim = judged("json_schema", "openai", faults=Faults.only("bad_request"))
    assert set(out.error_type) == {"BadRequest"}
    assert sim.requests == 40


@respx.mock
def test_a_real_server_of_old_is_asked_in_json_mode_with_the_schema_in_words() -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        sent = orjson.loads(request.content)
        if sent["response_format"]["type"] == "json_schema":
            error = {"message": REFUSALS[0], "type": "invalid_request_error", "param": "response_format", "code": None}
            return httpx.Response(400, json={"error": error})
        assert "JSON schema" in sent["messages"][-1]["content"]
        message = {"role": "assistant", "content": '{"label": "good", "stars": 3}'}
        return httpx.Response(200, json={"model": "m", "choices": [{"message": message, "finish_reason": "stop"}]})

    route = respx.post("https://api.openai.com/v1/chat/completions").mock(side_effect=answer)
    lab = llmlab.Lab("openai:m", api_key="k", transport=httpx.AsyncHTTPTransport())
    reply = lab.run("How was it?", schema=Review).result()
    assert reply.parsed.stars == 3
    assert route.call_count == 2
    assert lab.run("And this?", schema=Review).result().parsed.stars == 3
    assert route.call_count == 3, "it is not tried again"
