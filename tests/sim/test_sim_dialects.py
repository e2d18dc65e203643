"""Both dialects: what is refused and how, what bodies, streams and headers look like."""

from typing import Any

import orjson
import pytest

from llmlab.sim import anthropic_ask, anthropic_wire, openai_ask, openai_wire
from llmlab.sim.replies import answer
from llmlab.sim.wire import Answer, Ask, Level, Refusal, Stamp

STAMP = Stamp("0" * 24, 1_767_225_600)
USER = [{"role": "user", "content": "Tell me a story"}]
VERSION = {"anthropic-version": "2023-06-01"}
NEW = {"anthropic-version": "2026-10-21"}


def openai(**fields: Any) -> Ask:
    return openai_ask.parse(orjson.dumps({"model": "m", "messages": USER} | fields), {})


def anthropic(headers: dict[str, str] = VERSION, **fields: Any) -> Ask:
    body = {"model": "m", "max_tokens": 50, "messages": USER} | fields
    return anthropic_ask.parse(orjson.dumps({k: v for k, v in body.items() if v is not None}), headers)


def said(ask: Ask, text: str = "Once upon a time") -> Answer:
    return answer(ask, seed=0, median=60, sigma=0, text=text)


def test_openai_reads_all_that_a_client_may_send() -> None:
    parts = [{"type": "text", "text": "see"}, {"type": "image_url", "image_url": {"url": "data:"}}]
    messages = [
        {"role": "developer", "content": "Be brief"},
        {"role": "user", "content": parts},
        {"role": "assistant", "content": None, "tool_calls": []},
        {"role": "tool", "content": "42", "tool_call_id": "1"},
    ]
    ask = openai(
        messages=messages,
        max_completion_tokens=9,
        stop="END",
        n=2,
        stream=True,
        stream_options={"include_usage": True},
    )
    assert (ask.text, ask.turns, ask.images) == ("Be brief\nsee\n42", 4, 1)
    assert (ask.max_tokens, ask.stop, ask.n, ask.stream, ask.usage) == (9, ("END",), 2, True, True)


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"model": None}, None, None),
        ({"model": ""}, None, None),
        ({"messages": None}, "messages", "missing_required_parameter"),
        ({"messages": "hi"}, "messages", "invalid_type"),
        ({"messages": []}, "messages", "empty_array"),
        ({"messages": ["hi"]}, "messages[0]", "invalid_type"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages[0].role", "invalid_value"),
        ({"messages": [{"role": "user", "content": None}]}, "messages[0].content", "invalid_type"),
        (
            {"messages": [{"role": "user", "content": [{"type": "smell"}]}]},
            "messages[0].content[0]",
            "invalid_value",
        ),
        (
            {"messages": [{"role": "system", "content": [{"type": "image_url", "image_url": {}}]}]},
            "messages[0].content[0]",
            "invalid_value",
        ),
        ({"max_tokens": 0}, "max_tokens", "integer_below_min_value"),
        ({"max_tokens": "5"}, "max_tokens", "invalid_type"),
        ({"max_tokens": True}, "max_tokens", "invalid_type"),
        ({"max_tokens": 5, "max_completion_tokens": 5}, "max_tokens", "invalid_parameter_combination"),
        ({"temperature": 2.1}, "temperature", "decimal_above_max_value"),
        ({"temperature": -1}, "temperature", "decimal_below_min_value"),
        ({"top_p": "high"}, "top_p", "invalid_type"),
        ({"n": 0}, "n", "integer_below_min_value"),
        ({"n": 129}, "n", "integer_above_max_value"),
        ({"stop": ["a"] * 5}, "stop", "array_above_max_length"),
        ({"stop": 5}, "stop", "invalid_type"),
        ({"stream_options": {"include_usage": True}}, "stream_options", None),
        ({"response_format": {"type": "json_object"}}, "messages", None),
        ({"response_format": {"type": "xml"}}, "response_format.type", "invalid_value"),
        (
            {"response_format": {"type": "json_schema"}},
            "response_format.json_schema",
            "missing_required_parameter",
        ),
        ({"frobnicate": 1}, None, None),
    ],
)
def test_openai_refuses_what_openai_refuses(fields: dict[str, Any], param: str | None, code: str | None) -> None:
    with pytest.raises(Refusal) as caught:
        openai(**fields)
    status, body = openai_wire.error(caught.value, "req_1")
    assert status == 400
    assert set(body["error"]) == {"message", "type", "param", "code"}
    assert (body["error"]["type"], body["error"]["param"], body["error"]["code"]) == (
        "invalid_request_error",
        param,
        code,
    )


