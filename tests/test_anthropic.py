import base64
import random
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmlab.errors import (
    AuthFailed,
    BadPayload,
    BadRequest,
    LLMError,
    NotFound,
    Overloaded,
    PermissionDenied,
    QuotaExhausted,
    RateLimited,
    ServerError,
    TimedOut,
    Unsendable,
    UnsupportedParam,
)
from llmlab.providers.anthropic import Anthropic
from llmlab.providers.base import Codec, Draft
from llmlab.providers.sse import ServerEvent, Splitter
from llmlab.types import Message, Prompt, Usage

HI: dict[str, Any] = {
    "id": "msg_01",
    "type": "message",
    "role": "assistant",
    "model": "c-1",
    "content": [
        {"type": "thinking", "thinking": "hm", "signature": "s"},
        {"type": "text", "text": "H"},
        {"type": "text", "text": "i"},
    ],
    "stop_reason": "end_turn",
    "stop_sequence": None,
    "stop_details": None,
    "usage": {
        "input_tokens": 10,
        "cache_creation_input_tokens": 3,
        "cache_read_input_tokens": 5,
        "output_tokens": 7,
        "output_tokens_details": {"thinking_tokens": 2},
    },
}

START: dict[str, Any] = {
    "type": "message_start",
    "message": {
        **HI,
        "content": [],
        "stop_reason": None,
        "usage": {
            "input_tokens": 10,
            "cache_creation_input_tokens": 3,
            "cache_read_input_tokens": 5,
            "output_tokens": 1,
        },
    },
}
PING = {"type": "ping"}
STOP = {"type": "message_stop"}


def block(kind: str, index: int = 0, **more: object) -> dict[str, Any]:
    return {"type": "content_block_start", "index": index, "content_block": {"type": kind, **more}}


def grow(kind: str, index: int = 0, **more: object) -> dict[str, Any]:
    return {"type": "content_block_delta", "index": index, "delta": {"type": kind, **more}}


def text(piece: str) -> dict[str, Any]:
    return grow("text_delta", text=piece)


def shut(index: int = 0) -> dict[str, Any]:
    return {"type": "content_block_stop", "index": index}


def last(reason: object = "end_turn", **usage: object) -> dict[str, Any]:
    return {"type": "message_delta", "delta": {"stop_reason": reason, "stop_sequence": None}, "usage": usage}


def streamed(*events: object, draft: Draft | None = None) -> tuple[Draft, list[str]]:
    draft = draft or Draft()
    texts = []
    for each in events:
        name = str(each.get("type")) if isinstance(each, dict) else ""
        data = each if isinstance(each, str) else orjson.dumps(each).decode()
        texts.append(Anthropic().delta(ServerEvent(data, name), draft))
    return draft, texts


def whole(answer: object) -> Draft:
    draft = Draft()
    Anthropic().decode(orjson.dumps(answer), draft)
    return draft


def sent(prompt: Prompt, *, stream: bool = False, codec: Anthropic | None = None) -> dict[str, Any]:
    body: dict[str, Any] = orjson.loads((codec or Anthropic()).encode(prompt, "m", stream=stream))
    return body


def test_it_is_a_codec() -> None:
    codec: Codec = Anthropic()
    assert (codec.path, codec.request_id_header) == ("/v1/messages", "request-id")


def test_nothing_is_sent_but_what_is_set_or_required() -> None:
    assert sent(Prompt.of("x")) == {
        "model": "m",
        "max_tokens": 4096,
        "messages": [{"role": "user", "content": "x"}],
    }


def test_what_the_user_set_is_sent() -> None:
    prompt = Prompt.of("x", temperature=0.5, max_tokens=7, extra={"top_k": 3, "stream": True})
    assert sent(prompt).items() >= {"temperature": 0.5, "max_tokens": 7, "top_k": 3}.items()
    assert "stream" not in sent(prompt)
    assert sent(prompt, stream=True)["stream"] is True


