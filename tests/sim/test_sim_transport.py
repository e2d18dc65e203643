"""The simulator in process, in virtual time: delays, cancellation, limits, every fault as httpx shows it."""

import asyncio
import json
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest

from llmlab.clock import EPOCH, run_virtual
from llmlab.sim.faults import Faults
from llmlab.sim.kinds import KINDS
from llmlab.sim.physics import Physics
from llmlab.sim.transport import Simulator

CHAT, MESSAGES = "/v1/chat/completions", "/v1/messages"
VERSION = {"anthropic-version": "2023-06-01"}
STEADY: dict[str, Any] = {"rtt": 0.0, "jitter": 0.0, "load": 0.0, "prefill": float("inf"), "reply_sigma": 0.0}
PLACES = [(CHAT, False), (CHAT, True), (MESSAGES, False), (MESSAGES, True)]


def body(prompt: str = "Tell me about lighthouses", **fields: Any) -> dict[str, Any]:
    return {"model": "m", "max_tokens": 100, "messages": [{"role": "user", "content": prompt}]} | fields


def run(sim: Simulator, main: Callable[[httpx.AsyncClient], Awaitable[Any]]) -> Any:
    """Run `main` with a client of the simulator in virtual time; it may leave nothing in the machine."""

    async def entry() -> Any:
        async with httpx.AsyncClient(transport=sim, base_url="http://sim", headers=VERSION, timeout=1e6) as client:
            found = await main(client)
        stats = sim.stats()
        assert (stats["in_flight"], stats["queued"]) == (0, 0)
        assert sum(stats["by_status"].values()) == stats["received"]
        return found

    return run_virtual(entry)


def post(sim: Simulator, path: str = CHAT, **fields: Any) -> httpx.Response:
    async def main(client: httpx.AsyncClient) -> httpx.Response:
        return await client.post(path, json=body(**fields))

    found = run(sim, main)
    assert isinstance(found, httpx.Response)
    return found


def now() -> float:
    return asyncio.get_running_loop().time()


def test_a_plain_answer_takes_ttft_and_then_one_itl_per_further_token() -> None:
    async def main(client: httpx.AsyncClient) -> tuple[float, int]:
        begun = now()
        reply = await client.post(CHAT, json=body())
        return now() - begun, reply.json()["usage"]["completion_tokens"]

    physics = Physics(**STEADY | {"rtt": 0.05, "ttft": 0.5, "itl": 0.02})
    took, tokens = run(Simulator(physics=physics), main)
    assert took == pytest.approx(0.05 + 0.5 + 0.02 * (tokens - 1), abs=1e-3)


@pytest.mark.parametrize("path", [CHAT, MESSAGES])
def test_a_stream_brings_each_token_when_it_is_due(path: str) -> None:
    async def main(client: httpx.AsyncClient) -> list[float]:
        begun = now()
        async with client.stream("POST", path, json=body(stream=True, max_tokens=5)) as response:
            return [now() - begun async for _ in response.aiter_bytes()]

    seen = run(Simulator(physics=Physics(**STEADY | {"ttft": 0.5, "itl": 0.1})), main)
    assert seen == pytest.approx([0, 0.5, 0.6, 0.7, 0.8, 0.9], abs=1e-3)


def test_streams_and_plain_answers_say_the_same() -> None:
    sim = Simulator()
    plain = post(sim).json()["choices"][0]["message"]["content"]
    events = [line[6:] for line in post(sim, stream=True).text.splitlines() if line.startswith("data: {")]
    streamed = "".join(orjson.loads(event)["choices"][0]["delta"].get("content", "") for event in events)
    assert streamed == plain


def test_load_slows_everyone_and_the_line_makes_the_rest_wait() -> None:
    async def main(client: httpx.AsyncClient) -> list[float]:
        async def one(i: int) -> float:
            await client.post(CHAT, json=body(f"prompt {i}", max_tokens=1))
            return now()

        return sorted(await asyncio.gather(*(one(i) for i in range(6))))

    physics = Physics(**STEADY | {"slots": 2, "ttft": 1.0, "itl": 0.01, "load": 0.01})
    assert run(Simulator(physics=physics), main) == pytest.approx([2, 2, 4, 4, 6, 6], abs=0.01)