@pytest.mark.parametrize("body", [b"{", b"[]", b"", b'"x"'])
def test_a_body_that_is_no_json_object_is_refused_by_both(body: bytes) -> None:
    for parse, headers in ((openai_ask.parse, {}), (anthropic_ask.parse, VERSION)):
        with pytest.raises(Refusal, match="bad_request"):
            parse(body, headers)


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"max_tokens": 5}, "max_tokens", "unsupported_parameter"),
        ({"temperature": 0.5}, "temperature", "unsupported_value"),
    ],
)
def test_a_reasoning_model_refuses_what_real_ones_refuse(fields: dict[str, Any], param: str, code: str) -> None:
    with pytest.raises(Refusal) as caught:
        openai(model="sim-reasoning", **fields)
    error = openai_wire.error(caught.value, "")[1]["error"]
    assert (error["param"], error["code"]) == (param, code)
    assert openai(model="sim-reasoning", max_completion_tokens=5, temperature=1).thinks


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model": None}, "model: Field required"),
        ({"max_tokens": None}, "max_tokens: Field required"),
        ({"messages": None}, "messages: Field required"),
        ({"messages": "hi"}, "messages: Input should be a valid list"),
        ({"messages": []}, "messages: at least one message is required"),
        ({"messages": [5]}, "messages.0: Input should be a valid dictionary"),
        ({"messages": [{"role": "system", "content": "x"}]}, 'messages.0: Unexpected role "system"'),
        (
            {"messages": [{"role": "tool", "content": "x"}]},
            "messages.0.role: Input should be 'user' or 'assistant'",
        ),
        ({"messages": [{"role": "user"}]}, "messages.0.content: Field required"),
        (
            {"messages": [{"role": "user", "content": 5}]},
            "messages.0.content: Input should be a valid string",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
            "messages.0.content.0: Input tag 'image_url'",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "text"}]}]},
            "messages.0.content.0.text.text: Field required",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "text", "text": ""}]}]},
            "messages: text content blocks must",
        ),
        ({"model": 5}, "model: Input should be a valid string"),
        ({"max_tokens": "5"}, "max_tokens: Input should be a valid integer"),
        ({"max_tokens": -1}, "max_tokens: Input should be greater than or equal to 0"),
        ({"temperature": 1.5}, "temperature: range: 0..1"),
        ({"top_p": "x"}, "top_p: Input should be a valid number"),
        ({"stop_sequences": "END"}, "stop_sequences: Input should be a valid list"),
        ({"stop_sequences": [" "]}, "stop_sequences: each stop sequence must contain non-whitespace"),
        (
            {"output_config": {"format": {"type": "xml"}}},
            "output_config.format: Input should be a json_schema",
        ),
        ({"n": 2}, "n: Extra inputs are not permitted"),
    ],
)
def test_anthropic_refuses_what_anthropic_refuses(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(Refusal) as caught:
        anthropic(**fields)
    status, body = anthropic_wire.error(caught.value, "req_1")
    assert (status, body["type"], body["error"]["type"], body["request_id"]) == (
        400,
        "error",
        "invalid_request_error",
        "req_1",
    )
    assert body["error"]["message"].startswith(message)


@pytest.mark.parametrize("name", ["temperature", "top_p", "top_k"])
def test_the_new_anthropic_version_refuses_sampling_parameters(name: str) -> None:
    fields: dict[str, Any] = {name: 1}
    assert anthropic(**fields).text == "Tell me a story"
    with pytest.raises(Refusal) as caught:
        anthropic(NEW, **fields)
    assert caught.value.message == f"{name}: Extra inputs are not permitted"


@pytest.mark.parametrize("headers", [{}, {"anthropic-version": "2020-01-01"}])
def test_anthropic_wants_a_version_it_knows(headers: dict[str, str]) -> None:
    with pytest.raises(Refusal) as caught:
        anthropic(headers)
    assert str(caught.value.message).startswith("anthropic-version")


def test_the_system_prompt_counts_as_text() -> None:
    assert anthropic(system="Be brief").text == "Be brief\nTell me a story"
    assert anthropic(system=[{"type": "text", "text": "Be brief"}]).text == "Be brief\nTell me a story"


def test_a_schema_is_read_in_both_dialects() -> None:
    schema = {"type": "object", "properties": {"label": {"type": "string"}}, "additionalProperties": False}
    form = {"type": "json_schema", "json_schema": {"name": "label", "schema": schema}}
    assert openai(response_format=form).schema == schema
    assert anthropic(output_config={"format": {"type": "json_schema", "schema": schema}}).schema == schema


def test_an_openai_body_has_exactly_the_documented_fields() -> None:
    ask = openai()
    body = openai_wire.plain(ask, said(ask), STAMP)
    assert orjson.dumps(body) == orjson.dumps(
        {
            "id": "chatcmpl-" + "0" * 24,
            "object": "chat.completion",
            "created": 1_767_225_600,
            "model": "m",
            "service_tier": "default",
            "system_fingerprint": "fp_simulated",
            "choices": [
                {
                    "index": 0,
                    "message": {
                        "role": "assistant",
                        "content": "Once upon a time",
                        "refusal": None,
                        "annotations": [],
                    },
                    "logprobs": None,
                    "finish_reason": "stop",
                }
            ],
            "usage": {
                "prompt_tokens": 4 + 4 + 3,
                "completion_tokens": 4,
                "total_tokens": 15,
                "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0, "cache_write_tokens": 0},
                "completion_tokens_details": {
                    "reasoning_tokens": 0,
                    "audio_tokens": 0,
                    "accepted_prediction_tokens": 0,
                    "rejected_prediction_tokens": 0,
                },
            },
        }
    )


def test_an_openai_stream_is_role_tokens_finish_usage_done() -> None:
    ask = openai(stream=True, stream_options={"include_usage": True, "include_obfuscation": False})
    events = openai_wire.stream(ask, said(ask), STAMP)
    chunks = [event.data for event in events[:-1]]
    assert events[-1].data == "[DONE]"
    assert [event.after for event in events] == [0, 1, 2, 3, 4, 4, 4, 4]
    assert [event.ends for event in events] == [False] * 5 + [True, False, True]
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks[:-1]]
    assert deltas[0] == {"role": "assistant", "content": "", "refusal": None}
    assert [delta["content"] for delta in deltas[1:-1]] == ["Once", " upon", " a", " time"]
    assert deltas[-1] == {}
    assert chunks[-2]["choices"][0]["finish_reason"] == "stop"
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"]["completion_tokens"] == 4
    assert all(chunk["usage"] is None for chunk in chunks[:-1])


