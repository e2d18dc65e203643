"""How providers are held to a schema: what they are sent, and what is learned when they refuse or ignore it."""

import random
from typing import Any

import anthropic
import orjson
import pytest
from openai.lib._pydantic import to_strict_json_schema
from pydantic import BaseModel

from llmlab.providers.anthropic import STRICT as ANTHROPIC
from llmlab.providers.anthropic import Anthropic
from llmlab.providers.openai import STRICT as OPENAI
from llmlab.providers.openai import OpenAI
from llmlab.providers.presets import PRESETS
from llmlab.providers.structured import strict, told
from llmlab.sim import formed, strictness
from llmlab.typed import typed
from llmlab.types import Message, Prompt, Reply
from tests.shapes import KINDS, LOOSE, NAMES, Inner, Node, Point, Rich, asking, body, schema_of

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