def test_closing_a_stream_early_frees_its_slot_at_once() -> None:
    async def main(client: httpx.AsyncClient) -> float:
        async with client.stream("POST", CHAT, json=body(stream=True)) as response:
            await anext(response.aiter_bytes())
        begun = now()
        await client.post(CHAT, json=body(max_tokens=1))
        return now() - begun

    physics = Physics(**STEADY | {"slots": 1, "ttft": 1.0, "itl": 10.0})
    assert run(Simulator(physics=physics), main) == pytest.approx(1.0, abs=1e-3)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("after", [0.01, 0.6, 1.2])
def test_a_cancelled_request_leaves_nothing_behind(after: float, *, stream: bool) -> None:
    async def main(client: httpx.AsyncClient) -> None:
        tasks = [asyncio.create_task(client.post(CHAT, json=body(f"{i}", stream=stream))) for i in range(3)]
        await asyncio.sleep(after)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    sim = Simulator(physics=Physics(**STEADY | {"slots": 2, "rtt": 0.5, "ttft": 0.5, "itl": 1.0}))
    run(sim, main)
    assert sim.requests == 3


def test_a_response_that_was_never_read_frees_its_slot_when_closed() -> None:
    async def main() -> int:
        sim = Simulator()
        request = httpx.Request("POST", f"http://sim{CHAT}", json=body(stream=True))
        response = await sim.handle_async_request(request)
        assert sim.stats()["in_flight"] == 1
        await response.aclose()
        return int(sim.stats()["in_flight"])

    assert run_virtual(main) == 0


@pytest.mark.parametrize("stream", [False, True])
def test_the_read_timeout_counts_silence_as_a_real_transport_does(*, stream: bool) -> None:
    async def main(client: httpx.AsyncClient) -> float:
        begun = now()
        with pytest.raises(httpx.ReadTimeout):
            await client.post(CHAT, json=body(stream=stream), timeout=2.0)
        return now() - begun

    assert run(Simulator(physics=Physics(**STEADY | {"ttft": 5.0})), main) == pytest.approx(2.0, abs=1e-3)


def test_a_slow_stream_that_never_falls_silent_meets_no_read_timeout() -> None:
    async def main(client: httpx.AsyncClient) -> float:
        reply = await client.post(CHAT, json=body(stream=True, max_tokens=10), timeout=2.0)
        assert "[DONE]" in reply.text
        return now()

    assert run(Simulator(physics=Physics(**STEADY | {"ttft": 1.0, "itl": 1.5})), main) > 10


EXPECTED: dict[str, tuple[type[Exception], str]] = {
    "reset": (httpx.ReadError, "^$"),
    "hangup": (httpx.RemoteProtocolError, "without sending a response"),
    "stall": (httpx.RemoteProtocolError, "without sending a response"),
    "reset_midway": (httpx.ReadError, "^$"),
    "cut": (httpx.RemoteProtocolError, "incomplete chunked read"),
    "stall_midway": (httpx.RemoteProtocolError, "incomplete chunked read"),
}


@pytest.mark.parametrize(("path", "stream"), PLACES)
@pytest.mark.parametrize("kind", EXPECTED)
def test_a_broken_connection_raises_what_httpx_raises(kind: str, path: str, *, stream: bool) -> None:
    error, text = EXPECTED[kind]
    with pytest.raises(error, match=text):
        post(Simulator(faults=Faults.only(kind)), path, stream=stream)