def test_an_openai_stream_has_usage_only_when_asked_and_padding_unless_refused() -> None:
    ask = openai(stream=True)
    chunks = [event.data for event in openai_wire.stream(ask, said(ask), STAMP)[:-1]]
    assert not any("usage" in chunk for chunk in chunks)
    lengths = {len(c["obfuscation"] + c["choices"][0]["delta"]["content"]) for c in chunks if "obfuscation" in c}
    assert lengths == {16}


def test_several_choices_interleave_and_each_finishes() -> None:
    ask = openai(stream=True, n=2)
    events = openai_wire.stream(ask, answer(ask, seed=0, median=20, sigma=0.4), STAMP)
    indexes = [event.data["choices"][0]["index"] for event in events[:-1]]
    assert indexes[:6] == [0, 1, 0, 1, 0, 1]
    finishes = [event.data["choices"][0]["finish_reason"] for event in events[:-1]]
    assert sorted(filter(None, finishes)) == ["stop", "stop"]


@pytest.mark.parametrize(
    ("quirk", "claim"),
    [
        ("empty_choices", lambda c: c[0]["choices"] == [] and "prompt_filter_results" in c[0]),
        ("null_content", lambda c: c[0]["choices"][0]["delta"]["content"] is None),
        ("role_everywhere", lambda c: all(x["choices"][0]["delta"].get("role") for x in c[:-2])),
        ("same_ids", lambda c: c[0]["id"] == "chatcmpl-7"),
        ("usage_on_last", lambda c: c[-1]["choices"] and c[-1]["usage"]["completion_tokens"] == 4),
        ("x_groq", lambda c: c[-2].get("x_groq", {}).get("usage", {}).get("completion_tokens") == 4),
        ("no_usage", lambda c: not any(x["usage"] for x in c)),
    ],
)
def test_an_openai_quirk_changes_the_chunks_as_named(quirk: str, claim: Any) -> None:
    ask = openai(stream=True, stream_options={"include_usage": True})
    plain, odd = (openai_wire.stream(ask, said(ask), STAMP, q) for q in ("", quirk))
    assert claim([event.data for event in odd if event.data != "[DONE]"])
    assert not claim([event.data for event in plain if event.data != "[DONE]"])


def test_an_openai_stream_without_done_still_finishes() -> None:
    ask = openai(stream=True)
    events = openai_wire.stream(ask, said(ask), STAMP, "no_done")
    assert events[-1].data["choices"][0]["finish_reason"] == "stop"


def test_an_anthropic_body_has_exactly_the_documented_fields() -> None:
    ask = anthropic(stop_sequences=["time"])
    body = anthropic_wire.plain(ask, said(ask), STAMP)
    assert body == {
        "id": "msg_" + "0" * 24,
        "type": "message",
        "role": "assistant",
        "model": "m",
        "content": [{"type": "text", "text": "Once upon a "}],
        "stop_reason": "stop_sequence",
        "stop_sequence": "time",
        "stop_details": None,
        "usage": {
            "input_tokens": 11,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": 0,
            "cache_creation": {"ephemeral_5m_input_tokens": 0, "ephemeral_1h_input_tokens": 0},
            "output_tokens": 4,
            "output_tokens_details": {"thinking_tokens": 0},
            "service_tier": "standard",
        },
    }