def test_the_default_limit_and_the_extra_body_can_be_chosen() -> None:
    codec = Anthropic(default_max_tokens=9, extra_body={"service_tier": "auto", "top_k": 1})
    assert (
        sent(Prompt.of("x", extra={"top_k": 2}), codec=codec).items()
        >= {"max_tokens": 9, "service_tier": "auto", "top_k": 2}.items()
    )


def test_system_and_developer_messages_are_hoisted_wherever_they_stand() -> None:
    prompt = Prompt(
        (
            Message("system", "a"),
            Message("developer", "b"),
            Message("user", "u"),
            Message("system", "c"),
            Message("user", "v"),
        )
    )
    body = sent(prompt)
    assert body["system"] == "a\n\nb\n\nc"
    assert [each["content"] for each in body["messages"]] == ["u", "v"]


def test_a_system_prompt_with_parts_becomes_blocks() -> None:
    part = {"type": "text", "text": "b", "cache_control": {"type": "ephemeral"}}
    body = sent(Prompt((Message("system", "a"), Message("system", (part,)), Message("user", "u"))))
    assert body["system"] == [{"type": "text", "text": "a"}, part]


@pytest.mark.parametrize(
    ("part", "source"),
    [
        (
            {"image_url": {"url": "data:image/png;base64,AAAA"}},
            {"type": "base64", "media_type": "image/png", "data": "AAAA"},
        ),
        (
            {"image_url": "data:image/png;base64,AAAA"},
            {"type": "base64", "media_type": "image/png", "data": "AAAA"},
        ),
        (
            {"image_url": {"url": "data:image/jpeg;name=x;base64,AA=="}},
            {"type": "base64", "media_type": "image/jpeg", "data": "AA=="},
        ),
        (
            {"image_url": {"url": "DATA:image/svg+xml,%3Csvg%3E"}},
            {"type": "base64", "media_type": "image/svg+xml", "data": base64.b64encode(b"<svg>").decode()},
        ),
        (
            {"image_url": {"url": "https://x/y.png", "detail": "low"}},
            {"type": "url", "url": "https://x/y.png"},
        ),
    ],
)
def test_an_image_url_becomes_an_image_block(part: dict[str, Any], source: dict[str, str]) -> None:
    sent_part = sent(Prompt((Message("user", ({"type": "image_url", **part},)),)))["messages"][0]["content"][0]
    assert sent_part == {"type": "image", "source": source}


def test_what_stands_beside_an_image_url_is_kept() -> None:
    part = {
        "type": "image_url",
        "image_url": {"url": "https://x/y.png"},
        "cache_control": {"type": "ephemeral"},
    }
    sent_part = sent(Prompt((Message("user", (part,)),)))["messages"][0]["content"][0]
    assert sent_part["cache_control"] == {"type": "ephemeral"}


@pytest.mark.parametrize(
    "part",
    [
        {"type": "text", "text": "x"},
        {"type": "image", "source": {"type": "file", "file_id": "f"}},
        {"type": "image_url"},
        {"type": "image_url", "image_url": {"url": 5}},
        {"type": "image_url", "image_url": {"url": "file:///x"}},
        {"type": "new"},
    ],
)
def test_other_parts_are_passed_through(part: dict[str, Any]) -> None:
    assert sent(Prompt((Message("user", (part,)),)))["messages"][0]["content"] == [part]


def test_what_json_cannot_carry_is_unsendable() -> None:
    with pytest.raises(Unsendable):
        Anthropic().encode(Prompt.of("\udc00"), "m", stream=False)


def test_the_key_goes_where_the_dialect_says() -> None:
    assert Anthropic().headers("k") == {"anthropic-version": "2023-06-01", "x-api-key": "k"}
    assert Anthropic(auth="bearer", version="2026-10-21").headers("k") == {
        "anthropic-version": "2026-10-21",
        "authorization": "Bearer k",
    }
    assert Anthropic(extra_headers={"anthropic-beta": "b"}).headers(None) == {
        "anthropic-version": "2023-06-01",
        "anthropic-beta": "b",
    }


def test_extra_headers_are_not_shown() -> None:
    assert "secret" not in repr(Anthropic(extra_headers={"x": "secret"}))