@pytest.mark.parametrize(("path", "stream"), PLACES)
@pytest.mark.parametrize("kind", ["stall", "stall_midway"])
def test_a_stall_is_silent_for_its_length(kind: str, path: str, *, stream: bool) -> None:
    async def main(client: httpx.AsyncClient) -> float:
        begun = now()
        with pytest.raises(httpx.RemoteProtocolError):
            await client.post(path, json=body(stream=stream), timeout=60)
        return now() - begun

    sim = Simulator(physics=Physics.instant(), faults=Faults({kind: 1.0}, stall=30))
    assert run(sim, main) == pytest.approx(30, abs=0.01)


STATUSES = {name: (429, 429) for name in KINDS if name.startswith("rate_limited")} | {
    "slow_down": (429, 429), "too_large_429": (429, 429), "quota": (429, 429), "billing": (402, 402),
    "too_large": (413, 413), "bad_request": (400, 400), "unsupported_param": (400, 400), "auth": (401, 401),
    "context_too_long": (400, 400), "content_filter": (400, 400), "permission": (403, 403),
    "not_found": (404, 404), "timeout": (408, 408), "conflict": (409, 409), "server_error": (500, 500),
    "unavailable": (503, 503), "overloaded": (503, 529), "gateway_timeout": (504, 504),
    "bad_gateway_html": (502, 502), "string_error": (503, 503), "array_error": (503, 503),
    "final_500": (500, 500),
}  # fmt: skip


def test_the_table_of_statuses_names_every_refusal() -> None:
    assert set(STATUSES) == {kind.name for kind in KINDS.values() if kind.family == "refusal"}


@pytest.mark.parametrize("kind", STATUSES)
@pytest.mark.parametrize("stream", [False, True])
def test_a_refusal_has_its_status_and_a_body_of_its_dialect(kind: str, *, stream: bool) -> None:
    sim = Simulator(faults=Faults.only(kind))
    chat, messages = post(sim, CHAT, stream=stream), post(sim, MESSAGES, stream=stream)
    assert (chat.status_code, messages.status_code) == STATUSES[kind]
    if kind not in ("bad_gateway_html", "string_error", "array_error"):
        assert set(chat.json()["error"]) == {"message", "type", "param", "code"}
        assert set(messages.json()) == {"type", "error", "request_id"}
        assert messages.json()["request_id"] == messages.headers["request-id"]
    assert sim.stats()["by_fault"] == {kind: 2}


@pytest.mark.parametrize("path", [CHAT, MESSAGES])
def test_a_429_without_hints_has_no_rate_headers_and_one_with_hints_has(path: str) -> None:
    def names(kind: str) -> set[str]:
        sim = Simulator(physics=Physics(rpm=60, tpm=6000), faults=Faults.only(kind))
        return {name for name in post(sim, path).headers if "ratelimit" in name or "retry-after" in name}

    assert names("rate_limited_text") == names("rate_limited_bare") == set()
    assert "retry-after" in names("rate_limited")
    assert len(names("rate_limited")) >= 7


def test_odd_error_bodies_are_as_odd_as_named() -> None:
    assert isinstance(post(Simulator(faults=Faults.only("string_error"))).json()["error"], str)
    assert "error" in post(Simulator(faults=Faults.only("array_error"))).json()[0]
    page = post(Simulator(faults=Faults.only("bad_gateway_html")))
    assert page.headers["content-type"] == "text/html"
    assert page.text.startswith("<html>")
    assert post(Simulator(faults=Faults.only("final_500"))).headers["x-should-retry"] == "false"


@pytest.mark.parametrize(("path", "stream"), PLACES)
def test_a_silent_cut_ends_without_an_error_and_without_the_protocols_end(path: str, *, stream: bool) -> None:
    reply = post(Simulator(faults=Faults.only("cut_silent")), path, stream=stream)
    assert reply.status_code == 200
    assert "content-length" not in reply.headers
    if stream:
        assert reply.content
        assert b"[DONE]" not in reply.content
        assert b'"finish_reason":"' not in reply.content
        assert b"message_stop" not in reply.content
        assert b'"stop_reason":"' not in reply.content
    else:
        with pytest.raises(json.JSONDecodeError):
            reply.json()


