"""The one module that sends: a codec's bytes go out, an answer or a classified error comes back.

Everything travels as `httpx.Request` and `httpx.Response` through an `httpx.AsyncBaseTransport`: the user's own,
the embedded simulator, or by default aiohttp's connections through httpx-aiohttp. The pool has no limit of its own:
waiting happens in the lab's line, where it can be seen.
"""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import NoReturn
from urllib.request import getproxies

import httpx

from llmlab.call import Call
from llmlab.errors import (
    AuthFailed,
    ConnectFailed,
    Dropped,
    LLMError,
    StreamTruncated,
    TimedOut,
    Unsendable,
)
from llmlab.events import Attempted, Delta
from llmlab.prices import Prices
from llmlab.providers.base import Codec, Draft
from llmlab.providers.sse import ServerEvent, Splitter
from llmlab.types import Reply
from llmlab.version import __version__

DRAIN = 0.1  # seconds: reading a stream to its end lets the connection be used again


class Secret:
    """A key that shows itself in no repr, log or traceback."""

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    def reveal(self) -> str:
        """The key itself."""
        return self._value

    def hide(self, text: str) -> str:
        """The text with the key blotted out."""
        return text.replace(self._value, "***")

    def __repr__(self) -> str:
        return "Secret('***')"


class Sender:
    """Holds the connections of one provider on one event loop.

    Args:
        transport: Sends the requests; stays the caller's to close. None: connections of our own.
    """

    def __init__(self, transport: httpx.AsyncBaseTransport | None = None) -> None:
        self._given = transport
        self._own: httpx.AsyncBaseTransport | None = None
        self._keeper: AsyncGenerator[None] | None = None

    async def send(self, request: httpx.Request) -> httpx.Response:
        """Send one request; the response's body is still to be read.

        Raises:
            LLMError: Unreachable or Unsendable, whatever the transport raised.
        """
        try:
            if self._given is not None:
                return await self._given.handle_async_request(request)
            if self._own is None:
                await self._open(secure=request.url.scheme == "https")
            return await self._own.handle_async_request(request)  # type: ignore[union-attr]
        except Exception as error:
            _raise(error)

    async def _open(self, *, secure: bool) -> None:
        # The loop closes its async generators before it closes itself, also at the end of asyncio.run: this one
        # closes the connections then, so that nobody has to remember to.
        self._own = _aiohttp_transport(secure=secure)
        self._keeper = _keep(self._own)
        await anext(self._keeper)

    async def aclose(self) -> None:
        """Close the connections of our own."""
        if self._keeper is not None:
            await self._keeper.aclose()
        self.forget()

    def forget(self) -> None:
        """Drop connections whose loop is gone."""
        self._own = self._keeper = None


async def _keep(transport: httpx.AsyncBaseTransport) -> AsyncGenerator[None]:
    try:
        yield
    finally:
        await transport.aclose()


def _aiohttp_transport(*, secure: bool) -> httpx.AsyncBaseTransport:
    # Imported at the first request: aiohttp takes longer to import than all of llmlab.
    import aiohttp  # noqa: PLC0415
    from httpx_aiohttp import AiohttpTransport  # noqa: PLC0415

    tls = httpx.create_ssl_context() if secure else False
    session = aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=60, ssl=tls),
        cookie_jar=aiohttp.DummyCookieJar(),
        trust_env=bool(getproxies()),  # looked up for each request by aiohttp, so only where there is a proxy
        auto_decompress=False,
    )
    return AiohttpTransport(client=session, verify=tls)


@dataclass
class Provider:
    """A codec and the sender: the endpoint at the bottom of every strategy."""

    name: str
    """As in `Lab("name:model")` and the frame's `provider` column."""
    codec: Codec
    """The wire format."""
    model: str
    """Answers prompts that name no model of their own."""
    base_url: str
    """Without the codec's path."""
    key: Secret | None = None
    """The API key, if there is one."""
    key_hint: str = "api_key="
    """Where the key comes from, for messages."""
    transport: httpx.AsyncBaseTransport | None = field(default=None, repr=False)
    """The user's own transport."""
    prices: Prices = field(default_factory=dict, repr=False)
    """Known prices by model."""
    sender: Sender = field(init=False, repr=False)
    """The connections."""

    def __post_init__(self) -> None:
        self.sender = Sender(self.transport)
        self._url = _endpoint(self.base_url, self.codec.path)
        headers = {
            "accept-encoding": "identity",  # a truncated gzip body raises nothing anywhere
            "content-type": "application/json",
            "user-agent": f"llmlab/{__version__}",
        }
        headers.update(self.codec.headers(self.key.reveal() if self.key else None))
        self._headers = httpx.Headers(headers)

    async def __call__(self, call: Call) -> Reply:
        """Send one attempt and read its answer."""
        exchange = _Exchange(self, call)
        error: LLMError | None = None
        try:
            return await exchange.run()
        except LLMError as failure:
            error = failure
            self._explain(failure)
            raise
        except asyncio.CancelledError:
            error = LLMError("the attempt was given up before its answer was complete")
            raise
        finally:
            exchange.report(error)

    def request(self, call: Call) -> httpx.Request:
        """The HTTP request for a call."""
        body = self.codec.encode(call.prompt, call.prompt.model or self.model, stream=call.stream)
        timeout = {"connect": call.connect_timeout}
        return httpx.Request("POST", self._url, headers=self._headers, content=body, extensions={"timeout": timeout})

    def _explain(self, error: LLMError) -> None:
        if self.key is not None:
            error.message = self.key.hide(error.message)
            error.args = (error.message,)
        if isinstance(error, AuthFailed):
            error.hint = f"check {self.key_hint}"


