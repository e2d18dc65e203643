"""The simulator on a loopback socket: real bytes, real resets, real early closes."""

import asyncio
import io
import os
import signal
from collections.abc import Awaitable, Callable
from typing import Any

import aiohttp
import orjson
import pytest

from llmlab.sim.faults import Faults
from llmlab.sim.physics import Physics
from llmlab.sim.server import Server, run_server, serve
from llmlab.sim.transport import Simulator
from llmlab.sim.wire import Ask

CHAT, MESSAGES = "/v1/chat/completions", "/v1/messages"


def body(**fields: Any) -> bytes:
    return orjson.dumps({"model": "m", "max_tokens": 40, "messages": [{"role": "user", "content": "Hello"}]} | fields)


def serving(main: Callable[[Server], Awaitable[Any]], **simulator: Any) -> Any:
    async def entry() -> Any:
        server = await serve(Simulator(**{"physics": Physics.instant()} | simulator))
        try:
            async with asyncio.timeout(20):
                return await main(server)
        finally:
            await server.aclose()

    return asyncio.run(entry())


def head(path: str, content: bytes) -> bytes:
    lines = [
        f"POST {path} HTTP/1.1",
        "Host: sim",
        "anthropic-version: 2023-06-01",
        f"Content-Length: {len(content)}",
    ]
    return "\r\n".join([*lines, "", ""]).encode()


async def raw(
    server: Server, path: str = CHAT, content: bytes | None = None, *, until: bytes = b"nothing else"
) -> tuple[bytes, BaseException | None]:
    """Post over a bare socket; give the bytes up to `until` or the end, and the error that ended it."""
    content = body() if content is None else content
    reader, writer = await asyncio.open_connection(server.host, server.port)
    writer.write(head(path, content) + content)
    got, error = b"", None
    try:
        while until not in got and (chunk := await reader.read(65536)):
            got += chunk
    except ConnectionError as broken:
        error = broken
    writer.close()
    return got, error


def fails(kind: str, content: bytes | None = None, path: str = CHAT) -> tuple[bytes, BaseException | None]:
    found = serving(lambda server: raw(server, path, content), faults=Faults({kind: 1.0}, stall=0.02))
    assert isinstance(found, tuple)
    return found


def test_a_reset_is_a_reset_and_a_hangup_is_none() -> None:
    got, error = fails("reset")
    assert (got, type(error)) == (b"", ConnectionResetError)
    assert fails("hangup") == (b"", None)
    assert fails("stall") == (b"", None)


@pytest.mark.parametrize("kind", ["cut", "stall_midway"])
def test_a_cut_stream_lacks_its_last_chunk(kind: str) -> None:
    got, error = fails(kind, body(stream=True))
    assert error is None
    assert b"Transfer-Encoding: chunked" in got
    assert not got.endswith(b"0\r\n\r\n")


def test_a_cut_plain_answer_is_shorter_than_announced() -> None:
    top, _, rest = fails("cut")[0].partition(b"\r\n\r\n")
    announced = next(line for line in top.lower().split(b"\r\n") if line.startswith(b"content-length"))
    assert 0 < len(rest) < int(announced.split(b":")[1])


def test_a_reset_midway_comes_as_reset() -> None:
    assert isinstance(fails("reset_midway", body(stream=True))[1], ConnectionResetError)


@pytest.mark.parametrize("stream", [False, True])
def test_a_silent_cut_has_neither_length_nor_chunks(*, stream: bool) -> None:
    got, error = fails("cut_silent", body(stream=stream))
    top, _, rest = got.partition(b"\r\n\r\n")
    assert error is None
    assert b"content-length" not in top.lower()
    assert b"chunked" not in top
    assert b"Connection: close" in top
    assert rest
    assert b"[DONE]" not in rest


def test_one_connection_serves_many_requests() -> None:
    async def main(server: Server) -> list[bytes]:
        reader, writer = await asyncio.open_connection(server.host, server.port)
        heads = []
        for kind in (body(), body(stream=True), body(max_tokens=0), body()):
            writer.write(head(CHAT, kind) + kind)
            got = await reader.readuntil(b"\r\n\r\n")
            heads.append(got.split(b"\r\n")[0])
            if b"chunked" in got:
                await reader.readuntil(b"\r\n0\r\n\r\n")
            else:
                await reader.readexactly(int(got.lower().split(b"content-length: ")[1].split(b"\r\n")[0]))
        writer.close()
        return heads

    ok = b"HTTP/1.1 200 OK"
    assert serving(main) == [ok, ok, b"HTTP/1.1 400 Bad Request", ok]