@pytest.mark.parametrize("path", [CHAT, MESSAGES])
def test_a_malformed_answer_cannot_be_parsed_although_its_length_is_right(path: str) -> None:
    sim = Simulator(faults=Faults.only("malformed"))
    plain = post(sim, path)
    assert int(plain.headers["content-length"]) == len(plain.content)
    with pytest.raises(json.JSONDecodeError):
        plain.json()
    data = [line[6:] for line in post(sim, path, stream=True).text.split("\n") if line.startswith("data: {")]
    broken = 0
    for each in data:
        try:
            orjson.loads(each)
        except orjson.JSONDecodeError:
            broken += 1
    assert broken == 1


@pytest.mark.parametrize("path", [CHAT, MESSAGES])
def test_an_error_in_a_stream_comes_with_status_200_and_is_the_last_event(path: str) -> None:
    reply = post(Simulator(faults=Faults.only("error_in_stream")), path, stream=True)
    last = reply.text.rstrip("\n").rsplit("\n", 1)[-1]
    assert reply.status_code == 200
    assert "error" in orjson.loads(last.removeprefix("data: "))
    assert "[DONE]" not in reply.text


@pytest.mark.parametrize(("path", "stream"), PLACES)
def test_200_without_an_answer(path: str, *, stream: bool) -> None:
    def of(kind: str) -> httpx.Response:
        reply = post(Simulator(faults=Faults.only(kind)), path, stream=stream)
        assert reply.status_code == 200
        return reply

    assert of("html_200").text.startswith("<html>")
    assert "error" in of("error_200").json()
    assert of("empty_body").content == b""
    assert "Tell" not in of("no_choices").text
    assert '"content":"' not in of("no_choices").text


def test_empty_and_refused_answers_say_so_in_the_reason() -> None:
    def reasons(kind: str) -> tuple[str, str, str]:
        sim = Simulator(faults=Faults.only(kind))
        choice = post(sim).json()["choices"][0]
        return (
            choice["message"]["content"],
            choice["finish_reason"],
            post(sim, MESSAGES).json()["stop_reason"],
        )

    assert reasons("empty") == ("", "stop", "end_turn")
    assert reasons("refused") == ("", "content_filter", "refusal")


def shape(kind: str, path: str) -> bytes:
    reply = post(Simulator(faults=Faults.only(kind)), path, stream=True)
    assert reply.status_code == 200
    return reply.content


@pytest.mark.parametrize("path", [CHAT, MESSAGES])
def test_byte_quirks_shape_the_stream_as_named(path: str) -> None:
    assert b"\n\n: ping\n\n" in shape("comments", path)
    assert shape("crlf", path).count(b"\r\n") == shape("crlf", path).count(b"\n")
    assert b"\n" not in shape("cr", path)
    assert b"data: " not in shape("no_space", path)
    assert shape("id_lines", path).startswith(b"id: 0\nretry: 3000\n")
    assert shape("bom", path).startswith(b"\xef\xbb\xbf")
    assert max(map(len, shape("big_line", path).split(b"\n"))) > 2_000_000
    assert not shape("no_final_blank", path).endswith(b"\n\n")
    assert shape("blank_lines", path).startswith(b"\n\n")


def test_anthropic_quirks_add_events() -> None:
    assert shape("pings", MESSAGES).count(b"event: ping") > 10
    assert b"event: content_block_rumour" in shape("unknown_events", MESSAGES)


def test_tiny_chunks_are_single_bytes() -> None:
    async def main(client: httpx.AsyncClient) -> set[int]:
        async with client.stream("POST", CHAT, json=body(stream=True)) as response:
            return {len(chunk) async for chunk in response.aiter_raw()}

    assert run(Simulator(faults=Faults.only("tiny_chunks")), main) == {1}


