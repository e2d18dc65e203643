"""A service on a real socket of loopback, and clients that misbehave."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import llmlab
from llmlab.service.server import Running, serving
from llmlab.sim import Faults, Physics, Simulator
from tests.service.conftest import echo


@dataclass
class Live:
    """A service at work."""

    running: Running
    simulator: Simulator
    lab: llmlab.Lab

    @property
    def port(self) -> int:
        return int(self.running.url.rpartition(":")[2])

    @property
    def pending(self) -> int:
        return int(self.running.app.state.desk.pending)

    @property
    def upstream(self) -> int:
        return int(self.simulator.stats()["in_flight"])

    async def idle(self) -> None:
        while self.pending or self.upstream:
            await asyncio.sleep(0.005)


@asynccontextmanager
async def live(
    *, physics: Physics | None = None, faults: str = "", say: Any = echo, lab: dict[str, Any] | None = None, **more: Any
) -> AsyncIterator[Live]:
    simulator = Simulator(physics=physics or Physics.instant(), faults=Faults.parse(faults), say=say)
    own = llmlab.Lab("openai:m", api_key="sk-upstream-secret", transport=simulator, progress=False, **(lab or {}))
    async with own, serving(own, grace=more.pop("grace", 5.0), **more) as running:
        yield Live(running, simulator, own)


async def post(live_: Live, path: str, body: Any) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Send a request over a bare socket with a small receive buffer, and read nothing."""
    small = socket.socket()
    small.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    small.setblocking(False)  # noqa: FBT003  a name is not taken
    await asyncio.get_running_loop().sock_connect(small, ("127.0.0.1", live_.port))
    reader, writer = await asyncio.open_connection(sock=small, limit=1024)
    data = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: {len(data)}"
    writer.write(head.encode() + b"\r\n\r\n" + data)
    await writer.drain()
    return reader, writer


async def hang_up(writer: asyncio.StreamWriter) -> None:
    writer.close()
    await writer.wait_closed()