def test_a_whole_answer_is_read_with_its_tokens_as_totals() -> None:
    draft = whole(HI)
    assert (draft.text, draft.reasoning, draft.finish_reason, draft.model, draft.complete) == (
        "Hi",
        ["hm"],
        "stop",
        "c-1",
        True,
    )
    assert draft.usage == Usage(18, 7, 5, 3, 2)


STOPS = [
    ("end_turn", "stop"),
    ("stop_sequence", "stop"),
    ("max_tokens", "length"),
    ("model_context_window_exceeded", "length"),
    ("tool_use", "tool_calls"),
    ("refusal", "content_filter"),
    ("pause_turn", "other"),
    ("brand_new", "other"),
    (7, "other"),
]


@pytest.mark.parametrize(("wire", "ours"), STOPS)
def test_every_stop_reason_has_a_name(wire: object, ours: str) -> None:
    assert whole({**HI, "stop_reason": wire}).finish_reason == ours
    assert streamed(last(wire))[0].finish_reason == ours


def test_a_refusal_is_a_result_and_may_be_empty() -> None:
    draft = whole({**HI, "content": [], "stop_reason": "refusal", "stop_details": {"type": "refusal"}})
    assert (draft.text, draft.finish_reason, draft.complete) == ("", "content_filter", True)


def test_tool_use_blocks_are_tool_calls() -> None:
    call = {"type": "tool_use", "id": "t1", "name": "f", "input": {"x": 1}}
    assert whole({**HI, "content": [call, {"type": "redacted_thinking"}, 5]}).tool_calls == [call]


def test_a_stream_is_read_to_its_end() -> None:
    draft, texts = streamed(
        START,
        block("thinking", thinking=""),
        grow("thinking_delta", thinking="h"),
        grow("thinking_delta", thinking="m"),
        grow("signature_delta", signature="s"),
        shut(),
        block("text", 1, text=""),
        PING,
        text("H"),
        text("i"),
        shut(1),
        last("end_turn", output_tokens=7),
        STOP,
    )
    assert [each for each in texts if each] == ["H", "i"]
    assert (draft.text, draft.reasoning, draft.finish_reason, draft.model) == (
        "Hi",
        ["h", "m"],
        "stop",
        "c-1",
    )
    assert draft.usage == Usage(18, 7, 5, 3)
    assert draft.complete
    assert draft.ended


def test_text_at_the_start_of_a_block_counts() -> None:
    assert streamed(START, block("text", text="Hi"))[1] == ["", "Hi"]


def test_the_events_name_may_be_missing() -> None:
    draft = Draft()
    assert Anthropic().delta(ServerEvent(orjson.dumps(text("x")).decode()), draft) == "x"


def test_usage_is_cumulative_and_its_last_value_wins() -> None:
    draft, _ = streamed(START, last(None, output_tokens=4), last("end_turn", output_tokens=9))
    assert draft.usage == Usage(18, 9, 5, 3)
    draft, _ = streamed(START, last("end_turn", input_tokens=20, cache_read_input_tokens=0, output_tokens=9))
    assert draft.usage == Usage(23, 9, 0, 3)
    draft, _ = streamed(
        START,
        last("end_turn", output_tokens=9, output_tokens_details={"thinking_tokens": 6}),
        last("end_turn"),
    )
    assert draft.usage == Usage(18, 9, 5, 3, 6)


@pytest.mark.parametrize("usage", [None, "x", []])
def test_missing_usage_stays_unknown(usage: object) -> None:
    assert whole({**HI, "usage": usage}).usage is None


def test_a_stream_is_complete_with_a_stop_reason_or_message_stop_and_not_before() -> None:
    draft, _ = streamed(START, text("H"), shut(), last(None), "[DONE]")
    assert not draft.complete
    assert streamed(last("end_turn"), draft=draft)[0].complete
    assert not draft.ended
    assert streamed(START, STOP)[0].complete


def test_nothing_counts_after_message_stop() -> None:
    draft, texts = streamed(STOP, text("late"), {"type": "error", "error": {"type": "api_error"}}, "garbage")
    assert (texts, draft.text) == (["", "", "", ""], "")


