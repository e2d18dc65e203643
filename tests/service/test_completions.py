"""The service's own API: one prompt, many prompts, pieces, and what a client is told of a failure."""

import asyncio
import json
from collections.abc import Callable, Coroutine
from typing import Any

import httpx
import pytest

from llmlab.sim import Physics
from tests.service.conftest import Serve, Served

Main = Callable[[], Coroutine[Any, Any, None]]


def events(text: str) -> list[str]:
    return [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data: ")]


def test_a_prompt_is_answered_with_its_usage_and_times(serve: Serve) -> None:
    async def main() -> None:
        async with serve() as served:
            answer = await served.client.post("/v1/completions", json={"prompt": "hello", "priority": 0})
        body = answer.json()
        assert answer.status_code == 200
        assert body["content"] == "heard: hello"
        assert body["finish_reason"] == "stop"
        assert body["usage"]["total_tokens"] == body["usage"]["input_tokens"] + body["usage"]["output_tokens"]
        assert body["latency_ms"] >= 0
        assert body["request_id"] == answer.headers["x-request-id"]

    asyncio.run(main())


def test_a_conversation_and_parameters_reach_the_provider(serve: Serve) -> None:
    async def main() -> None:
        async with serve() as served:
            turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hello"}]
            answer = await served.client.post("/v1/completions", json={"messages": turns, "model": "other"})
            assert answer.json()["content"] == "heard: Be brief.\nhello"
            assert answer.json()["model"] == "other"

    asyncio.run(main())


def test_pieces_come_as_events_that_end_with_done(serve: Serve) -> None:
    async def main() -> None:
        async with serve() as served:
            answer = await served.client.post("/v1/completions", json={"prompt": "hello", "stream": True})
        assert answer.headers["content-type"].startswith("text/event-stream")
        *pieces, last = events(answer.text)
        assert last == "[DONE]"
        read = [json.loads(piece) for piece in pieces]
        assert "".join(each["content"] for each in read) == "heard: hello"
        assert len(read) > 2
        assert read[-1]["finish_reason"] == "stop"
        assert read[-1]["usage"]["output_tokens"] > 0

    asyncio.run(main())


def test_a_failure_in_the_middle_of_pieces_is_an_event_and_no_done_follows(serve: Serve) -> None:
    async def main() -> None:
        async with serve(faults="cut:1.0") as served:
            answer = await served.client.post("/v1/completions", json={"prompt": "hello " * 20, "stream": True})
        assert answer.status_code == 200
        assert "event: error" in answer.text
        assert json.loads(events(answer.text)[-1])["error"]["code"] == 502
        assert "[DONE]" not in answer.text

    asyncio.run(main())


FAILURES = [
    ("bad_request", 400, "bad_request"),
    ("context_too_long", 400, "context_too_long"),
    ("not_found", 404, "not_found"),
    ("auth", 502, "upstream_auth"),
    ("quota", 502, "upstream_quota"),
    ("permission", 502, "upstream_permission"),
]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("kind", "status", "type_"), FAILURES)
def test_an_upstream_failure_has_an_honest_status_and_tells_nothing_of_the_upstream(
    serve: Serve, kind: str, status: int, type_: str, stream: bool
) -> None:
    async def main() -> None:
        async with serve(faults=f"{kind}:1.0") as served:
            answer = await served.client.post("/v1/completions", json={"prompt": "hello", "stream": stream})
        assert answer.status_code == status
        assert answer.json()["error"]["type"] == type_
        assert answer.json()["error"]["request_id"] == answer.headers["x-request-id"]
        assert "sk-upstream" not in answer.text + str(answer.headers)
        assert not [name for name in answer.headers if "ratelimit" in name or name.startswith("openai")]

    asyncio.run(main())


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"prompt": "a", "messages": [{"role": "user", "content": "a"}]},
        {"prompt": "a", "temperature": 3},
        {"prompt": "a", "priority": 4},
        {"prompt": "a", "max_tokens": 0},
        {"prompt": "a", "nonsense": 1},
        {"messages": []},
        {"messages": [{"role": "tool", "content": "a"}]},
    ],
)
def test_a_wrong_request_is_named_and_nothing_is_sent(serve: Serve, body: dict[str, Any]) -> None:
    async def main() -> None:
        async with serve() as served:
            answer = await served.client.post("/v1/completions", json=body)
            assert answer.status_code == 422
            assert answer.json()["error"]["type"] == "invalid_request"
            assert served.simulator.requests == 0

    asyncio.run(main())