def test_the_server_counts_its_own_requests() -> None:
    async def main(server: Server) -> Any:
        async with aiohttp.ClientSession() as session:
            for path in (CHAT, MESSAGES, "/v1/models"):
                method = "GET" if path.endswith("models") else "POST"
                async with session.request(method, server.base_url + path, data=body()) as response:
                    await response.read()
            async with session.get(f"{server.base_url}/sim/stats") as response:
                return await response.json()

    found = serving(main)
    assert found["received"] == 2
    assert found["by_status"] == {"200": 1, "400": 1}  # the Anthropic request came without its version


def test_a_stream_arrives_piece_by_piece() -> None:
    async def main(server: Server) -> int:
        loop, pieces = asyncio.get_running_loop(), set()
        async with (
            aiohttp.ClientSession() as session,
            session.post(server.base_url + CHAT, data=body(stream=True)) as response,
        ):
            async for _ in response.content.iter_any():
                pieces.add(round(loop.time(), 3))
        return len(pieces)

    assert serving(main, physics=Physics.instant(itl=0.005)) > 10


def test_a_client_that_goes_away_frees_its_slot() -> None:
    async def main(server: Server) -> None:
        reader, writer = await asyncio.open_connection(server.host, server.port)
        content = body(stream=True)
        writer.write(head(CHAT, content) + content)
        await reader.readuntil(b"data: ")
        assert server.simulator.stats()["in_flight"] == 1
        writer.close()
        await writer.wait_closed()
        got, _ = await raw(server, content=body(max_tokens=1, stream=True), until=b"[DONE]")
        assert got.startswith(b"HTTP/1.1 200")

    serving(main, physics=Physics.instant(slots=1, itl=1000.0))


@pytest.mark.parametrize("stream", [False, True])
def test_closing_the_server_ends_requests_under_way(*, stream: bool) -> None:
    async def main() -> tuple[bytes, int]:
        thinking = asyncio.Event()

        def say(_: Ask) -> str:
            thinking.set()
            return "some words"

        ttft = 0.0 if stream else 1000.0
        server = await serve(Simulator(physics=Physics.instant(itl=1000.0, ttft=ttft), say=say))
        asking = asyncio.create_task(raw(server, content=body(stream=stream), until=b"data: "))
        await (asking if stream else thinking.wait())
        async with asyncio.timeout(5):
            await server.aclose()
        return (await asking)[0], server.simulator.stats()["in_flight"]

    got, left = asyncio.run(main())
    assert (b"data: " in got) == stream
    assert left == 0


def test_a_large_prompt_is_read_whole() -> None:
    async def main(server: Server) -> Any:
        large = orjson.dumps({"model": "m", "messages": [{"role": "user", "content": "word " * 600_000}]})
        async with (
            aiohttp.ClientSession() as session,
            session.post(server.base_url + CHAT, data=io.BytesIO(large)) as response,
        ):
            return (await response.json())["usage"]["prompt_tokens"]

    assert serving(main, physics=Physics.instant(context=10_000_000)) > 600_000


def test_hosts_other_than_loopback_are_refused_unless_told() -> None:
    async def main() -> str:
        for host in ("0.0.0.0", "192.168.1.1", "example.org", ""):  # noqa: S104  it is refused
            with pytest.raises(ValueError, match="loopback"):
                await serve(Simulator(), host)
        server = await serve(Simulator(), "0.0.0.0", anywhere=True)  # noqa: S104  for the moment of this test
        await server.aclose()
        await server.aclose()
        return server.base_url

    assert asyncio.run(main()).startswith("http://0.0.0.0:")


def test_a_port_in_use_is_an_error_that_leaves_nothing_open() -> None:
    async def main(server: Server) -> None:
        with pytest.raises(OSError, match="in use"):
            await serve(Simulator(), port=server.port)

    serving(main)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_command_announces_both_dialects_and_ends_at_a_signal(number: signal.Signals) -> None:
    said: list[str] = []

    def announce(line: str) -> None:
        said.append(line)
        if len(said) == 2:
            asyncio.get_running_loop().call_soon(os.kill, os.getpid(), number)

    async def main() -> None:
        async with asyncio.timeout(10):
            await run_server(Simulator(), announce=announce)

    asyncio.run(main())
    assert said[0].endswith("/v1")
    assert said[1].startswith("simulated provider, Anthropic dialect: http://127.0.0.1:")