@pytest.mark.parametrize(
    ("pieces", "value"),
    [(["", '{"x"', ": 1}"], {"x": 1}), ([], {}), ([""], {}), (['{"x": '], '{"x": ')],
)
def test_the_input_of_a_streamed_tool_call_is_put_together(pieces: list[str], value: object) -> None:
    grown = [grow("input_json_delta", 1, partial_json=piece) for piece in pieces]
    draft, _ = streamed(
        START, block("tool_use", 1, id="t1", name="f", input={}), *grown, shut(1), last("tool_use"), STOP
    )
    assert draft.tool_calls == [{"type": "tool_use", "id": "t1", "name": "f", "input": value}]
    assert draft.finish_reason == "tool_calls"


def test_two_streamed_tool_calls_are_kept_apart() -> None:
    draft, _ = streamed(
        block("tool_use", 0, id="a"),
        block("tool_use", 1, id="b"),
        grow("input_json_delta", 1, partial_json="[1"),
        grow("input_json_delta", 0, partial_json="[0]"),
        shut(0),
        grow("input_json_delta", 1, partial_json="]"),
        grow("input_json_delta", 7, partial_json="lost"),
        shut(7),
        STOP,
    )
    assert [(call["id"], call["input"]) for call in draft.tool_calls] == [("a", [0]), ("b", [1])]


@pytest.mark.parametrize(
    ("kind", "status", "expected"),
    [
        ("overloaded_error", 529, Overloaded),
        ("rate_limit_error", 429, RateLimited),
        ("api_error", 500, ServerError),
        ("timeout_error", 504, TimedOut),
        ("authentication_error", 401, AuthFailed),
        ("permission_error", 403, PermissionDenied),
        ("not_found_error", 404, NotFound),
        ("invalid_request_error", 400, BadRequest),
        ("billing_error", 402, QuotaExhausted),
        ("brand_new_error", 500, ServerError),
    ],
)
def test_an_error_inside_a_200_gets_the_class_of_its_type(kind: str, status: int, expected: type[LLMError]) -> None:
    event = {
        "type": "error",
        "error": {"details": None, "type": kind, "message": "oops"},
        "request_id": "req_1",
    }
    with pytest.raises(expected) as caught:
        streamed(START, text("H"), event)
    error = caught.value
    assert (type(error), error.status, error.message, error.request_id) == (expected, status, "oops", "req_1")
    with pytest.raises(expected):
        whole(event)


def test_an_error_needs_no_event_name() -> None:
    error = '{"error":{"type":"overloaded_error"}}'
    for data in (error, f"[{error}]", '{"type":"error",' + error[1:]):
        with pytest.raises(Overloaded):
            Anthropic().delta(ServerEvent(data), Draft())


@pytest.mark.parametrize("data", ["oops", "5", '{"type": "content_block_stop"}', '{"error": "oops"}', "[]"])
def test_an_event_named_error_is_raised_whatever_it_holds(data: str) -> None:
    with pytest.raises(ServerError):
        Anthropic().delta(ServerEvent(data, "error"), Draft())


@pytest.mark.parametrize(
    "event",
    [
        PING,
        {"type": "brand_new"},
        {},
        " ",
        grow("citations_delta"),
        {"type": "content_block_delta"},
        block("new"),
    ],
)
def test_events_that_are_not_known_are_skipped(event: object) -> None:
    draft, texts = streamed(event)
    assert (texts, draft) == ([""], Draft())


@pytest.mark.parametrize("body", [b"", b"<html>", b"{}", b"[]", b"5", b'{"content": null}', b'{"content": "text"}'])
def test_a_200_that_is_no_answer_is_a_bad_payload(body: bytes) -> None:
    with pytest.raises(BadPayload):
        Anthropic().decode(body, Draft())


@pytest.mark.parametrize("data", ["{", "hello", "5", "[1]", "null"])
def test_an_event_that_is_no_object_is_a_bad_payload(data: str) -> None:
    with pytest.raises(BadPayload):
        Anthropic().delta(ServerEvent(data), Draft())


