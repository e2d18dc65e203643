"""The simulated provider as an httpx transport: in process, no socket, virtual time on a virtual loop.

What a real transport would raise is raised here: `ReadError` for a reset, `RemoteProtocolError` for a
connection closed early, `ReadTimeout` when no byte comes for as long as the request's read timeout says.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Any

import httpx

from llmlab.sim.batches import BatchPace
from llmlab.sim.faults import Faults
from llmlab.sim.formed import Structured
from llmlab.sim.physics import Change, Physics
from llmlab.sim.script import Body
from llmlab.sim.wire import Ask, Broken
from llmlab.sim.world import World
from llmlab.types import JSON

_ENDINGS: dict[tuple[str, bool], tuple[type[httpx.TransportError], str]] = {
    ("reset", False): (httpx.ReadError, ""),
    ("reset", True): (httpx.ReadError, ""),
    ("cut", False): (httpx.RemoteProtocolError, "Server disconnected without sending a response."),
    ("cut", True): (
        httpx.RemoteProtocolError,
        "peer closed connection without sending complete message body (incomplete chunked read)",
    ),
}


class Simulator(httpx.AsyncBaseTransport):
    """A provider that answers in both dialects and misbehaves on request.

    Serves any host; what counts is the path's end: `/chat/completions`, `/messages`, `/models`,
    `/messages/count_tokens`, and the paths of both Batch APIs.

    Args:
        seed: Decides all answers, faults and delays.
        physics: Speed, capacity and rate limits. None: a decent hosted API without limits.
        faults: What goes wrong. None: nothing.
        keys: Keys that are let in. None: any, or no key at all.
        models: Models that exist. None: any name, and `llmlab.sim.aside.MODELS` are listed.
        say: What to answer, instead of made-up English; `max_tokens` and stop texts still cut it.
        changes: What becomes of the physics while it runs: `Change(60, Physics(slots=8))` a minute after the first
            request.
        batches: How fast batches go, and their limits. None: 50 rows a second, the real limits.
        structured: What is made of a JSON schema to which answers are to be held: see `llmlab.sim.formed`.
    """

    def __init__(
        self,
        *,
        seed: int = 0,
        physics: Physics | None = None,
        faults: Faults | None = None,
        keys: Iterable[str] | None = None,
        models: Iterable[str] | None = None,
        say: Callable[[Ask], str] | None = None,
        changes: Iterable[Change] = (),
        batches: BatchPace | None = None,
        structured: Structured = "json_schema",
    ) -> None:
        self.world = World(
            seed=seed,
            physics=physics,
            faults=faults,
            keys=keys,
            models=models,
            say=say,
            changes=changes,
            batches=batches,
            structured=structured,
        )

    def fresh(self, *, seed: int | None = None) -> "Simulator":
        """Make another one with the same settings and no past; `seed` None: the same answers, faults and delays."""
        old = self.world
        return Simulator(
            seed=old.seed if seed is None else seed,
            physics=old.physics,
            faults=old.faults,
            keys=old.keys,
            models=old.models,
            say=old.say,
            changes=old.changes,
            batches=old.pace,
            structured=old.structured,
        )

    @property
    def requests(self) -> int:
        """Completions asked for since the simulator was made, refused and broken ones included."""
        return self.world.tally.received

    def stats(self) -> JSON:
        """Give the provider's own counts; see `llmlab.sim.tally.Tally`."""
        return self.world.stats()

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Answer one request, as `httpx.AsyncClient` asks a transport to."""
        body = await request.aread()
        limit = request.extensions.get("timeout", {}).get("read")
        handling = self.world.handle(
            request.method, request.url.path, request.headers, body, request.url.query.decode()
        )
        response = await _within(limit, handling, request)
        found = response.body
        stream = httpx.ByteStream(found) if isinstance(found, bytes) else _Stream(found, limit, request)
        extensions = {"http_version": b"HTTP/1.1"}
        return httpx.Response(
            response.status, headers=response.headers, stream=stream, extensions=extensions, request=request
        )


class _Stream(httpx.AsyncByteStream):
    """A body on its way to the client."""

    def __init__(self, body: Body, limit: float | None, request: httpx.Request) -> None:
        self._body = body
        self._limit = limit
        self._request = request

    async def __aiter__(self) -> AsyncIterator[bytes]:
        chunks = aiter(self._body)
        while True:
            try:
                chunk = await _within(self._limit, anext(chunks), self._request)
            except StopAsyncIteration:
                return
            yield chunk

    async def aclose(self) -> None:
        await self._body.aclose()


async def _within(limit: float | None, awaitable: Any, request: httpx.Request) -> Any:
    """Await something of the server's as the client's socket would see it."""
    try:
        if limit is None:
            return await awaitable
        async with asyncio.timeout(limit):
            return await awaitable
    except TimeoutError:
        raise httpx.ReadTimeout("", request=request) from None
    except Broken as broken:
        raise ending(broken, request) from None


def ending(broken: Broken, request: httpx.Request | None = None) -> httpx.TransportError:
    """What httpx would raise for a connection that ends like this."""
    error, text = _ENDINGS[broken.how, broken.begun]
    return error(text, request=request)
