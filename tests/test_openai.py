import copy
import random
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmlab.errors import (
    AuthFailed,
    BadPayload,
    ContextTooLong,
    LLMError,
    NotFound,
    Overloaded,
    RateLimited,
    ServerError,
    Unsendable,
)
from llmlab.providers.base import Codec, Draft
from llmlab.providers.openai import OpenAI
from llmlab.providers.sse import ServerEvent, Splitter
from llmlab.types import Message, Prompt, Usage

HI: dict[str, Any] = {
    "id": "chatcmpl-1",
    "object": "chat.completion",
    "model": "m-2026-01-01",
    "choices": [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "Hi", "refusal": None},
            "finish_reason": "stop",
        }
    ],
    "usage": {
        "prompt_tokens": 9,
        "completion_tokens": 12,
        "total_tokens": 21,
        "prompt_tokens_details": {"cached_tokens": 4, "cache_write_tokens": 2},
        "completion_tokens_details": {"reasoning_tokens": 5},
    },
}


def sent(prompt: Prompt, *, stream: bool = False, codec: OpenAI | None = None) -> dict[str, Any]:
    body: dict[str, Any] = orjson.loads((codec or OpenAI()).encode(prompt, "m", stream=stream))
    return body


def whole(answer: object) -> Draft:
    draft = Draft()
    OpenAI().decode(orjson.dumps(answer), draft)
    return draft


def answered(message: dict[str, Any], finish_reason: object = "stop", **more: object) -> Draft:
    return whole({"choices": [{"index": 0, "message": message, "finish_reason": finish_reason}], **more})


def chunk(delta: object = None, finish_reason: object = None, index: int = 0, **more: object) -> dict[str, Any]:
    return {
        "model": "m",
        "choices": [{"index": index, "delta": delta or {}, "finish_reason": finish_reason}],
        **more,
    }


def streamed(*chunks: object, draft: Draft | None = None) -> tuple[Draft, list[str]]:
    draft = draft or Draft()
    texts = []
    for each in chunks:
        event = ServerEvent(each if isinstance(each, str) else orjson.dumps(each).decode())
        texts.append(OpenAI().delta(event, draft))
    return draft, texts


def test_it_is_a_codec() -> None:
    codec: Codec = OpenAI()
    assert codec.path == "/chat/completions"


def test_nothing_is_sent_that_the_user_did_not_set() -> None:
    assert sent(Prompt.of("Hello")) == {"model": "m", "messages": [{"role": "user", "content": "Hello"}]}


def test_what_the_user_set_is_sent() -> None:
    prompt = Prompt.of("Hello", temperature=0.0, max_tokens=7, extra={"stop": ["x"], "logit_bias": {50256: -100}})
    body = sent(prompt)
    assert (body["temperature"], body["max_completion_tokens"], body["stop"]) == (0.0, 7, ["x"])
    assert body["logit_bias"] == {"50256": -100}


def test_only_a_stream_asks_for_a_stream_and_its_usage() -> None:
    assert (
        sent(Prompt.of("x"), stream=True).items() >= {"stream": True, "stream_options": {"include_usage": True}}.items()
    )
    assert "stream_options" not in sent(Prompt.of("x"), stream=True, codec=OpenAI(stream_options=False))


def test_the_users_own_stream_options_stand_but_stream_is_the_callers() -> None:
    prompt = Prompt.of("x", extra={"stream": True, "stream_options": {"include_obfuscation": False}})
    assert "stream" not in sent(prompt)
    assert sent(prompt, stream=True)["stream_options"] == {"include_obfuscation": False}


def test_the_dialect_names_the_token_limit() -> None:
    body = sent(Prompt.of("x", max_tokens=3), codec=OpenAI(max_tokens_field="max_tokens"))
    assert body["max_tokens"] == 3
    assert "max_completion_tokens" not in body


@pytest.mark.parametrize(("known", "role"), [(True, "developer"), (False, "system")])
def test_a_developer_message_is_a_system_message_where_the_role_is_unknown(known: bool, role: str) -> None:
    prompt = Prompt((Message("developer", "d"), Message("system", "s"), Message("user", "u")))
    assert [each["role"] for each in sent(prompt, codec=OpenAI(developer_role=known))["messages"]] == [
        role,
        "system",
        "user",
    ]


def test_content_parts_are_passed_through() -> None:
    parts = ({"type": "text", "text": "?"}, {"type": "image_url", "image_url": {"url": "https://x/y.png"}})
    assert sent(Prompt((Message("user", parts),)))["messages"][0]["content"] == list(parts)


