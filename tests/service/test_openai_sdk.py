"""The official OpenAI SDK as the client, over a real socket."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import openai
import pytest

import llmlab
from llmlab.sim import Physics
from tests.service.sockets import Live, live

ASK: Any = [{"role": "user", "content": "hello"}]


@asynccontextmanager
async def asking(served: Live, key: str = "none") -> AsyncIterator[openai.AsyncOpenAI]:
    client = openai.AsyncOpenAI(base_url=f"{served.running.url}/v1", api_key=key, max_retries=0, timeout=30)
    async with client:
        yield client


def test_a_plain_answer() -> None:
    async def main() -> None:
        async with live() as served, asking(served) as client:
            answer = await client.chat.completions.create(model="default", messages=ASK)
            assert answer.choices[0].message.content == "heard: hello"
            assert answer.choices[0].finish_reason == "stop"
            assert answer.usage is not None
            assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens > 0
            assert answer._request_id
            assert answer._request_id.startswith("req_")
            assert [each.id async for each in client.models.list()] == ["m"]
            assert (await client.models.retrieve("m")).id == "m"

    asyncio.run(main())


def test_a_stream_with_its_usage() -> None:
    async def main() -> None:
        async with live() as served, asking(served) as client:
            stream = await client.chat.completions.create(
                model="other", messages=ASK, stream=True, stream_options={"include_usage": True}
            )
            chunks = [chunk async for chunk in stream]
            texts = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
            assert "".join(texts) == "heard: hello"
            assert len(texts) > 2
            assert {chunk.model for chunk in chunks} == {"other"}
            assert chunks[-2].choices[0].finish_reason == "stop"
            assert chunks[-1].usage is not None
            assert chunks[-1].usage.completion_tokens > 0

    asyncio.run(main())


FAILURES: list[tuple[str, type[openai.APIStatusError]]] = [
    ("bad_request:1", openai.BadRequestError),
    ("not_found:1", openai.NotFoundError),
    ("auth:1", openai.InternalServerError),
    ("server_error:1", openai.InternalServerError),
    ("rate_limited:1", openai.RateLimitError),
]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("faults", "kind"), FAILURES)
def test_upstream_failures_are_the_sdks_own_exceptions(
    faults: str, kind: type[openai.APIStatusError], stream: bool
) -> None:
    async def main() -> None:
        bare = {"strategy": llmlab.Strategy.bare()}
        async with live(faults=faults, lab=bare) as served, asking(served) as client:
            with pytest.raises(kind) as failed:
                await client.chat.completions.create(model="m", messages=ASK, stream=stream)
            assert failed.value.request_id
            assert "sk-upstream" not in str(failed.value) + str(failed.value.response.headers)

    asyncio.run(main())


def test_the_services_own_refusals_are_the_sdks_own_exceptions() -> None:
    async def main() -> None:
        keys = {"team": "key-of-the-team"}
        async with live(keys=keys, rpm=10, models=["small"]) as served:
            async with asking(served, "wrong-key") as client:
                with pytest.raises(openai.AuthenticationError):
                    await client.chat.completions.create(model="m", messages=ASK)
            async with asking(served, "key-of-the-team") as client:
                with pytest.raises(openai.UnprocessableEntityError):
                    await client.chat.completions.create(model="m", messages=ASK, temperature=3)
                with pytest.raises(openai.NotFoundError):
                    await client.chat.completions.create(model="gigantic", messages=ASK)
                with pytest.raises(openai.RateLimitError) as failed:
                    await client.chat.completions.create(model="m", messages=ASK)
                assert int(failed.value.response.headers["retry-after"]) >= 1

    asyncio.run(main())


def test_an_error_in_the_middle_of_a_stream_is_raised() -> None:
    async def main() -> None:
        async with live(faults="cut:1.0", say=None) as served, asking(served) as client:
            stream = await client.chat.completions.create(model="m", messages=ASK, stream=True)
            with pytest.raises(openai.APIError, match="cannot be reached"):
                async for _ in stream:
                    pass

    asyncio.run(main())


def test_a_stream_that_is_closed_ends_its_upstream_request() -> None:
    async def main() -> None:
        slow = Physics(ttft=0.0, itl=0.05, jitter=0.0, rtt=0.0, reply_tokens=5000.0)
        async with live(physics=slow, say=None) as served, asking(served) as client:
            stream = await client.chat.completions.create(model="m", messages=ASK, stream=True)
            await anext(aiter(stream))
            assert served.upstream == 1
            await stream.close()
            async with asyncio.timeout(20):
                await served.idle()
            assert served.simulator.stats()["tokens"]["output"] < 1000

    asyncio.run(main())


WEATHER: Any = {
    "type": "function",
    "function": {"name": "weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}},
}


def test_other_fields_and_messages_of_tools_reach_the_provider_as_they_are() -> None:
    async def main() -> None:
        seen: list[Any] = []
        async with live() as served, asking(served) as client:
            handle = served.simulator.handle_async_request

            async def look(request: Any) -> Any:
                seen.append(json.loads(await request.aread()))
                return await handle(request)

            served.simulator.handle_async_request = look  # type: ignore[method-assign]
            call = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Rome"}'}}
            turns: Any = [
                *ASK,
                {"role": "assistant", "content": None, "tool_calls": [call]},
                {"role": "tool", "tool_call_id": "c1", "content": "sunny"},
            ]
            await client.chat.completions.create(
                model="m",
                messages=turns,
                tools=[WEATHER],
                top_p=0.5,
                response_format={"type": "text"},
                extra_body={"priority": 0},
            )
        (body,) = seen
        assert body["messages"] == turns
        assert body["tools"] == [WEATHER]
        assert body["response_format"] == {"type": "text"}
        assert body["top_p"] == 0.5
        assert "priority" not in body

    asyncio.run(main())
