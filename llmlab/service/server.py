"""The service on a socket: uvicorn, told early that the end is near, so that no open stream delays it."""

import asyncio
import contextlib
import ipaddress
import math
import socket
from collections.abc import AsyncIterator, Generator, Iterable
from dataclasses import dataclass
from types import FrameType
from typing import Any

import uvicorn
from fastapi import FastAPI

from llmlab.lab import Lab
from llmlab.progress import say
from llmlab.service import create_app
from llmlab.service.desk import Desk
from llmlab.service.sockets import impatient

BACKLOG = 2048
SEND_BUFFER = 2**17
"""Bytes that the kernel takes for a client that does not read; Linux takes twice as many, by itself millions."""
TICK = 0.005
"""Seconds between two looks whether the service has begun."""
LAST_WORDS = 5
"""Seconds that clients get to read why their requests have ended, when the grace is over."""
CONNECTIONS = 4096
"""At a time; the next ones get 503."""
IDLE = 75.0
"""Seconds for which an idle connection is kept: longer than clients' pools keep theirs, so that none meets its end."""


class _Server(uvicorn.Server):
    """Tells the service of a signal before connections are waited for."""

    def __init__(self, config: uvicorn.Config, desk: Desk, *, signals: bool) -> None:
        super().__init__(config)
        self._desk, self._signals = desk, signals

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Hear of signals, unless the process is somebody else's."""
        with super().capture_signals() if self._signals else contextlib.nullcontext():
            yield

    async def begun(self, over: "asyncio.Future[None]") -> None:
        """Return when it listens. Raises what it failed with."""
        while not self.started:
            done, _ = await asyncio.wait({over}, timeout=TICK)
            if done:
                over.result()
                return

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002  uvicorn's shape
        """Take the first signal as a wish to end, a second one as an order; neither is a failure of the program."""
        self.force_exit = self.should_exit
        self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Let the service end what is at work, in its own words, while uvicorn waits for the connections."""
        ending = asyncio.ensure_future(self._desk.drain())
        await super().shutdown(sockets)
        ending.cancel()


@dataclass(frozen=True)
class Running:
    """A service at work."""

    url: str
    """Where it answers: http://127.0.0.1:8000; OpenAI clients add /v1."""
    app: FastAPI
    """Made by `llmlab.service.create_app`."""
    server: uvicorn.Server
    """The server at work."""
    over: "asyncio.Future[None]"
    """Done when it has ended."""


@contextlib.asynccontextmanager
async def serving(
    lab: Lab,
    *,
    host: str = "127.0.0.1",
    port: int = 0,
    grace: float = 30.0,
    signals: bool = False,
    middleware: Iterable[Any] = (),
    **settings: Any,
) -> AsyncIterator[Running]:
    """Serve a lab while the block runs, on the loop on which the lab lives, as in a notebook or a test.

    Args:
        lab: Answers; stays yours to close.
        host: Address to listen on; one that is not loopback needs `keys`.
        port: 0: any free one.
        grace: Seconds that requests at work get when the service ends.
        signals: Whether SIGINT and SIGTERM end it.
        middleware: Layers to be put around the app, the outermost last.
        settings: As `llmlab.service.create_app` takes them.

    Raises:
        TypeError, ValueError: a setting is not usable.
        OSError: the address is taken.
        RuntimeError: its folder is in use by another service.
    """
    if not settings.get("keys") and not _is_loopback(host):
        raise ValueError(f"host {host} is not loopback, so keys are needed")
    app = create_app(lab, grace=grace, **settings)
    for each in middleware:
        app.add_middleware(each)
    server = _Server(_config(app, grace), app.state.desk, signals=signals)
    with _listen(host, port) as listening:
        await app.state.archive.open()  # here, so that its trouble is told in its own words
        over = asyncio.ensure_future(server.serve([listening]))
        await server.begun(over)
        shown = f"[{host}]" if ":" in host else host
        try:
            yield Running(f"http://{shown}:{listening.getsockname()[1]}", app, server, over)
        finally:
            server.should_exit = True
            await over


async def run_app(lab: Lab, **settings: Any) -> None:
    """Serve a lab until SIGINT or SIGTERM, as `serving`, and say where."""
    async with serving(lab, signals=True, **settings) as running:
        say(f"llmlab: {lab.model} on {running.url}, Ctrl-C ends it")
        await running.over


def _config(app: FastAPI, grace: float) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        access_log=False,
        log_config=None,
        log_level="warning",
        server_header=False,
        proxy_headers=False,
        lifespan="on",
        http=impatient(app.state.desk.settings.stall),
        ws="none",
        limit_concurrency=CONNECTIONS,
        timeout_keep_alive=round(IDLE),
        timeout_graceful_shutdown=math.ceil(grace) + LAST_WORDS,
        backlog=BACKLOG,
    )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _listen(host: str, port: int) -> socket.socket:
    """A listening socket; made here, so that the port is known before anything is said of it."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # asyncio turns Nagle's algorithm off (TCP_NODELAY) only where the protocol is named: 40 ms for each first piece
    listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
        listening.bind((host, port))
    except OSError:
        listening.close()
        raise
    return listening
