"""Over a real socket: clients that leave, that do not read, that do not finish what they say; and the end."""

import asyncio
import socket
from typing import Any

import httpx
import pytest

import llmlab
from llmlab.service import sockets
from llmlab.service.server import serving
from llmlab.sim import Physics, Simulator
from tests.service.sockets import Live, hang_up, live, post

SLOW = Physics(ttft=0.0, itl=0.05, jitter=0.0, rtt=0.0, reply_tokens=5000.0)
NEVER = Physics(ttft=1000.0)
BATCH = {"prompts": [f"row {n}" for n in range(20)]}
STREAM = {"prompt": "hello", "stream": True}
CHAT = {"messages": [{"role": "user", "content": "hello"}], "stream": True}


@pytest.mark.parametrize(
    ("path", "body", "physics"),
    [
        ("/v1/completions", {"prompt": "hello"}, NEVER),
        ("/v1/completions/batch", BATCH, NEVER),
        ("/v1/completions", STREAM, NEVER),
        ("/v1/completions", STREAM, SLOW),
        ("/v1/chat/completions", CHAT, SLOW),
    ],
)
def test_a_client_that_hangs_up_ends_its_upstream_requests(path: str, body: dict[str, Any], physics: Physics) -> None:
    async def main() -> None:
        async with live(physics=physics, say=None) as served:
            reader, writer = await post(served, path, body)
            if physics is SLOW:
                await reader.readuntil(b"data: ")
            while not served.upstream:
                await asyncio.sleep(0.005)
            await hang_up(writer)
            async with asyncio.timeout(20):
                await served.idle()
            assert served.simulator.stats()["by_status"].get("200", 0) <= 1, "nothing was answered to its end"

    asyncio.run(main())


FLOOD = "word " * 150_000


@pytest.mark.parametrize(("path", "body"), [("/v1/completions", STREAM), ("/v1/chat/completions", CHAT)])
def test_a_client_that_does_not_read_holds_its_upstream_back_and_is_dropped(path: str, body: dict[str, Any]) -> None:
    async def main() -> None:
        async with live(say=lambda _: FLOOD, stall=1.0) as served:
            _, writer = await post(served, path, body)
            while not served.upstream:
                await asyncio.sleep(0.005)
            async with asyncio.timeout(30):
                await served.idle()
            written = served.simulator.stats()["tokens"]["output"]
            assert written < 150_000 / 2, "the upstream was read no faster than the client took it"
            await hang_up(writer)

    asyncio.run(main())


def test_a_client_that_does_not_read_a_whole_answer_is_dropped_too() -> None:
    async def main() -> None:
        async with live(say=lambda _: FLOOD * 10, stall=0.3) as served:
            reader, writer = await post(served, "/v1/completions", {"prompt": "hello"})
            async with asyncio.timeout(30):
                while not served.simulator.requests:
                    await asyncio.sleep(0.005)
                await served.idle()
                while server_connections(served):
                    await asyncio.sleep(0.005)
                assert len(await _read_to_the_end(reader)) < len(FLOOD) * 10
            await hang_up_quietly(writer)

    asyncio.run(main())


def server_connections(served: Live) -> int:
    return len(served.running.server.server_state.connections)


async def _read_to_the_end(reader: asyncio.StreamReader) -> bytes:
    read = b""
    try:
        while piece := await reader.read(2**20):
            read += piece
    except ConnectionError:
        return read
    return read


async def hang_up_quietly(writer: asyncio.StreamWriter) -> None:
    writer.close()
    await asyncio.wait([asyncio.ensure_future(writer.wait_closed())])


def test_who_sends_half_a_head_or_half_a_body_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sockets, "HEAD", 0.2)

    async def main() -> None:
        async with live(stall=0.3) as served:
            reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
            writer.write(b"POST /v1/completions HTTP/1.1\r\nHost: 127")
            async with asyncio.timeout(20):
                assert await _read_to_the_end(reader) == b""
            await hang_up_quietly(writer)
            reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
            writer.write(b"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 100\r\n\r\n{")
            async with asyncio.timeout(20):
                assert b" 408 " in await reader.readline()
            await hang_up_quietly(writer)

    asyncio.run(main())


def test_the_end_waits_for_what_is_at_work_and_tells_who_only_looks_on() -> None:
    async def main() -> None:
        async with httpx.AsyncClient(timeout=30) as client:
            async with live(physics=Physics(ttft=0.5, itl=0.0, jitter=0.0, rtt=0.0)) as served:
                url = served.running.url
                watching = asyncio.ensure_future(client.get(f"{url}/v1/metrics/stream"))
                asking = asyncio.ensure_future(client.post(f"{url}/v1/completions", json={"prompt": "hello"}))
                while not served.upstream:
                    await asyncio.sleep(0.005)
            assert (await asking).json()["content"] == "heard: hello"
            assert (await watching).status_code == 200

    asyncio.run(main())


def test_what_is_at_work_longer_than_the_grace_is_told_so() -> None:
    async def main() -> None:
        async with httpx.AsyncClient(timeout=30) as client:
            async with live(physics=NEVER, grace=0.2) as served:
                plain = asyncio.ensure_future(client.post(f"{served.running.url}/v1/completions", json={"prompt": "a"}))
                while not served.upstream:
                    await asyncio.sleep(0.005)
            assert (await plain).status_code == 503
            assert (await plain).json()["error"]["type"] == "shutting_down"
            assert served.upstream == 0
            async with live(physics=SLOW, say=None, grace=0.2) as served:
                url = served.running.url
                own = asyncio.ensure_future(client.post(f"{url}/v1/completions", json=STREAM))
                chat = asyncio.ensure_future(client.post(f"{url}/v1/chat/completions", json=CHAT))
                while served.upstream < 2:
                    await asyncio.sleep(0.005)
                await asyncio.sleep(0.2)
            for answer in (await own, await chat):
                assert "[DONE]" not in answer.text
                assert '"type":"shutting_down"' in answer.text.splitlines()[-2]

    asyncio.run(main())


def test_a_stream_that_passes_its_deadline_says_so() -> None:
    async def main() -> None:
        async with live(physics=SLOW, say=None) as served, httpx.AsyncClient(timeout=30) as client:
            answer = await client.post(f"{served.running.url}/v1/completions", json={**STREAM, "timeout": 0.4})
            assert answer.text.startswith('data: {"content"')
            assert '"code":504' in answer.text.splitlines()[-2]
            await served.idle()

    asyncio.run(main())


def test_another_address_than_loopback_needs_keys() -> None:
    async def main() -> None:
        async with llmlab.Lab("openai:m", api_key="k", transport=Simulator()) as lab:
            with pytest.raises(ValueError, match="keys are needed"):
                async with serving(lab, host="0.0.0.0"):  # noqa: S104  that is what is refused
                    pass

    asyncio.run(main())


def test_small_pieces_are_not_held_back_by_the_kernel() -> None:
    async def main() -> None:
        async with live(physics=NEVER) as served:
            _, writer = await post(served, "/v1/completions", STREAM)
            while not served.upstream:
                await asyncio.sleep(0.005)
            (connection,) = served.running.server.server_state.connections
            sock = connection.transport.get_extra_info("socket")
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            await hang_up(writer)

    asyncio.run(main())