def test_the_prompts_extra_goes_before_the_dialects() -> None:
    codec = OpenAI(extra_body={"seed": 1, "store": False})
    assert sent(Prompt.of("x", extra={"seed": 2}), codec=codec).items() >= {"seed": 2, "store": False}.items()


@pytest.mark.parametrize("extra", [{"x": object()}, {"x": "\ud83d"}])
def test_what_json_cannot_carry_is_unsendable(extra: dict[str, object]) -> None:
    with pytest.raises(Unsendable, match="cannot be written as JSON"):
        OpenAI().encode(Prompt.of("x", extra=extra), "m", stream=False)


def test_the_key_goes_where_the_dialect_says() -> None:
    assert OpenAI().headers("k") == {"authorization": "Bearer k"}
    assert OpenAI(auth="api-key", extra_headers={"x": "y"}).headers("k") == {"api-key": "k", "x": "y"}
    assert OpenAI(extra_headers={"x": "y"}).headers(None) == {"x": "y"}


def test_extra_headers_are_not_shown() -> None:
    assert "secret" not in repr(OpenAI(extra_headers={"x-api-key": "secret"}))


def test_a_whole_answer_is_read() -> None:
    draft = whole(HI)
    assert (draft.text, draft.finish_reason, draft.model, draft.complete) == (
        "Hi",
        "stop",
        "m-2026-01-01",
        True,
    )
    assert draft.usage == Usage(9, 12, 4, 2, 5)


def test_blank_lines_and_a_byte_order_mark_before_the_json_are_skipped() -> None:
    for before in (b"\n\n  \r\n", b"\xef\xbb\xbf", b"\xef\xbb\xbf\n"):
        draft = Draft()
        OpenAI().decode(before + orjson.dumps(HI), draft)
        assert draft.text == "Hi"


@pytest.mark.parametrize(
    ("wire", "ours"),
    [
        ("stop", "stop"),
        ("length", "length"),
        ("tool_calls", "tool_calls"),
        ("function_call", "tool_calls"),
        ("content_filter", "content_filter"),
        ("eos", "stop"),
        ("abort", "other"),
        ("repetition", "other"),
        ("brand_new", "other"),
        (None, "other"),
        ("", "other"),
        (7, "other"),
        ([], "other"),
    ],
)
def test_every_finish_reason_has_a_name(wire: object, ours: str) -> None:
    assert answered({"content": "x"}, wire).finish_reason == ours


@pytest.mark.parametrize("message", [{"content": None}, {}, {"content": ""}, {"content": None, "refusal": None}])
def test_an_answer_without_text_is_empty(message: dict[str, Any]) -> None:
    draft = answered(message, "length")
    assert (draft.text, draft.finish_reason, draft.complete) == ("", "length", True)


def test_a_refusal_is_a_result() -> None:
    draft = answered({"content": None, "refusal": "I cannot."})
    assert (draft.text, draft.finish_reason) == ("I cannot.", "content_filter")


def test_a_streamed_refusal_is_a_result() -> None:
    draft, texts = streamed(chunk({"refusal": "I "}), chunk({"content": None, "refusal": "cannot."}), chunk({}, "stop"))
    assert (texts, draft.text, draft.finish_reason) == (["I ", "cannot.", ""], "I cannot.", "content_filter")


@pytest.mark.parametrize(
    "message",
    [
        {"reasoning_content": "so", "reasoning": "other"},
        {"reasoning_content": "", "reasoning": "so"},
        {"reasoning": "so"},
        {"reasoning_details": [{"type": "reasoning.text", "text": "s"}, {"text": "o"}, 5]},
        {"reasoning_content": None, "reasoning": {"no": "str"}, "reasoning_details": [{"text": "so"}]},
    ],
)
def test_reasoning_is_read_under_each_of_its_names(message: dict[str, Any]) -> None:
    assert answered({"content": "x", **message}).reasoning == ["so"]
    assert streamed(chunk(message))[0].reasoning == ["so"]


