"""The one module that sends: bytes go out, a status, headers and a body come back, or a classified error.

Two ways, one shape. By default requests go straight over aiohttp's connections: httpx's own pool stalls at a
thousand connections, and httpx's request and response objects, also over httpx-aiohttp, cost more than all of
llmlab's policies together (figures in benchmarks/README.md). A transport of the user's own, the simulated provider
included, is any `httpx.AsyncBaseTransport` and gets `httpx.Request`s.

The pool has no limit of its own: waiting happens in the lab's line, where it can be seen.
"""

import asyncio
import contextlib
import weakref
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol
from urllib.request import getproxies, proxy_bypass

import httpx

from llmlab.errors import ConnectFailed, Dropped, LLMError, TimedOut, Unsendable

if TYPE_CHECKING:
    import aiohttp  # imported at the first request: it takes longer to import than all of llmlab

KEEP_ALIVE = 60.0
"""Seconds for which an idle connection is kept."""


class Answer(Protocol):
    """What came back. Its body is still to be read; it must be closed."""

    status: int
    """HTTP status."""
    headers: Mapping[str, str]
    """Looked up without regard to case."""

    async def read(self) -> bytes:
        """The whole body."""
        ...

    def chunks(self) -> AsyncIterator[bytes]:
        """The body as it comes in."""
        ...

    async def aclose(self) -> None:
        """Give the connection back, or close it if the body was not read to its end. Never raises."""
        ...


@dataclass(frozen=True, slots=True)
class Request:
    """A request to another URL than completions go to, as those of a Batch API."""

    method: str
    """HTTP method."""
    url: httpx.URL
    """Where to: the same server, as the key goes along."""
    body: bytes = b""
    """Its body."""
    kind: str = "application/json"
    """The body's content type."""


class Sender(Protocol):
    """Sends to one URL, with the same headers every time. Lives on one event loop."""

    async def post(self, body: bytes, connect_timeout: float | None) -> Answer:
        """Send one request.

        Args:
            body: JSON.
            connect_timeout: Seconds within which a connection must stand. None: no limit.

        Raises:
            LLMError: Unreachable or Unsendable, whatever the network did.
        """
        ...

    async def send(self, request: Request, connect_timeout: float | None) -> Answer:
        """Send to another URL, with the same headers; arguments and errors as of `post`."""
        ...

    async def aclose(self) -> None:
        """Close the connections, if they are llmlab's own."""
        ...

    def forget(self) -> None:
        """Drop connections whose loop is gone."""
        ...


class HttpxSender:
    """Sends through a transport of the user's own, which stays the user's to close."""

    def __init__(self, transport: httpx.AsyncBaseTransport, url: httpx.URL, headers: Mapping[str, str]) -> None:
        self._transport, self._url = transport, url
        self._headers = httpx.Headers(dict(headers))

    async def post(self, body: bytes, connect_timeout: float | None) -> Answer:
        """Send one request."""
        return await self._send("POST", self._url, self._headers, body, connect_timeout)

    async def send(self, request: Request, connect_timeout: float | None) -> Answer:
        """Send to another URL."""
        headers = httpx.Headers({**self._headers, "content-type": request.kind})
        return await self._send(request.method, request.url, headers, request.body, connect_timeout)

    async def _send(
        self, method: str, url: httpx.URL, headers: httpx.Headers, body: bytes, connect_timeout: float | None
    ) -> Answer:
        limits = {"timeout": {"connect": connect_timeout}}
        request = httpx.Request(method, url, headers=headers, content=body, extensions=limits)
        try:
            return _HttpxAnswer(await self._transport.handle_async_request(request))
        except Exception as error:
            raise known(error) or error from error

    async def aclose(self) -> None:
        """Leave the transport open: it is the user's."""

    def forget(self) -> None:
        """Keep the transport: it is the user's."""


class _HttpxAnswer:
    def __init__(self, response: httpx.Response) -> None:
        self._response = response
        self.status = response.status_code
        self.headers: Mapping[str, str] = response.headers

    async def read(self) -> bytes:
        return b"".join([chunk async for chunk in self.chunks()])

    async def chunks(self) -> AsyncIterator[bytes]:
        try:
            async for chunk in self._response.aiter_bytes():
                yield chunk
        except Exception as error:
            raise known(error) or error from error

    async def aclose(self) -> None:
        with contextlib.suppress(Exception):  # the answer or its error is known; how the socket ends is not news
            await self._response.aclose()


class AiohttpSender:
    """Sends over connections of llmlab's own, opened when first needed and closed with their loop.

    aiohttp's exceptions never leave this class, not even as causes: they and the frames of their tracebacks hold
    the request's headers, and so the key.
    """

    def __init__(self, url: httpx.URL, headers: Mapping[str, str]) -> None:
        self._url, self._headers = url, dict(headers)
        self._wire: _Wire | None = None

    async def post(self, body: bytes, connect_timeout: float | None) -> Answer:
        """Send one request."""
        wire = self._wire or await self._open()
        try:
            return _AiohttpAnswer(await wire.post(body, connect_timeout))
        except Exception as error:  # noqa: BLE001  sorted out by _plain
            failure = _plain(error)
        raise failure

    async def send(self, request: Request, connect_timeout: float | None) -> Answer:
        """Send to another URL."""
        wire = self._wire or await self._open()
        try:
            return _AiohttpAnswer(await wire.send(request, connect_timeout))
        except Exception as error:  # noqa: BLE001  sorted out by _plain
            failure = _plain(error)
        raise failure

    async def _open(self) -> "_Wire":
        self._wire = wire = _Wire(self._url, self._headers)
        await wire.keep()
        weakref.finalize(self, wire.close_soon)
        return wire

    async def aclose(self) -> None:
        """Close the connections."""
        if self._wire is not None:
            await self._wire.aclose()
        self.forget()

    def forget(self) -> None:
        """Drop connections whose loop is gone."""
        self._wire = None