def test_slow_drip_takes_ten_times_as_long_per_token() -> None:
    async def main(client: httpx.AsyncClient) -> float:
        await client.post(CHAT, json=body(max_tokens=11))
        return now()

    physics = Physics(**STEADY | {"ttft": 1.0, "itl": 0.1})
    assert run(Simulator(physics=physics, faults=Faults.only("slow_drip")), main) == pytest.approx(11, abs=0.01)


def test_a_retry_draws_afresh_and_the_order_of_arrival_does_not_matter() -> None:
    def statuses(order: list[int]) -> dict[int, list[int]]:
        async def main(client: httpx.AsyncClient) -> dict[int, list[int]]:
            async def one(i: int) -> tuple[int, list[int]]:
                await asyncio.sleep(order.index(i))
                return i, [(await client.post(CHAT, json=body(f"prompt {i}"))).status_code for _ in range(4)]

            return dict(await asyncio.gather(*(one(i) for i in range(40))))

        found = run(Simulator(seed=5, faults=Faults.only("server_error", 0.5)), main)
        assert isinstance(found, dict)
        return found

    forwards = statuses(list(range(40)))
    assert forwards == statuses(list(range(39, -1, -1)))
    assert len({tuple(each) for each in forwards.values()}) > 8


def test_the_same_seed_gives_the_same_run_to_the_microsecond() -> None:
    def trace(seed: int) -> list[Any]:
        async def main(client: httpx.AsyncClient) -> list[Any]:
            async def one(i: int) -> tuple[float, str]:
                try:
                    text = (await client.post(CHAT, json=body(f"prompt {i}"))).text
                except httpx.TransportError as error:
                    text = repr(error)
                return now(), text

            return list(await asyncio.gather(*(one(i) for i in range(50))))

        return list(run(Simulator(seed=seed, faults=Faults.mixed(0.5)), main))

    assert trace(1) == trace(1)
    assert trace(1) != trace(2)


def test_an_outage_counts_from_the_first_request() -> None:
    async def main(client: httpx.AsyncClient) -> list[int]:
        await asyncio.sleep(100)
        found = []
        for _ in range(6):
            found.append((await client.post(CHAT, json=body())).status_code)
            await asyncio.sleep(1)
        return found

    sim = Simulator(physics=Physics.instant(), faults=Faults.outage(1.5, 2))
    assert run(sim, main) == [200, 200, 503, 503, 200, 200]


def test_requests_per_minute_are_limited_and_retry_after_is_enough() -> None:
    async def main(client: httpx.AsyncClient) -> None:
        replies = [await client.post(CHAT, json=body(f"{i}")) for i in range(61)]
        assert [reply.status_code for reply in replies] == [200] * 60 + [429]
        assert replies[0].headers["x-ratelimit-remaining-requests"] == "59"
        assert replies[0].headers["x-ratelimit-reset-requests"] == "1s"
        refused = replies[-1].json()["error"]
        assert (refused["type"], refused["code"]) == ("requests", "rate_limit_exceeded")
        assert "Limit 60, Used 60, Requested 1. Please try again in " in refused["message"]
        await asyncio.sleep(float(replies[-1].headers["retry-after"]))
        assert (await client.post(CHAT, json=body())).status_code == 200

    run(Simulator(physics=Physics.instant(rpm=60)), main)


def test_openai_charges_the_whole_of_max_tokens() -> None:
    async def main(client: httpx.AsyncClient) -> list[int]:
        return [(await client.post(CHAT, json=body(f"{i}", max_tokens=4000))).status_code for i in range(3)]

    assert run(Simulator(physics=Physics.instant(tpm=10_000)), main) == [200, 200, 429]


def test_anthropic_charges_the_output_that_was_written() -> None:
    async def main(client: httpx.AsyncClient) -> None:
        replies = [await client.post(MESSAGES, json=body(f"{i}", max_tokens=4000)) for i in range(3)]
        assert [reply.status_code for reply in replies] == [200, 200, 200]
        written = sum(reply.json()["usage"]["output_tokens"] for reply in replies)
        assert replies[-1].headers["anthropic-ratelimit-output-tokens-remaining"] == str(10_000 - written)

    run(Simulator(physics=Physics.instant(tpm=10_000)), main)