def test_content_in_parts_is_joined() -> None:
    parts = [
        {"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]},
        {"type": "text", "text": "a"},
        {"text": "b"},
        5,
    ]
    draft = answered({"content": parts})
    assert (draft.text, draft.reasoning) == ("ab", ["hm"])


@pytest.mark.parametrize(
    ("usage", "expected"),
    [
        ({"prompt_tokens": 3, "completion_tokens": 4}, Usage(3, 4)),
        (
            {
                "prompt_tokens": 3,
                "completion_tokens": 4,
                "prompt_tokens_details": None,
                "completion_tokens_details": None,
            },
            Usage(3, 4),
        ),
        ({"prompt_tokens": 3, "completion_tokens": 4, "reasoning_tokens": 2}, Usage(3, 4, 0, 0, 2)),
        (
            {
                "prompt_tokens": 3,
                "completion_tokens": 4,
                "prompt_cache_hit_tokens": 2,
                "prompt_cache_miss_tokens": 1,
            },
            Usage(3, 4, 2),
        ),
        (
            {
                "prompt_tokens": 3,
                "completion_tokens": 4,
                "total_tokens": 9,
                "completion_tokens_details": {"reasoning_tokens": 2},
            },
            Usage(3, 6, 0, 0, 2),
        ),
        ({"prompt_tokens": -3, "completion_tokens": "4"}, Usage()),
    ],
)
def test_usage_of_each_dialect_is_read(usage: dict[str, Any], expected: Usage) -> None:
    assert answered({"content": "x"}, usage=usage).usage == expected


@pytest.mark.parametrize("usage", [{}, {"usage": None}, {"usage": {}}, {"usage": "no"}])
def test_missing_usage_stays_unknown(usage: dict[str, Any]) -> None:
    assert answered({"content": "x"}, **usage).usage is None


def test_tool_calls_come_out_in_the_wires_form() -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"x":1}'}}
    draft = answered({"content": None, "tool_calls": [call]}, "tool_calls")
    assert (draft.tool_calls, draft.finish_reason) == ([call], "tool_calls")


def test_tool_calls_without_ids_are_kept_apart() -> None:
    calls = [{"function": {"name": name, "arguments": "{}"}} for name in ("f", "f", "g")]
    assert answered({"content": None, "tool_calls": calls}).tool_calls == calls


def fragment(index: int | None, arguments: str = "", **more: object) -> dict[str, Any]:
    function = {"arguments": arguments, **({"name": more.pop("name")} if "name" in more else {})}
    return {**({} if index is None else {"index": index}), "function": function, **more}


def test_fragments_of_tool_calls_are_merged_by_index() -> None:
    draft, _ = streamed(
        chunk(
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [fragment(0, id="a", type="function", name="f")],
            }
        ),
        chunk({"tool_calls": [fragment(0, '{"x"')]}),
        chunk({"tool_calls": [fragment(1, id="b", type="function", name="g"), fragment(0, ":1}")]}),
        chunk({"tool_calls": [fragment(1, "{}")]}),
        chunk({}, "tool_calls"),
    )
    assert draft.tool_calls == [
        {"id": "a", "type": "function", "function": {"name": "f", "arguments": '{"x":1}'}},
        {"id": "b", "type": "function", "function": {"name": "g", "arguments": "{}"}},
    ]


@pytest.mark.parametrize("indices", [(None, None), (0, 0), (1, 2)])
def test_whole_tool_calls_without_a_proper_index_are_kept_apart(
    indices: tuple[int | None, int | None],
) -> None:
    first, second = indices
    draft, _ = streamed(
        chunk(
            {
                "tool_calls": [
                    fragment(first, "{1}", id="a", name="f"),
                    fragment(second, "{2}", id="b", name="f"),
                ]
            },
            "tool_calls",
        )
    )
    assert [(call["id"], call["function"]["arguments"]) for call in draft.tool_calls] == [
        ("a", "{1}"),
        ("b", "{2}"),
    ]


@pytest.mark.parametrize("calls", [5, "x", {}, [5, None], [[]]])
def test_tool_calls_that_are_none_are_skipped(calls: object) -> None:
    assert answered({"content": "x", "tool_calls": calls}).tool_calls == []


def test_a_fragment_with_neither_index_nor_id_goes_on_with_the_last_call() -> None:
    draft, _ = streamed(
        chunk({"tool_calls": [fragment(None, "{", id="a", name="f")]}),
        chunk({"tool_calls": [fragment(None, "}")]}),
        "[DONE]",
    )
    assert [call["function"]["arguments"] for call in draft.tool_calls] == ["{}"]


def test_a_stream_is_read_to_its_end() -> None:
    draft, texts = streamed(
        chunk({"role": "assistant", "content": "", "refusal": None}, usage=None),
        chunk({"content": "H"}),
        chunk({"content": "i"}),
        chunk({}, "stop"),
        {"choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": 1}},
        "[DONE]",
    )
    assert texts == ["", "H", "i", "", "", ""]
    assert (draft.text, draft.finish_reason, draft.usage, draft.model) == ("Hi", "stop", Usage(9, 1), "m")
    assert draft.complete
    assert draft.ended