class _Exchange:
    """One attempt: its request, its answer as far as it has come, its times (loop seconds)."""

    def __init__(self, provider: Provider, call: Call) -> None:
        self.provider, self.call, self.codec = provider, call, provider.codec
        self.loop = asyncio.get_running_loop()
        self.draft = Draft()
        self.sent: float | None = None
        self.first: float | None = None

    async def run(self) -> Reply:
        request = self.provider.request(self.call)
        self.call.attempts += 1
        self.sent = self.loop.time()
        response = await self.provider.sender.send(request)
        try:
            await self._read(response)
        finally:
            await _close(response)
        return self._reply(response.headers, self.sent)

    async def _read(self, response: httpx.Response) -> None:
        if not 200 <= response.status_code < 300:  # noqa: PLR2004
            headers = {name.lower(): value for name, value in response.headers.items()}
            raise self.codec.error(response.status_code, headers, await _body(response))
        if self.call.stream:
            await self._read_stream(_chunks(response))
        else:
            self.codec.decode(await _body(response), self.draft)

    async def _read_stream(self, chunks: AsyncIterator[bytes]) -> None:
        head = await _head(chunks)
        if head.lstrip()[:1] in (b"{", b"[", b"<"):  # one body in answer to a streaming request
            self.codec.decode(head + b"".join([chunk async for chunk in chunks]), self.draft)
            self._emit(self.draft.text)
            return
        try:
            await self._read_events(head, chunks)
        except Dropped:
            if not self.draft.complete:
                raise
        if not self.draft.complete:
            raise StreamTruncated("the stream ended before the answer was complete", partial=self.draft.text)

    async def _read_events(self, head: bytes, chunks: AsyncIterator[bytes]) -> None:
        splitter = Splitter()
        if self._take(splitter.feed(head)):
            return await _drain(chunks)
        async for chunk in chunks:
            if self._take(splitter.feed(chunk)):
                return await _drain(chunks)
        self._take(splitter.close())
        return None

    def _take(self, events: list[ServerEvent]) -> bool:
        """Read events into the draft; True when the stream has said its last word."""
        for event in events:
            thoughts = len(self.draft.reasoning)
            text = self.codec.delta(event, self.draft)
            if text or len(self.draft.reasoning) > thoughts:
                self._emit(text)
        return self.draft.ended

    def _emit(self, text: str) -> None:
        if text and self.first is None:
            self.first = self.loop.time()
        self.call.emit(Delta(self.call.index, text))

    def _reply(self, headers: Mapping[str, str], sent: float) -> Reply:
        model = self.call.prompt.model or self.provider.model
        price = self.provider.prices.get(model)
        usage = self.draft.usage
        return self.draft.reply(
            provider=self.provider.name,
            model=model,
            request_id=headers.get(self.codec.request_id_header),
            latency_s=self.loop.time() - sent,
            ttft_s=None if self.first is None else self.first - sent,
            cost_usd=price.cost(usage) if price is not None and usage is not None else None,
        )

    def report(self, error: LLMError | None) -> None:
        """Publish that the attempt has ended, if it was sent."""
        if self.sent is not None:
            call, now = self.call, self.loop.time()
            call.emit(Attempted(call.index, call.attempts, self.sent, now, error, self.draft.usage))


async def _head(chunks: AsyncIterator[bytes]) -> bytes:
    """The first bytes of a body, as many as it takes to meet one that is no space."""
    head = b""
    async for chunk in chunks:
        head += chunk
        if head.strip():
            break
    return head


async def _body(response: httpx.Response) -> bytes:
    return b"".join([chunk async for chunk in _chunks(response)])


async def _chunks(response: httpx.Response) -> AsyncIterator[bytes]:
    try:
        async for chunk in response.aiter_bytes():
            yield chunk
    except Exception as error:
        _raise(error)


async def _drain(chunks: AsyncIterator[bytes]) -> None:
    with contextlib.suppress(TimeoutError, LLMError):
        async with asyncio.timeout(DRAIN):
            async for _ in chunks:
                pass


async def _close(response: httpx.Response) -> None:
    with contextlib.suppress(Exception):  # the answer or its error is known; how the socket ends is not news
        await response.aclose()


def _endpoint(base_url: str, path: str) -> httpx.URL:
    url = httpx.URL(base_url)
    base = url.path.rstrip("/")
    if base.endswith("/v1") and path.startswith("/v1/"):
        base = base.removesuffix("/v1")  # an Anthropic base URL written the way OpenAI's is
    return url.copy_with(path=base + path)


_CONNECT = {"ClientConnectorError", "ConnectError", "ProxyError", "ClientProxyConnectionError"}
_CONNECT_TIME = {"ConnectionTimeoutError", "ConnectTimeout"}
_TIME = {"SocketTimeoutError", "ServerTimeoutError", "TimeoutException"}
_LOCAL = {"PoolTimeout", "LocalProtocolError", "UnsupportedProtocol", "InvalidURL"}
_BROKEN = {"HTTPError", "StreamError", "ClientError", "OSError"}


def _raise(error: Exception) -> NoReturn:
    """Raise the LLMError for what a transport raised; what is no failure of sending is a bug and stays itself."""
    known = error if isinstance(error, LLMError) else _translated(error)
    if known is None or known is error:
        raise error
    raise known from error


def _translated(error: Exception) -> LLMError | None:
    """The LLMError for a transport's exception, if it is one.

    httpx-aiohttp reports a dropped connection as ConnectTimeout, so aiohttp's own exception, the cause, is asked
    first. Class names stand for the classes: aiohttp may not be imported.
    """
    origin = error.__cause__ if _from_aiohttp(error.__cause__) else error
    names = {kind.__name__ for kind in type(origin).__mro__}
    text = str(origin) or type(origin).__name__
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