def test_a_batch_comes_back_in_order_with_failures_in_their_places(serve: Serve) -> None:
    async def main() -> None:
        async with serve(faults="bad_request:0.3") as served:
            prompts = [f"row {n}" for n in range(40)]
            answer = await served.client.post("/v1/completions/batch", json={"prompts": prompts, "max_concurrency": 4})
        body = answer.json()
        assert [row["index"] for row in body["results"]] == list(range(40))
        good = [row for row in body["results"] if row["status"] == "ok"]
        bad = [row for row in body["results"] if row["status"] == "error"]
        assert all(row["content"] == f"heard: row {row['index']}" for row in good)
        assert all(row["error"]["code"] == 400 and row["content"] is None for row in bad)
        assert body["success_count"] == len(good) > 0
        assert body["error_count"] == len(bad) > 0
        assert body["avg_latency_ms"] == pytest.approx(sum(row["latency_ms"] for row in good) / len(good))
        assert body["total_time_ms"] > 0

    asyncio.run(main())


def test_no_more_of_a_batch_than_it_says_is_at_work(serve: Serve) -> None:
    async def main() -> None:
        async with serve(physics=Physics(ttft=0.01, itl=0.0, jitter=0.0, rtt=0.0), lab={"concurrency": 50}) as served:
            most = 0

            async def watch() -> None:
                nonlocal most
                while True:
                    most = max(most, served.app.state.desk.in_flight)
                    await asyncio.sleep(0)

            watching = asyncio.ensure_future(watch())
            body = {"prompts": [f"row {n}" for n in range(12)], "max_concurrency": 3}
            answer = await served.client.post("/v1/completions/batch", json=body)
            watching.cancel()
        assert answer.json()["success_count"] == 12
        assert most == 3

    asyncio.run(main())


def test_a_client_that_leaves_ends_its_upstream_request(serve: Serve) -> None:
    async def main() -> None:
        async with serve(physics=Physics(ttft=100.0)) as served:
            asking = asyncio.ensure_future(post_until_gone(served, {"prompt": "hello"}))
            while served.app.state.desk.in_flight < 1:
                await asyncio.sleep(0)
            asking.cancel()
            while served.app.state.desk.in_flight or served.app.state.desk.pending:
                await asyncio.sleep(0)
            assert served.simulator.stats()["received"] == 1

    asyncio.run(main())


async def post_until_gone(served: Served, body: dict[str, Any]) -> httpx.Response:
    return await served.client.post("/v1/completions", json=body)


def test_a_deadline_is_a_504_and_ends_the_upstream_request(serve: Serve) -> None:
    async def main() -> None:
        async with serve(physics=Physics(ttft=100.0)) as served:
            answer = await served.client.post("/v1/completions", json={"prompt": "hello", "timeout": 0.05})
            assert answer.status_code == 504
            assert answer.json()["error"]["type"] == "deadline"
            assert served.app.state.desk.in_flight == 0

    asyncio.run(main())


def test_a_full_service_says_when_to_come_again(serve: Serve) -> None:
    async def main() -> None:
        async with serve(max_pending=5) as served:
            answer = await served.client.post("/v1/completions/batch", json={"prompts": ["a"] * 6})
            assert answer.status_code == 429
            assert int(answer.headers["retry-after"]) >= 1
            assert served.simulator.requests == 0
            small = await served.client.post("/v1/completions/batch", json={"prompts": ["a"] * 5})
            assert small.json()["success_count"] == 5

    asyncio.run(main())