@pytest.mark.parametrize(
    "delta", [{}, {"content": None}, {"content": ""}, {"role": "assistant"}, None, [], "x", {"content": 5}]
)
def test_a_chunk_without_text_gives_none(delta: object) -> None:
    assert streamed({"choices": [{"index": 0, "delta": delta}]})[1] == [""]


def test_a_usage_chunk_without_choices_is_read() -> None:
    used = {"usage": {"prompt_tokens": 1, "completion_tokens": 2}}
    for event in ({"choices": [], **used}, {"choices": None, **used}, used):
        draft, texts = streamed(event)
        assert (draft.usage, texts) == (Usage(1, 2), [""])


def test_usage_of_any_chunk_counts_and_the_last_word_wins() -> None:
    draft, _ = streamed(
        chunk({"content": "a"}, usage={"prompt_tokens": 9, "completion_tokens": 1}),
        chunk({"content": "b"}, usage={"prompt_tokens": 9, "completion_tokens": 2}),
        chunk({}, "stop", usage=None),
    )
    assert draft.usage == Usage(9, 2)


def test_groqs_usage_is_read() -> None:
    draft, _ = streamed(
        chunk({"content": "a"}),
        chunk({}, "stop", x_groq={"id": "r", "usage": {"prompt_tokens": 3, "completion_tokens": 4}}),
    )
    assert draft.usage == Usage(3, 4)


def test_azures_first_chunk_without_choices_is_skipped() -> None:
    draft, texts = streamed({"choices": [], "model": "", "prompt_filter_results": [{}]}, chunk({"content": "a"}))
    assert (texts, draft.model, draft.complete) == (["", "a"], "m", False)


def test_only_the_first_of_several_choices_is_the_answer() -> None:
    draft, texts = streamed(
        chunk({"content": "no"}, index=1),
        chunk({"content": "a"}),
        chunk({}, "length", index=1),
        chunk({"content": "b"}),
    )
    assert (texts, draft.complete) == (["", "a", "", "b"], False)
    assert streamed(chunk({}, "stop"), draft=draft)[0].finish_reason == "stop"


def test_a_stream_is_complete_with_a_finish_reason_or_done_and_not_before() -> None:
    assert not streamed(chunk({"content": "a"}))[0].complete
    assert streamed(chunk({"content": "a"}, "stop"))[0].complete
    assert streamed(chunk({"content": "a"}), "[DONE]")[0].complete
    assert streamed(chunk({"content": "a"}), " [DONE] ")[0].complete
    assert not streamed(chunk({"content": "a"}, ""))[0].complete


def test_nothing_counts_after_done() -> None:
    draft, texts = streamed("[DONE]", chunk({"content": "late"}), {"error": {"message": "late"}}, "garbage")
    assert (texts, draft.text) == (["", "", "", ""], "")


def test_a_whole_answer_as_one_event_is_read() -> None:
    draft, texts = streamed(HI)
    assert (texts, draft.complete, draft.usage) == (["Hi"], True, Usage(9, 12, 4, 2, 5))


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        ({"error": {"message": "Sorry about that!", "type": "server_error"}}, ServerError),
        (
            {
                "error": {"code": 502, "message": "bad"},
                "choices": [{"delta": {"content": ""}, "finish_reason": "error"}],
            },
            ServerError,
        ),
        ({"error": {"code": "server_error", "message": "bad"}, "choices": []}, ServerError),
        ({"error": {"code": 429, "message": "slow"}}, RateLimited),
        ({"error": "something broke"}, ServerError),
        ([{"error": {"code": 503, "message": "busy", "status": "UNAVAILABLE"}}], Overloaded),
        (
            {
                "object": "error",
                "message": "this model's maximum context length is 5",
                "type": "400",
                "code": 400,
            },
            ContextTooLong,
        ),
        ({"type": "error", "message": "bad"}, ServerError),
    ],
)
def test_an_error_inside_a_200_is_raised(error: object, kind: type[LLMError]) -> None:
    with pytest.raises(kind):
        streamed(chunk({"content": "a"}), error)
    with pytest.raises(kind):
        whole(error)


@pytest.mark.parametrize("data", ["oops", '{"message": "oops"}', '{"error": {"message": "oops"}}', "[]"])
def test_an_event_named_error_is_raised_whatever_it_holds(data: str) -> None:
    with pytest.raises(ServerError) as caught:
        OpenAI().delta(ServerEvent(data, "error"), Draft())
    assert data == "[]" or caught.value.message == "oops"