_kept: "set[_Wire]" = set()
"""Open sessions: they outlive their senders until their loop has closed them."""


class _Wire:
    """An aiohttp session and what each of its requests has in common."""

    def __init__(self, url: httpx.URL, headers: Mapping[str, str]) -> None:
        import aiohttp  # noqa: PLC0415  see above
        from yarl import URL  # noqa: PLC0415

        self._timeout, self._make_url = aiohttp.ClientTimeout, URL
        self._timeouts: dict[float | None, aiohttp.ClientTimeout] = {}
        self._url = URL(str(url), encoded=True)
        self._loop = asyncio.get_running_loop()
        self._keeper = self._keep()
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                limit=0,
                keepalive_timeout=KEEP_ALIVE,
                ssl=httpx.create_ssl_context() if url.scheme == "https" else False,
            ),
            headers=dict(headers),
            cookie_jar=aiohttp.DummyCookieJar(),
            proxy=_proxy(url),  # chosen here: trust_env would also send passwords of ~/.netrc along with the key
        )

    async def post(self, body: bytes, connect_timeout: float | None) -> "aiohttp.ClientResponse":
        timeout = self._within(connect_timeout)
        # Redirects are not followed: the key would go to whoever is named.
        return await self._session.post(self._url, data=body, timeout=timeout, allow_redirects=False)

    async def send(self, request: Request, connect_timeout: float | None) -> "aiohttp.ClientResponse":
        return await self._session.request(
            request.method,
            self._make_url(str(request.url), encoded=True),
            data=request.body or None,
            headers={"content-type": request.kind},
            timeout=self._within(connect_timeout),
            allow_redirects=False,
        )

    def _within(self, connect_timeout: float | None) -> "aiohttp.ClientTimeout":
        timeout = self._timeouts.get(connect_timeout)
        if timeout is None:
            timeout = self._timeouts[connect_timeout] = self._timeout(sock_connect=connect_timeout)
        return timeout

    async def keep(self) -> None:
        # The loop closes its async generators before it closes itself, also at the end of asyncio.run: this one
        # closes the connections then, so that nobody has to remember to.
        _kept.add(self)
        await anext(self._keeper)

    async def _keep(self) -> AsyncGenerator[None]:
        try:
            yield
        finally:
            await self.aclose()

    async def aclose(self) -> None:
        if self in _kept:
            _kept.discard(self)
            await self._session.close()

    def close_soon(self) -> None:
        """The sender is gone: close the connections, unless the loop is about to do so."""
        if self._loop.is_running():
            self._loop.call_soon_threadsafe(lambda: self._loop.create_task(self.aclose()))


class _AiohttpAnswer:
    def __init__(self, response: "aiohttp.ClientResponse") -> None:
        self._response = response
        self.status = response.status
        self.headers: Mapping[str, str] = response.headers

    async def read(self) -> bytes:
        try:
            return await self._response.read()
        except Exception as error:  # noqa: BLE001  sorted out by _plain
            failure = _plain(error)
        raise failure

    async def chunks(self) -> AsyncIterator[bytes]:
        failure = None
        try:
            async for chunk in self._response.content.iter_any():
                yield chunk
        except Exception as error:  # noqa: BLE001  sorted out by _plain
            failure = _plain(error)
        if failure is not None:
            raise failure

    async def aclose(self) -> None:
        self._response.release()  # closes the connection if the body was not read to its end


def _proxy(url: httpx.URL) -> str | None:
    """The proxy that the environment names for this URL."""
    return None if proxy_bypass(url.host) else getproxies().get(url.scheme)


_CONNECT = {"ClientConnectorError", "ConnectError", "ProxyError", "ClientProxyConnectionError"}
_CONNECT_TIME = {"ConnectionTimeoutError", "ConnectTimeout"}
_TIME = {"SocketTimeoutError", "ServerTimeoutError", "TimeoutException"}
_LOCAL = {"PoolTimeout", "LocalProtocolError", "UnsupportedProtocol", "InvalidURL"}
_BROKEN = {"HTTPError", "StreamError", "ClientError", "OSError"}


def _plain(error: Exception) -> LLMError:
    """The LLMError for what aiohttp raised, free of it."""
    return known(error) or Unsendable(f"{type(error).__name__}: {error}")


def known(error: Exception) -> LLMError | None:
    """The LLMError for an exception of aiohttp, httpx or the system; None for what is no failure of sending.

    Class names stand for the classes, as aiohttp may not be imported. A transport that wraps aiohttp may report a
    dropped connection as ConnectTimeout (httpx-aiohttp does), so aiohttp's own exception, the cause, is asked first.
    """
    if isinstance(error, LLMError):
        return error
    origin = error if _from_aiohttp(error) or not _from_aiohttp(error.__cause__) else error.__cause__
    names = {kind.__name__ for kind in type(origin).__mro__}
    text = str(getattr(origin, "message", "") or origin) or type(origin).__name__  # str() may show the URL's query
    if names & _LOCAL:
        return Unsendable(text)
    if names & _CONNECT_TIME:
        return TimedOut(f"no connection in time: {text}", phase="connect")
    if names & _TIME:
        return TimedOut(f"nothing came in time: {text}", phase="read")
    if names & _CONNECT:
        return ConnectFailed(f"no connection: {text}")
    return Dropped(f"the connection broke: {text}") if names & _BROKEN else None


def _from_aiohttp(error: BaseException | None) -> bool:
    return error is not None and type(error).__module__.partition(".")[0] == "aiohttp"