def test_an_anthropic_stream_keeps_the_documented_order() -> None:
    ask = anthropic(stream=True, thinking={"type": "enabled", "budget_tokens": 1024}, max_tokens=2000)
    found = said(ask)
    events = anthropic_wire.stream(ask, found, STAMP)
    names = [event.name for event in events]
    assert all(event.data["type"] == event.name for event in events)
    assert names[:3] == ["message_start", "content_block_start", "ping"]
    assert names[-3:] == ["content_block_stop", "message_delta", "message_stop"]
    assert [event.after for event in events] == sorted(event.after for event in events)
    assert [event.name for event in events if event.ends] == ["message_delta", "message_stop"]
    blocks = [event.data for event in events if event.name == "content_block_start"]
    assert [(block["index"], block["content_block"]["type"]) for block in blocks] == [
        (0, "thinking"),
        (1, "text"),
    ]
    deltas = [event.data for event in events if event.name == "content_block_delta"]
    assert [d["delta"]["type"] for d in deltas if d["index"] == 0][-1] == "signature_delta"
    assert "".join(d["delta"]["text"] for d in deltas if d["index"] == 1) == "Once upon a time"
    assert events[-2].data["usage"] == {"output_tokens": found.output_tokens}


def test_max_tokens_and_refusal_have_their_stop_reasons() -> None:
    ask = anthropic(max_tokens=2)
    assert anthropic_wire.plain(ask, said(ask), STAMP)["stop_reason"] == "max_tokens"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"),
        (0.012, "12ms"),
        (1, "1s"),
        (8.64, "8.64s"),
        (59.9996, "1m0s"),
        (90.5, "1m30.5s"),
        (360, "6m0s"),
        (578.016, "9m38.016s"),
        (86_400, "24h0m0s"),
    ],
)
def test_durations_are_written_as_go_writes_them(seconds: float, text: str) -> None:
    assert openai_wire.duration(seconds) == text


def test_both_families_of_rate_headers_have_their_exact_form() -> None:
    levels = {"requests": Level(60, 59, 1.0), "tokens": Level(150_000, 149_984, 0.0064)}
    assert openai_wire.levels(levels, 0) == {
        "x-ratelimit-limit-requests": "60",
        "x-ratelimit-remaining-requests": "59",
        "x-ratelimit-reset-requests": "1s",
        "x-ratelimit-limit-tokens": "150000",
        "x-ratelimit-remaining-tokens": "149984",
        "x-ratelimit-reset-tokens": "6ms",
    }
    levels = {
        "requests": Level(50, 50, 0),
        "input-tokens": Level(200, 0, 63.0),
        "output-tokens": Level(80, 80, 0),
    }
    found = anthropic_wire.levels(levels, 1_767_225_600.0)
    assert found["anthropic-ratelimit-requests-reset"] == "2026-01-01T00:00:00Z"
    assert found["anthropic-ratelimit-input-tokens-reset"] == "2026-01-01T00:01:03Z"
    assert found["anthropic-ratelimit-input-tokens-remaining"] == "0"
    assert found["anthropic-ratelimit-tokens-limit"] == "200"
    assert len(found) == 12


@pytest.mark.parametrize(
    ("hint", "headers"),
    [
        ("header", {"retry-after": "2"}),
        ("float", {"retry-after": "1.500"}),
        ("date", {"retry-after": "Thu, 01 Jan 2026 00:00:02 GMT"}),
        ("ms", {"retry-after-ms": "1500"}),
        ("text", {}),
        ("none", {}),
    ],
)
def test_a_429_hints_in_each_of_the_known_ways(hint: str, headers: dict[str, str]) -> None:
    refusal = Refusal("rate_limited", wait=1.5, hint=hint)
    assert openai_wire.hints(refusal, 1_767_225_600.0) == headers
    assert " Please try again in 1.5s." in openai_wire.error(refusal, "")[1]["error"]["message"]


def test_the_money_errors_carry_the_codes_that_tell_them_from_rate_limits() -> None:
    assert openai_wire.error(Refusal("quota"), "")[1]["error"]["code"] == "insufficient_quota"
    details = anthropic_wire.error(Refusal("quota"), "")[1]["error"]["details"]
    assert details == {"error_code": "enforced_spend_limit_reached"}
    assert "retry-after" not in anthropic_wire.hints(Refusal("quota"), 0)


def test_overload_is_503_here_and_529_with_should_retry_there() -> None:
    assert openai_wire.error(Refusal("overloaded"), "")[0] == 503
    assert anthropic_wire.error(Refusal("overloaded"), "")[0] == 529
    assert anthropic_wire.hints(Refusal("overloaded"), 0) == {"x-should-retry": "true"}