@pytest.mark.parametrize(("reason", "kind"), [("insufficient_system_resource", Overloaded), ("error", ServerError)])
def test_a_finish_reason_that_means_failure_is_raised(reason: str, kind: type[LLMError]) -> None:
    with pytest.raises(kind):
        streamed(chunk({}, reason))
    with pytest.raises(kind):
        answered({"content": "half"}, reason)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html><title>hi</title></html>",
        b"{",
        b"[]",
        b"{}",
        b"5",
        b'{"choices":[]}',
        b'{"choices":[{}]}',
        b'{"choices":[{"message":null}]}',
        b'{"choices":{"0":1}}',
        b'{"choices":[7]}',
        b"\xff\xfe",
    ],
)
def test_a_200_that_is_no_answer_is_a_bad_payload(body: bytes) -> None:
    with pytest.raises(BadPayload):
        OpenAI().decode(body, Draft())


@pytest.mark.parametrize("data", ['{"choices": [', "hello", "5", "[1]", "null", '"text"'])
def test_an_event_that_is_no_object_is_a_bad_payload(data: str) -> None:
    with pytest.raises(BadPayload):
        streamed(data)


@pytest.mark.parametrize("data", [" ", "\n", '{"type": "ping"}', '{"error": null, "choices": []}', '{"choices": [5]}'])
def test_an_event_that_says_nothing_is_skipped(data: str) -> None:
    assert streamed(data)[1] == [""]


def test_an_error_status_goes_through_the_taxonomy() -> None:
    error = OpenAI().error(401, {"x-request-id": "r1"}, b'{"error":"Unauthorized"}')
    assert (type(error), error.request_id, error.hint) == (AuthFailed, "r1", None)
    missing = OpenAI().error(404, {}, b"404 page not found")
    assert isinstance(missing, NotFound)
    assert "/v1" in (missing.hint or "")


SPEAKABLE = st.text(alphabet=st.characters(codec="utf-8"), min_size=1, max_size=5)


@given(st.lists(SPEAKABLE, max_size=8), st.randoms(use_true_random=False))
def test_a_stream_cut_anywhere_says_what_the_whole_answer_says(pieces: list[str], rng: random.Random) -> None:
    chunks = [*(chunk({"content": piece}) for piece in pieces), chunk({}, "stop")]
    wire = b"".join(b"data: " + orjson.dumps(each) + b"\n\n" for each in chunks) + b"data: [DONE]\n\n"
    splitter, draft, texts = Splitter(), Draft(), []
    while wire:
        size = rng.randint(1, 40)
        texts += [OpenAI().delta(event, draft) for event in splitter.feed(wire[:size])]
        wire = wire[size:]
    assert "".join(texts) == draft.text == "".join(pieces) == answered({"content": "".join(pieces)}).text
    assert draft.ended


KEYS = [
    "choices",
    "delta",
    "message",
    "content",
    "finish_reason",
    "index",
    "error",
    "usage",
    "model",
    "tool_calls",
    "function",
    "arguments",
    "id",
    "name",
    "reasoning",
    "reasoning_details",
    "refusal",
    "x_groq",
    "prompt_tokens",
    "prompt_tokens_details",
    "cached_tokens",
    "type",
    "text",
    "thinking",
    "object",
]
JSONS = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-3, 600)
    | st.floats(allow_nan=False)
    | st.sampled_from(["stop", "error", "x", ""]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=6),
    max_leaves=25,
)
NEAR = st.builds(
    lambda choice, message, more: {**more, "choices": [{**choice, "message": message, "delta": message}]},
    st.dictionaries(st.sampled_from(KEYS), JSONS, max_size=3),
    st.dictionaries(st.sampled_from(KEYS), JSONS, max_size=5),
    st.dictionaries(st.sampled_from(KEYS), JSONS, max_size=3),
)


def check(draft: Draft) -> None:
    reply = draft.reply(provider="p", model="m", request_id=None, latency_s=0, ttft_s=None, cost_usd=None)
    assert isinstance(reply.content, str)
    assert isinstance(reply.reasoning, str)
    assert isinstance(reply.model, str)


@given(JSONS | NEAR)
def test_no_json_body_raises_anything_but_an_llm_error(answer: object) -> None:
    draft = Draft()
    try:
        OpenAI().decode(orjson.dumps(answer), draft)
    except LLMError:
        return
    check(draft)
    assert draft.complete


@given(st.lists(JSONS | NEAR, max_size=5))
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
        OpenAI().decode(body, Draft())
    try:
        OpenAI().delta(ServerEvent(data, name), Draft())
    except LLMError as error:
        assert len(error.message) < 600  # noqa: PT017  the claim is about what may be raised


def test_reading_does_not_change_what_was_read() -> None:
    answer = copy.deepcopy(HI)
    whole(answer)
    assert answer == HI