def test_anthropic_refuses_while_output_is_overdrawn() -> None:
    async def main(client: httpx.AsyncClient) -> None:
        first = await client.post(MESSAGES, json=body("go on", max_tokens=4000))
        assert first.json()["usage"]["output_tokens"] > 30
        second = await client.post(MESSAGES, json=body("go on", max_tokens=4000))
        assert second.status_code == 429
        assert "output tokens per minute" in second.json()["error"]["message"]
        await asyncio.sleep(float(second.headers["retry-after"]))
        assert (await client.post(MESSAGES, json=body("go on", max_tokens=1))).status_code == 200

    run(Simulator(physics=Physics.instant(tpm=30)), main)


def test_a_request_above_the_whole_minute_is_told_that_waiting_is_no_use() -> None:
    reply = post(Simulator(physics=Physics.instant(tpm=1000)), max_tokens=2000)
    assert reply.status_code == 429
    assert reply.json()["error"]["message"].startswith("Request too large for m ")
    assert "retry-after" not in reply.headers


def test_a_full_line_answers_overloaded() -> None:
    async def main(client: httpx.AsyncClient) -> list[int]:
        replies = await asyncio.gather(*(client.post(CHAT, json=body(f"{i}")) for i in range(5)))
        return sorted(reply.status_code for reply in replies)

    sim = Simulator(physics=Physics(**STEADY | {"slots": 1, "queue": 2}))
    assert run(sim, main) == [200, 200, 200, 503, 503]


@pytest.mark.parametrize("path", [CHAT, MESSAGES])
def test_a_prompt_beyond_the_context_is_refused(path: str) -> None:
    reply = post(Simulator(physics=Physics.instant(context=50)), path)
    assert reply.status_code == 400
    assert "maximum" in reply.json()["error"]["message"]


@pytest.mark.parametrize(
    "headers", [{"authorization": "Bearer good-key"}, {"x-api-key": "good-key"}, {"api-key": "good-key"}]
)
@pytest.mark.parametrize("path", [CHAT, MESSAGES, "/v1/models"])
def test_a_key_is_taken_from_each_of_the_known_headers(headers: dict[str, str], path: str) -> None:
    async def main(client: httpx.AsyncClient) -> list[int]:
        method = "GET" if path.endswith("models") else "POST"
        content = None if method == "GET" else orjson.dumps(body())
        bad = {name: value.replace("good", "bad") for name, value in headers.items()}
        return [
            (await client.request(method, path, content=content, headers=h)).status_code for h in (headers, bad, {})
        ]

    assert run(Simulator(keys=["good-key"]), main) == [200, 401, 401]


def test_a_wrong_key_is_not_repeated_in_full() -> None:
    async def main(client: httpx.AsyncClient) -> str:
        return (await client.post(CHAT, json=body(), headers={"authorization": "Bearer sk-very-secret-key-1234"})).text

    text = run(Simulator(keys=["good"]), main)
    assert "sk-***1234" in text
    assert "secret" not in text


def test_models_are_listed_in_each_dialect_and_unknown_ones_refused() -> None:
    async def main(client: httpx.AsyncClient) -> None:
        del client.headers["anthropic-version"]
        assert [each["id"] for each in (await client.get("/v1/models")).json()["data"]] == ["a", "b"]
        assert (await client.get("/v1/models/a")).json()["object"] == "model"
        assert (await client.get("/v1/models/c")).status_code == 404
        listed = (await client.get("/v1/models", headers=VERSION)).json()
        assert (listed["first_id"], listed["last_id"], listed["has_more"]) == ("a", "b", False)
        assert (await client.get("/v1/models/b", headers=VERSION)).json()["type"] == "model"
        assert (await client.post(CHAT, json=body())).json()["error"]["code"] == "model_not_found"
        assert (await client.post(CHAT, json=body(model="a"))).status_code == 200

    run(Simulator(models=["a", "b"]), main)


