"""Server-sent events: one response, written as its events come.

the client reads slowly      nothing more is read from its upstream; after `stall` seconds without a byte taken it is
dropped, so that it does not hold a place for ever
the client is gone           the events' generator is closed, and with it the upstream request
the service ends, or the     likewise, and the client is told: a stream that ends well ends with [DONE], or its `end`
deadline has passed
"""

import asyncio
from collections.abc import AsyncGenerator, Callable
from typing import Any

import orjson
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from llmlab.service.desk import Desk, end_all, until_disconnected
from llmlab.service.faults import ENDING, Fault, late

PING = 15.0
"""Seconds of silence after which a comment is sent, so that boxes on the way keep the connection."""
DONE = b"data: [DONE]\n\n"


def event(data: Any, *, name: str | None = None, key: object = None) -> bytes:
    """One event, its data as JSON."""
    head = "".join(f"{field}: {value}\n" for field, value in (("event", name), ("id", key)) if value is not None)
    return b"%bdata: %b\n\n" % (head.encode(), orjson.dumps(data))


class EventStream(Response):
    """Sends events while they are made.

    Args:
        events: Makes them; it is closed at the end, however that comes.
        desk: The service's.
        ping: Whether silence may last, so that it is filled with comments; such a stream ends when the service is
            about to, the others when it does, and has no deadline.
        seconds: Deadline; the service's own holds, too.
        last_words: The event that tells of a stream's early end.
        on_end: Called when it is over, however.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        events: AsyncGenerator[bytes, None],
        desk: Desk,
        *,
        ping: bool = False,
        seconds: float | None = None,
        last_words: Callable[[Fault], bytes] | None = None,
        on_end: Callable[[], object] = bool,
    ) -> None:
        super().__init__(headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._events, self._desk, self._ping, self._on_end = events, desk, ping, on_end
        self._last_words = last_words
        self._limit = min(desk.settings.deadline, seconds or desk.settings.deadline)
        self._since: float | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002  ASGI's shape
        """Send, as ASGI wants it."""
        sending = asyncio.ensure_future(self._send_with_pings(send) if self._ping else self._send(send))
        gone = asyncio.ensure_future(until_disconnected(receive))
        try:
            with self._desk.at_work(sending, looks_on=self._ping):
                fault = await self._watch(sending, gone)
        finally:
            await end_all(sending, gone)
            await self._events.aclose()
            self._on_end()
        if gone.done() and not gone.cancelled():
            return
        if self._since is not None:
            return  # a reader that takes nothing cannot be told of it; a body that is not whole closes its connection
        if not sending.cancelled():
            sending.result()
        elif fault is not None and self._last_words is not None:
            await send({"type": "http.response.body", "body": self._last_words(fault), "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _watch(self, sending: "asyncio.Task[None]", gone: "asyncio.Task[None]") -> Fault | None:
        """Wait for the end; gives why it came early, where the client can be told."""
        clock, stall = asyncio.get_running_loop().time, self._desk.settings.stall
        ends = clock() + self._limit
        while True:
            now = clock()
            wait = stall / 2 if self._ping else min(stall / 2, ends - now)
            done, _ = await asyncio.wait({sending, gone}, timeout=max(0.0, wait), return_when=asyncio.FIRST_COMPLETED)
            if done:
                return ENDING if sending.cancelled() else None
            if self._since is not None and clock() - self._since >= stall:
                return None
            if not self._ping and clock() >= ends:
                return late(self._limit)

    async def _put(self, send: Send, chunk: bytes) -> None:
        self._since = asyncio.get_running_loop().time()
        await send({"type": "http.response.body", "body": chunk, "more_body": True})
        self._since = None

    async def _start(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})

    async def _send(self, send: Send) -> None:
        await self._start(send)
        async for chunk in self._events:
            await self._put(send, chunk)

    async def _send_with_pings(self, send: Send) -> None:
        await self._start(send)
        following = asyncio.ensure_future(anext(self._events, None))
        try:
            while True:
                done, _ = await asyncio.wait({following}, timeout=PING)
                if not done:
                    await self._put(send, b": still here\n\n")
                elif (chunk := following.result()) is None:
                    return
                else:
                    await self._put(send, chunk)
                    following = asyncio.ensure_future(anext(self._events, None))
        finally:
            await end_all(following)
