"""How providers are held to a schema: what they are sent, and what is learned when they refuse or ignore it."""

import datetime as dt
import enum
import random
from dataclasses import dataclass
from typing import Any, Literal

import anthropic
import httpx
import orjson
import pytest
import respx
from openai.lib._pydantic import to_strict_json_schema
from pydantic import BaseModel, Field

import llmlab
from llmlab.clock import run_virtual
from llmlab.errors import BadRequest, LLMError
from llmlab.providers.anthropic import STRICT as ANTHROPIC
from llmlab.providers.anthropic import Anthropic
from llmlab.providers.forms import Forms
from llmlab.providers.openai import STRICT as OPENAI
from llmlab.providers.openai import OpenAI
from llmlab.providers.presets import PRESETS
from llmlab.providers.structured import strict, told
from llmlab.sim import formed, strictness
from llmlab.sim.faults import Faults
from llmlab.sim.transport import Simulator
from llmlab.typed import typed
from llmlab.types import Message, Prompt, Reply, Schema


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


@dataclass
class Point:
    x: int
    y: float = 0.0


class Inner(BaseModel):
    """Something inside."""

    name: str = Field(description="its name")
    colours: list[Colour] = []


class Node(BaseModel):
    name: str
    below: "list[Node]" = []


class Rich(BaseModel):
    label: Literal["good", "bad"]
    stars: int = Field(ge=1, le=5)
    share: float | None = Field(None, gt=0, lt=1)
    inner: Inner = Field(description="the thing inside")
    when: dt.date
    at: dt.datetime | None = None
    either: int | Point = 3
    default: str = "none"
    code: str = Field("abc", min_length=2, max_length=400)


KINDS: list[Any] = [
    Rich, Inner, Node, Point, Colour, Literal["x", "y"], int, float, bool, str, list[int], int | None, list[Inner],
    Point | Inner, dt.date, Inner | None,
]  # fmt: skip
LOOSE: list[Any] = [dict[str, int], tuple[int, str], Any, dict[str, Any]]
NAMES = [str(kind) for kind in KINDS]


def schema_of(kind: Any) -> Schema:
    return typed(kind).schema


def body(codec: Any, prompt: Prompt, **options: Any) -> dict[str, Any]:
    sent: dict[str, Any] = orjson.loads(codec.encode(prompt, "m", stream=False, **options))
    return sent


def asking(kind: Any, text: Any = "How was it?") -> Prompt:
    return Prompt(Prompt.of(text).messages, schema=schema_of(kind))


# -- the part of JSON schema that providers take ------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS, ids=NAMES)
def test_the_simulated_providers_refuse_nothing_of_what_they_are_sent(kind: Any) -> None:
    for_openai, for_anthropic = strict(schema_of(kind), OPENAI), strict(schema_of(kind), ANTHROPIC)
    assert for_openai is not None
    assert for_anthropic is not None
    assert strictness.openai(for_openai) is None
    assert strictness.anthropic(for_anthropic) is None


@pytest.mark.parametrize("kind", KINDS, ids=NAMES)
@pytest.mark.parametrize("subset", [OPENAI, ANTHROPIC], ids=["openai", "anthropic"])
def test_whatever_fits_what_is_sent_fits_what_was_asked_for(kind: Any, subset: Any) -> None:
    wanted = typed(kind)
    sent = strict(wanted.schema, subset)
    assert sent is not None
    for seed in range(60):
        value = formed.instance(sent, random.Random(seed))
        wanted.read(Reply(orjson.dumps(value).decode(), "stop", "sim", "m"))


@pytest.mark.parametrize("kind", [Rich, Inner, Node], ids=["Rich", "Inner", "Node"])
def test_answers_to_the_official_sdks_schema_fit_and_theirs_fit_ours(kind: type[BaseModel]) -> None:
    """OpenAI's SDK keeps what its API refuses now and then (defaults, lengths); the shape is the same."""
    official, ours = to_strict_json_schema(kind), strict(schema_of(kind), OPENAI)
    assert ours is not None
    root = official.get("properties") or official["$defs"][kind.__name__]["properties"]
    assert list(ours["properties"]) == list(root) == ours["required"]
    for seed in range(40):
        wanted = typed(kind)
        wanted.read(Reply(orjson.dumps(formed.instance(official, random.Random(seed))).decode(), "stop", "sim", "m"))


@pytest.mark.parametrize("kind", [Inner, Node, Rich], ids=["Inner", "Node", "Rich"])
def test_anthropics_schema_is_what_its_sdk_makes_of_the_type(kind: type[BaseModel]) -> None:
    theirs = anthropic.transform_schema(kind)
    ours = strict(schema_of(kind), ANTHROPIC)
    assert ours is not None
    root = theirs if "properties" in theirs else theirs["$defs"][kind.__name__]
    assert set(ours["properties"]) == set(root["properties"])
    assert ours.get("required", []) == root.get("required", [])
    assert ours["additionalProperties"] is root["additionalProperties"] is False


@pytest.mark.parametrize("kind", LOOSE, ids=[str(kind) for kind in LOOSE])
def test_what_cannot_be_strict_is_asked_for_as_it_is(kind: Any) -> None:
    assert strict(schema_of(kind), OPENAI) is None
    form = body(OpenAI(), asking(kind))["response_format"]["json_schema"]
    assert form["strict"] is False
    assert form["schema"] == orjson.loads(schema_of(kind).text)
    sent = body(Anthropic(), asking(kind))
    assert "output_config" not in sent, "Anthropic knows no loose form"
    assert "JSON schema" in sent["messages"][0]["content"]