def test_other_paths_and_methods_have_their_statuses() -> None:
    async def main(client: httpx.AsyncClient) -> list[int]:
        paths = [
            ("GET", "/nothing"),
            ("GET", CHAT),
            ("GET", MESSAGES),
            ("GET", "/v1/messages/count_tokens"),
            ("POST", "/v1/embeddings"),
        ]
        return [(await client.request(method, path)).status_code for method, path in paths]

    assert run(Simulator(), main) == [404, 405, 405, 405, 404]


def test_tokens_are_counted_as_they_will_be_billed() -> None:
    async def main(client: httpx.AsyncClient) -> tuple[int, int]:
        request = {"model": "m", "messages": body()["messages"], "system": "Be brief"}
        counted = await client.post("/v1/messages/count_tokens", json=request)
        billed = await client.post(MESSAGES, json=body(system="Be brief"))
        return counted.json()["input_tokens"], billed.json()["usage"]["input_tokens"]

    sim = Simulator()
    counted, billed = run(sim, main)
    assert counted == billed
    assert sim.requests == 1


def test_the_statistics_agree_with_what_the_client_saw() -> None:
    async def main(client: httpx.AsyncClient) -> list[dict[str, int]]:
        replies = await asyncio.gather(*(client.post(CHAT, json=body(f"{i}")) for i in range(20)))
        return [reply.json()["usage"] for reply in replies]

    sim = Simulator()
    usages = run(sim, main)
    stats = sim.stats()
    assert sim.requests == stats["received"] == stats["max_in_flight"] == 20
    assert stats["by_status"] == {"200": 20}
    assert stats["tokens"]["input"] == sum(usage["prompt_tokens"] for usage in usages)
    assert stats["tokens"]["output"] == sum(usage["completion_tokens"] for usage in usages)


def test_tokens_of_broken_answers_are_counted_as_far_as_they_were_written() -> None:
    sim = Simulator(faults=Faults.only("cut"))
    with pytest.raises(httpx.RemoteProtocolError):
        post(sim, stream=True)
    whole = Simulator()
    post(whole, stream=True)
    assert 0 < sim.stats()["tokens"]["output"] < whole.stats()["tokens"]["output"]


def test_headers_identify_each_response_and_tell_the_virtual_date() -> None:
    sim = Simulator()
    chat, messages = post(sim), post(sim, MESSAGES)
    assert chat.headers["date"] == "Thu, 01 Jan 2026 00:00:00 GMT"
    assert chat.json()["created"] == int(EPOCH)
    assert chat.headers["x-request-id"].startswith("req_")
    assert int(chat.headers["openai-processing-ms"]) > 100
    assert messages.headers["request-id"].startswith("req_")
    assert "x-request-id" not in messages.headers


def test_a_scripted_answer_is_said_instead() -> None:
    sim = Simulator(say=lambda ask: f"you said {ask.text}")
    assert post(sim).json()["choices"][0]["message"]["content"] == "you said Tell me about lighthouses"


def test_a_simulator_may_be_used_on_one_loop_after_another() -> None:
    sim = Simulator(physics=Physics(rpm=1))
    assert [post(sim).status_code for _ in range(3)] == [200, 200, 200]
    assert sim.requests == 3


def test_the_transport_does_not_import_aiohttp() -> None:
    # past llmlab/__init__.py, which may import what it likes
    code = "import sys, types\n"
    code += "llmlab = sys.modules['llmlab'] = types.ModuleType('llmlab'); llmlab.__path__ = [sys.argv[1]]\n"
    code += "import llmlab.sim.transport; sys.exit('aiohttp' in sys.modules)"
    package = str(Path(__file__).parents[2] / "llmlab")
    subprocess.run([sys.executable, "-c", code, package], check=True)  # noqa: S603  our own code