def test_a_refused_temperature_comes_back_with_a_hint() -> None:
    refused = {"type": "invalid_request_error", "message": "temperature: Extra inputs are not permitted"}
    error = Anthropic().error(400, {"request-id": "r"}, orjson.dumps({"type": "error", "error": refused}))
    assert (type(error), error.request_id) == (UnsupportedParam, "r")
    assert "'temperature'" in (error.hint or "")


def test_a_wrong_path_hints_at_the_base_url() -> None:
    assert "/v1/messages" in (Anthropic().error(404, {}, b"<html>nothing here</html>").hint or "")


SPEAKABLE = st.text(alphabet=st.characters(codec="utf-8"), min_size=1, max_size=5)


@given(st.lists(SPEAKABLE, max_size=8), st.randoms(use_true_random=False))
def test_a_stream_cut_anywhere_says_what_was_said(pieces: list[str], rng: random.Random) -> None:
    events = [START, block("text", text=""), PING, *map(text, pieces), shut(), last(output_tokens=3), STOP]
    wire = b"".join(b"event: %s\ndata: %s\n\n" % (each["type"].encode(), orjson.dumps(each)) for each in events)
    splitter, draft, texts = Splitter(), Draft(), []
    while wire:
        size = rng.randint(1, 40)
        texts += [Anthropic().delta(event, draft) for event in splitter.feed(wire[:size])]
        wire = wire[size:]
    assert "".join(texts) == draft.text == "".join(pieces)
    assert draft.ended
    assert draft.usage == Usage(18, 3, 5, 3)


KEYS = [
    "type",
    "message",
    "content",
    "content_block",
    "delta",
    "text",
    "thinking",
    "partial_json",
    "index",
    "usage",
    "input_tokens",
    "output_tokens",
    "model",
    "cache_read_input_tokens",
    "output_tokens_details",
    "thinking_tokens",
    "stop_reason",
    "error",
    "input",
    "id",
    "name",
]
TYPES = [
    "message_start",
    "message_delta",
    "message_stop",
    "content_block_start",
    "content_block_delta",
    "content_block_stop",
    "ping",
    "error",
    "text",
    "tool_use",
    "thinking",
    "text_delta",
]
JSONS = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 600) | st.floats(allow_nan=False) | st.sampled_from([*TYPES, "{", ""]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=6),
    max_leaves=25,
)
NEAR = st.builds(
    lambda kind, more: {**more, "type": kind},
    st.sampled_from(TYPES),
    st.dictionaries(st.sampled_from(KEYS), JSONS, max_size=5),
)


def check(draft: Draft) -> None:
    reply = draft.reply(provider="p", model="m", request_id=None, latency_s=0, ttft_s=None, cost_usd=None)
    assert isinstance(reply.content, str)
    assert isinstance(reply.reasoning, str)
    assert isinstance(reply.model, str)


@given(JSONS | NEAR | st.lists(NEAR, max_size=4).map(lambda content: {"content": content}))
def test_no_json_body_raises_anything_but_an_llm_error(answer: object) -> None:
    draft = Draft()
    try:
        Anthropic().decode(orjson.dumps(answer), draft)
    except LLMError:
        return
    check(draft)
    assert draft.complete


@given(st.lists(JSONS | NEAR, max_size=6))
def test_no_event_raises_anything_but_an_llm_error(events: list[object]) -> None:
    draft = Draft()
    try:
        _, texts = streamed(*events, draft=draft)
    except LLMError:
        return
    assert "".join(texts) == draft.text
    check(draft)


@given(st.binary(), st.text(), st.sampled_from(["", "error", "ping"]))
def test_no_bytes_raise_anything_but_an_llm_error(body: bytes, data: str, name: str) -> None:
    with pytest.raises(LLMError):
        Anthropic().decode(body, Draft())
    try:
        Anthropic().delta(ServerEvent(data, name), Draft())
    except LLMError as error:
        assert len(error.message) < 600  # noqa: PT017  the claim is about what may be raised
