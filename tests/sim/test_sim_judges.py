"""The official SDKs as judges: what they read, and how they name errors, is what real providers send."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from typing import Any, Literal

import anthropic
import httpx2
import openai
import pytest
from pydantic import BaseModel, Field

from llmlab.sim.faults import QUIRKS, Faults
from llmlab.sim.physics import Physics
from llmlab.sim.server import serve
from llmlab.sim.transport import Simulator

ASKED = [{"role": "user", "content": "Tell me about lighthouses"}]
KEY = "test-key"


@contextlib.asynccontextmanager
async def openai_client(sim: Simulator, **options: Any) -> AsyncIterator[Any]:
    server = await serve(sim)
    try:
        settings: dict[str, Any] = {
            "api_key": KEY,
            "max_retries": 0,
            "base_url": f"{server.base_url}/v1",
        } | options
        async with openai.AsyncOpenAI(**settings) as client:
            yield client
    finally:
        await server.aclose()


@contextlib.asynccontextmanager
async def anthropic_client(sim: Simulator, **options: Any) -> AsyncIterator[Any]:
    server = await serve(sim)
    try:
        settings: dict[str, Any] = {"api_key": KEY, "max_retries": 0, "base_url": server.base_url} | options
        async with anthropic.AsyncAnthropic(**settings) as client:
            yield client
    finally:
        await server.aclose()


def judge(open_client: Any, main: Callable[[Any], Awaitable[Any]], *, options: Any = None, **simulator: Any) -> Any:
    async def entry() -> Any:
        settings: dict[str, Any] = {"physics": Physics.instant(), "keys": [KEY]} | simulator
        sim = Simulator(**settings)
        async with asyncio.timeout(30), open_client(sim, **(options or {})) as client:
            return await main(client)

    return asyncio.run(entry())


def chat(client: Any, **fields: Any) -> Coroutine[Any, Any, Any]:
    found: Coroutine[Any, Any, Any] = client.chat.completions.create(**{"model": "m", "messages": ASKED} | fields)
    return found


def message(client: Any, **fields: Any) -> Coroutine[Any, Any, Any]:
    found: Coroutine[Any, Any, Any] = client.messages.create(
        **{"model": "m", "max_tokens": 500, "messages": ASKED} | fields
    )
    return found


async def read(stream: Any) -> list[Any]:
    return [event async for event in await stream]


def test_openai_reads_a_completion() -> None:
    found = judge(openai_client, lambda client: chat(client, n=2, temperature=0.5, max_completion_tokens=500))
    assert [choice.index for choice in found.choices] == [0, 1]
    assert found.choices[0].finish_reason == "stop"
    assert len(found.choices[0].message.content) > 30
    assert found.usage.total_tokens == found.usage.prompt_tokens + found.usage.completion_tokens
    assert found._request_id.startswith("req_")


def test_openai_reads_a_stream_with_its_usage() -> None:
    options = {"include_usage": True}
    chunks = judge(openai_client, lambda client: read(chat(client, stream=True, stream_options=options)))
    whole = judge(openai_client, chat)
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == whole.choices[0].message.content
    assert chunks[-1].usage == whole.usage
    assert chunks[-2].choices[0].finish_reason == "stop"


class Review(BaseModel):
    label: Literal["good", "bad"]
    stars: int = Field(ge=1, le=5)
    note: str | None = None


def test_openai_parses_structured_output() -> None:
    found = judge(
        openai_client,
        lambda client: client.chat.completions.parse(model="m", messages=ASKED, response_format=Review),
    )
    assert isinstance(found.choices[0].message.parsed, Review)


def test_anthropic_parses_structured_output() -> None:
    found = judge(
        anthropic_client,
        lambda client: client.messages.parse(model="m", messages=ASKED, max_tokens=500, output_format=Review),
    )
    assert isinstance(found.parsed_output, Review)


def test_openai_lists_models() -> None:
    async def main(client: Any) -> list[str]:
        listed = [model.id async for model in client.models.list()]
        return [*listed, (await client.models.retrieve(listed[0])).id]

    assert judge(openai_client, main, models=["a", "b"]) == ["a", "b", "a"]


def test_anthropic_reads_a_message() -> None:
    found = judge(anthropic_client, lambda client: message(client, system="Be brief"))
    assert found.stop_reason == "end_turn"
    assert len(found.content[0].text) > 30
    assert found.usage.output_tokens > 5
    assert found._request_id.startswith("req_")


def test_anthropic_reads_a_stream_and_builds_the_same_message() -> None:
    async def main(client: Any) -> Any:
        async with client.messages.stream(model="m", max_tokens=500, messages=ASKED) as stream:
            text = "".join([piece async for piece in stream.text_stream])
            final = await stream.get_final_message()
        assert text == final.content[0].text
        return final

    streamed, plain = judge(anthropic_client, main), judge(anthropic_client, message)
    assert streamed.content[0].text == plain.content[0].text
    assert streamed.stop_reason == plain.stop_reason
    assert streamed.usage.output_tokens == plain.usage.output_tokens
    assert streamed.usage.input_tokens == plain.usage.input_tokens


def test_anthropic_reads_thinking() -> None:
    async def main(client: Any) -> Any:
        thinking = {"type": "enabled", "budget_tokens": 1024}
        async with client.messages.stream(model="m", max_tokens=2000, messages=ASKED, thinking=thinking) as stream:
            return await stream.get_final_message()

    found = judge(anthropic_client, main)
    assert [block.type for block in found.content] == ["thinking", "text"]
    assert found.content[0].signature
    assert found.content[0].thinking


def test_anthropic_counts_tokens_and_lists_models() -> None:
    async def main(client: Any) -> tuple[int, int, list[str]]:
        counted = await client.messages.count_tokens(model="a", messages=ASKED)
        used = (await message(client, model="a")).usage.input_tokens
        return counted.input_tokens, used, [model.id async for model in client.models.list()]

    counted, used, listed = judge(anthropic_client, main, models=["a", "b"])
    assert counted == used
    assert listed == ["a", "b"]


OPENAI_ERRORS = [
    ("rate_limited", openai.RateLimitError),
    ("quota", openai.RateLimitError),
    ("auth", openai.AuthenticationError),
    ("permission", openai.PermissionDeniedError),
    ("not_found", openai.NotFoundError),
    ("bad_request", openai.BadRequestError),
    ("context_too_long", openai.BadRequestError),
    ("conflict", openai.ConflictError),
    ("server_error", openai.InternalServerError),
    ("overloaded", openai.InternalServerError),
    ("bad_gateway_html", openai.InternalServerError),
    ("gateway_timeout", openai.InternalServerError),
    ("reset", openai.APIConnectionError),
    ("hangup", openai.APIConnectionError),
    ("cut", openai.APIConnectionError),
    ("reset_midway", openai.APIConnectionError),
]


@pytest.mark.parametrize(("kind", "error"), OPENAI_ERRORS)
def test_openai_names_the_error(kind: str, error: type[openai.APIError]) -> None:
    with pytest.raises(error) as caught:
        judge(openai_client, chat, faults=Faults({kind: 1.0}, stall=0.01))
    assert type(caught.value) is error


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        ("rate_limited", "rate_limit_exceeded"),
        ("quota", "insufficient_quota"),
        ("context_too_long", "context_length_exceeded"),
        ("not_found", "model_not_found"),
        ("overloaded", "server_is_overloaded"),
    ],
)
def test_openai_finds_the_code_in_the_body(kind: str, code: str) -> None:
    with pytest.raises(openai.APIStatusError) as caught:
        judge(openai_client, chat, faults=Faults.only(kind))
    assert caught.value.code == code
    assert caught.value.request_id is not None


ANTHROPIC_ERRORS = [
    ("rate_limited", anthropic.RateLimitError, "rate_limit_error"),
    ("auth", anthropic.AuthenticationError, "authentication_error"),
    ("permission", anthropic.PermissionDeniedError, "permission_error"),
    ("not_found", anthropic.NotFoundError, "not_found_error"),
    ("bad_request", anthropic.BadRequestError, "invalid_request_error"),
    ("conflict", anthropic.ConflictError, "conflict_error"),
    ("server_error", anthropic.InternalServerError, "api_error"),
    ("overloaded", anthropic.InternalServerError, "overloaded_error"),
    ("gateway_timeout", anthropic.InternalServerError, "timeout_error"),
    ("too_large", anthropic.APIStatusError, "request_too_large"),
    ("billing", anthropic.APIStatusError, "billing_error"),
]


@pytest.mark.parametrize(("kind", "error", "name"), ANTHROPIC_ERRORS)
def test_anthropic_names_the_error(kind: str, error: type[anthropic.APIStatusError], name: str) -> None:
    with pytest.raises(error) as caught:
        judge(anthropic_client, message, faults=Faults({kind: 1.0}, stall=0.01))
    assert isinstance(caught.value.body, dict)
    assert caught.value.body["error"]["type"] == name
    assert caught.value.request_id == caught.value.body["request_id"]


@pytest.mark.parametrize("kind", ["reset", "hangup", "cut", "reset_midway"])
def test_anthropic_names_a_broken_connection(kind: str) -> None:
    with pytest.raises(anthropic.APIConnectionError):
        judge(anthropic_client, message, faults=Faults.only(kind))


def test_silence_is_a_timeout_to_both() -> None:
    faults = Faults({"stall": 1.0}, stall=10)
    with pytest.raises(openai.APITimeoutError):
        judge(openai_client, chat, options={"timeout": 0.1}, faults=faults)
    with pytest.raises(anthropic.APITimeoutError):
        judge(anthropic_client, message, options={"timeout": 0.1}, faults=faults)


def test_a_wrong_key_is_refused_to_both() -> None:
    with pytest.raises(openai.AuthenticationError):
        judge(openai_client, chat, options={"api_key": "other"})
    with pytest.raises(anthropic.AuthenticationError):
        judge(anthropic_client, message, options={"api_key": "other"})


def test_an_error_in_the_middle_of_a_stream_is_raised_by_both() -> None:
    faults = Faults.only("error_in_stream")
    with pytest.raises(openai.APIError, match="overloaded"):
        judge(openai_client, lambda client: read(chat(client, stream=True)), faults=faults)
    with pytest.raises(anthropic.APIStatusError, match="Overloaded") as caught:
        judge(anthropic_client, lambda client: read(message(client, stream=True)), faults=faults)
    assert caught.value.status_code == 200  # the trap of providers.md B.4


def test_a_stream_reset_midway_is_an_error_to_both() -> None:
    faults = Faults.only("reset_midway")
    with pytest.raises(openai.APIConnectionError):
        judge(openai_client, lambda client: read(chat(client, stream=True)), faults=faults)
    with pytest.raises(httpx2.ReadError):  # the anthropic SDK lets it through as it is
        judge(anthropic_client, lambda client: read(message(client, stream=True)), faults=faults)


def test_a_stream_cut_in_silence_is_taken_as_complete_by_both() -> None:
    faults = Faults.only("cut_silent")
    chunks = judge(openai_client, lambda client: read(chat(client, stream=True)), faults=faults)
    assert not any(chunk.choices[0].finish_reason for chunk in chunks)
    events = judge(anthropic_client, lambda client: read(message(client, stream=True)), faults=faults)
    assert "message_stop" not in [event.type for event in events]


LOST = {"bom", "no_final_blank"}
"""Quirks at which the SDKs lose an event (providers.md F.2): they are no judges of these."""


@pytest.mark.parametrize("quirk", sorted(set(QUIRKS) - LOST))
def test_the_other_quirks_cost_the_sdks_nothing(quirk: str) -> None:
    def text(faults: Faults) -> tuple[str, str]:
        chunks = judge(openai_client, lambda client: read(chat(client, stream=True)), faults=faults)
        events = judge(anthropic_client, lambda client: read(message(client, stream=True)), faults=faults)
        first = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
        return first, "".join(event.delta.text for event in events if event.type == "content_block_delta")

    assert text(Faults.only(quirk)) == text(Faults())


def test_the_rate_headers_reach_both() -> None:
    async def ask_openai(client: Any) -> Any:
        return (await client.chat.completions.with_raw_response.create(model="m", messages=ASKED)).headers

    async def ask_anthropic(client: Any) -> Any:
        found = await client.messages.with_raw_response.create(model="m", max_tokens=50, messages=ASKED)
        return found.headers

    physics = Physics.instant(rpm=60, tpm=100_000)
    assert judge(openai_client, ask_openai, physics=physics)["x-ratelimit-remaining-requests"] == "59"
    headers = judge(anthropic_client, ask_anthropic, physics=physics)
    assert headers["anthropic-ratelimit-requests-remaining"] == "59"