def test_what_may_be_left_out_may_be_null_for_openai_only() -> None:
    for_openai, for_anthropic = strict(schema_of(Point), OPENAI), strict(schema_of(Point), ANTHROPIC)
    assert for_openai is not None
    assert for_anthropic is not None
    assert for_openai["properties"]["y"] == {"anyOf": [{"type": "number"}, {"type": "null"}]}
    assert for_openai["required"] == ["x", "y"]
    assert for_anthropic["properties"]["y"] == {"type": "number"}
    assert for_anthropic["required"] == ["x"]
    assert typed(Point).read(Reply('{"x": 1, "y": null}', "stop", "sim", "m")).parsed == Point(1)


def test_what_a_dialect_does_not_take_is_said_in_words() -> None:
    for_openai, for_anthropic = strict(schema_of(Rich), OPENAI), strict(schema_of(Rich), ANTHROPIC)
    assert for_openai is not None
    assert for_anthropic is not None
    assert for_openai["properties"]["stars"] == {"type": "integer", "minimum": 1, "maximum": 5}
    assert for_anthropic["properties"]["stars"] == {"type": "integer", "description": "(maximum: 5, minimum: 1)"}
    assert "minLength: 2" in for_openai["properties"]["code"]["anyOf"][0].get("description", "") + str(
        for_openai["properties"]["code"].get("description", "")
    )


def test_a_raw_json_schema_is_taken_likewise() -> None:
    raw = {
        "type": "object",
        "properties": {"a": {"oneOf": [{"type": "integer"}, {"type": "string", "pattern": "^(?=x)"}]},
                       "b": {"allOf": [{"type": "boolean"}], "default": True}},
    }  # fmt: skip
    sent = strict(schema_of(raw), OPENAI)
    assert sent is not None
    assert strictness.openai(sent) is None
    assert sent["properties"]["b"] == {"anyOf": [{"type": "boolean"}, {"type": "null"}]}
    assert "(?=x)" in sent["properties"]["a"]["anyOf"][1]["description"]


# -- what is sent ---------------------------------------------------------------------------------------------------


def test_openai_is_sent_a_response_format_and_the_prompt_as_it_is() -> None:
    sent = body(OpenAI(), asking(Inner))
    assert sent["response_format"]["type"] == "json_schema"
    assert sent["response_format"]["json_schema"]["name"] == "Inner"
    assert sent["response_format"]["json_schema"]["strict"] is True
    assert sent["messages"] == [{"role": "user", "content": "How was it?"}]


def test_anthropic_is_sent_an_output_config_beside_what_else_is_configured_there() -> None:
    prompt = Prompt(Prompt.of("a").messages, extra={"output_config": {"effort": "low"}}, schema=schema_of(Inner))
    sent = body(Anthropic(), prompt)
    assert sent["output_config"]["effort"] == "low"
    assert sent["output_config"]["format"]["type"] == "json_schema"
    assert sent["output_config"]["format"]["schema"]["additionalProperties"] is False


def test_a_prompts_own_response_format_goes_before_ours() -> None:
    prompt = Prompt(Prompt.of("a").messages, extra={"response_format": {"type": "text"}}, schema=schema_of(Inner))
    assert body(OpenAI(), prompt)["response_format"] == {"type": "text"}


def test_json_mode_and_instructions_say_the_schema_at_the_end_of_the_last_user_message() -> None:
    talk = [
        Message("user", "first"), Message("assistant", "yes"), Message("user", "second"), Message("assistant", "so"),
    ]  # fmt: skip
    prompt = Prompt(tuple(talk), schema=schema_of(Inner))
    mode = body(OpenAI(), prompt, form="json_object")
    assert mode["response_format"] == {"type": "json_object"}
    said = [message["content"] for message in mode["messages"]]
    assert said[2].startswith("second\n\nAnswer with one JSON object")
    assert schema_of(Inner).text in said[2]
    assert [said[0], said[1], said[3]] == ["first", "yes", "so"]
    plain = body(OpenAI(), prompt, form="instructions")
    assert "response_format" not in plain
    assert plain["messages"] == mode["messages"]


def test_parts_and_prompts_without_a_user_get_the_instructions_too() -> None:
    parts = Prompt((Message("user", ({"type": "text", "text": "look"},)),), schema=schema_of(Inner))
    last = told(parts)[-1].content[-1]
    assert isinstance(last, dict)
    assert last["type"] == "text"
    assert "JSON schema" in last["text"]
    alone = told(Prompt((Message("system", "be brief"),), schema=schema_of(Inner)))
    assert [message.role for message in alone] == ["system", "user"]


def test_instructions_are_not_said_twice() -> None:
    once = Prompt(told(asking(Inner)), schema=schema_of(Inner))
    assert told(once) == once.messages


def test_a_prompt_without_a_schema_is_sent_as_before() -> None:
    assert "response_format" not in body(OpenAI(), Prompt.of("a"), form=None)


@pytest.mark.parametrize(("name", "forms"), [("deepseek", ("json_object",)), ("lmstudio", ("json_schema",))])
def test_presets_know_what_their_servers_take(name: str, forms: tuple[str, ...]) -> None:
    assert PRESETS[name].codec().forms == forms


# -- what is learned ------------------------------------------------------------------------------------------------

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
