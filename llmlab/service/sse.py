"""Server-sent events: one response, written as its events come.

the client reads slowly      nothing more is read from its upstream; after `stall` seconds without a byte taken it is
dropped, so that it does not hold a place for ever
the client is gone           the events' generator is closed, and with it the upstream request
the service ends             likewise
"""

import asyncio
import json
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from llmlab.service.desk import Desk, end_all, until_disconnected

PING = 15.0
"""Seconds of silence after which a comment is sent, so that boxes on the way keep the connection."""
DONE = b"data: [DONE]\n\n"


def event(data: Any, *, name: str | None = None, key: object = None) -> bytes:
    """One event, its data as JSON."""
    head = "".join(f"{field}: {value}\n" for field, value in (("event", name), ("id", key)) if value is not None)
    return f"{head}data: {json.dumps(data, ensure_ascii=False, separators=(',', ':'))}\n\n".encode()


class EventStream(Response):
    """Sends events while they are made.

    Args:
        events: Makes them; it is closed at the end, however that comes.
        desk: The service's.
        ping: Whether silence may last, so that it is filled with comments; such a stream ends when the service is
            about to, the others when it does.
        on_end: Called when it is over, however.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        events: AsyncGenerator[bytes, None],
        desk: Desk,
        *,
        ping: bool = False,
        on_end: Callable[[], object] = bool,
    ) -> None:
        super().__init__(headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._events, self._desk, self._ping, self._on_end = events, desk, ping, on_end

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002  ASGI's shape
        """Send, as ASGI wants it."""
        tasks = [
            asyncio.ensure_future(self._send(send)),
            asyncio.ensure_future(until_disconnected(receive)),
            asyncio.ensure_future((self._desk.draining if self._ping else self._desk.over).wait()),
        ]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            await end_all(*tasks)
            await self._events.aclose()
            self._on_end()
        await _close(send)

    async def _send(self, send: Send) -> None:
        async def put(chunk: bytes) -> None:
            async with asyncio.timeout(self._desk.settings.stall):
                await send({"type": "http.response.body", "body": chunk, "more_body": True})

        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        if not self._ping:
            async with aclosing(self._events) as events:
                async for chunk in events:
                    await put(chunk)
            return
        await self._send_with_pings(put)

    async def _send_with_pings(self, put: Callable[[bytes], Any]) -> None:
        following = asyncio.ensure_future(anext(self._events, None))
        try:
            while True:
                done, _ = await asyncio.wait({following}, timeout=PING)
                if not done:
                    await put(b": still here\n\n")
                elif (chunk := following.result()) is None:
                    return
                else:
                    await put(chunk)
                    following = asyncio.ensure_future(anext(self._events, None))
        finally:
            await end_all(following)


async def _close(send: Send) -> None:
    try:
        await send({"type": "http.response.body", "body": b"", "more_body": False})
    except (OSError, RuntimeError):  # the client is gone already
        return
