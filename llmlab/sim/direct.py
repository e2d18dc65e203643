"""The simulated provider without httpx between it and the client: for virtual runs, where nothing else takes time.

httpx's requests, responses and headers cost as much as all that the provider and the policies do. What comes of a
request is the same, to the last digit, as through `Simulator` as a transport.
"""

from collections.abc import AsyncIterator, Mapping

import httpx

from llmlab.providers.http import Request, known
from llmlab.sim.script import Body, Response
from llmlab.sim.transport import Simulator, ending
from llmlab.sim.wire import Broken


class DirectSender:
    """Sends to a simulated provider in this process. Made of the sender that it stands for.

    Args:
        simulator: The provider.
        url: Where requests go; its path tells the dialect.
        headers: Of every request.
    """

    def __init__(self, simulator: Simulator, url: httpx.URL, headers: Mapping[str, str]) -> None:
        self._world, self._path = simulator.world, url.path
        self._headers = {name.lower(): value for name, value in headers.items()}

    async def post(self, body: bytes, connect_timeout: float | None) -> "_Answer":  # noqa: ARG002  there is no connection
        """Send one request."""
        return await self._send("POST", self._path, self._headers, body)

    async def send(self, request: Request, connect_timeout: float | None) -> "_Answer":  # noqa: ARG002
        """Send to another URL."""
        headers = self._headers | {"content-type": request.kind}
        return await self._send(request.method, request.url.path, headers, request.body)

    async def _send(self, method: str, path: str, headers: Mapping[str, str], body: bytes) -> "_Answer":
        try:
            return _Answer(await self._world.handle(method, path, headers, body))
        except Broken as broken:
            raise _dropped(broken) from broken

    async def aclose(self) -> None:
        """There is nothing to close."""

    def forget(self) -> None:
        """There is nothing to forget."""


class _Answer:
    def __init__(self, response: Response) -> None:
        self._body = response.body
        self.status = response.status
        self.headers: Mapping[str, str] = response.headers

    async def read(self) -> bytes:
        if isinstance(self._body, bytes):
            return self._body
        return b"".join([chunk async for chunk in self.chunks()])

    async def chunks(self) -> AsyncIterator[bytes]:
        if isinstance(self._body, bytes):
            yield self._body
            return
        try:
            async for chunk in self._body:
                yield chunk
        except Broken as broken:
            raise _dropped(broken) from broken

    async def aclose(self) -> None:
        if isinstance(self._body, Body):
            await self._body.aclose()


def _dropped(broken: Broken) -> Exception:
    error = ending(broken)
    return known(error) or error
