"""Connections whose other end does not hold its own: uvicorn's, with limits in time.

sends a request's head by drops           closed after HEAD seconds
takes nothing of what is sent to it       closed after `stall` seconds, and with it its upstream request
is told to close, and does not            closed
"""

import asyncio
from typing import Any

from uvicorn.protocols.http.auto import AutoHTTPProtocol

HEAD = 20.0
"""Seconds within which a request must have begun: its head is to be there."""


def impatient(stall: float) -> type[asyncio.Protocol]:
    """Make uvicorn's protocol for connections that get `stall` seconds to take something."""
    return type("Connection", (_Connection,), {"stall": stall})


_HTTP: Any = AutoHTTPProtocol


class _Connection(_HTTP):  # type: ignore[misc]  # one of two, as what is installed
    stall = 30.0

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._loop_ = asyncio.get_running_loop()
        self._seen: object = None
        self._stalled: asyncio.TimerHandle | None = None
        self._looking = self._loop_.call_later(HEAD, self._look)

    def connection_lost(self, exc: Exception | None) -> None:
        self._looking.cancel()
        self._unstall()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._unstall()
        self._stalled = self._loop_.call_later(self.stall, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._unstall()

    def _unstall(self) -> None:
        if self._stalled is not None:
            self._stalled.cancel()
            self._stalled = None

    def _look(self) -> None:
        """Close what has neither a request under way nor the server's leave to be idle."""
        busy = self.cycle is not None and not self.cycle.response_complete
        idle = self.timeout_keep_alive_task is not None and not self.transport.is_closing()
        if not busy and not idle and self._seen is self.cycle:
            self.transport.abort()
            return
        self._seen = self.cycle
        self._looking = self._loop_.call_later(HEAD, self._look)
