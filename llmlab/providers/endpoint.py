"""The endpoint at the bottom of every strategy: one attempt is encoded, sent and read.

Completion is judged by the protocol, not by the connection: a stream that ends without its last word is
an error, and one whose connection breaks after it is an answer.
"""

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field

import httpx

from llmlab.call import Call
from llmlab.errors import AuthFailed, BadPayload, Dropped, LLMError, StreamTruncated, TimedOut
from llmlab.events import Attempted, Delta
from llmlab.prices import Price, Prices
from llmlab.providers.base import Codec, Draft
from llmlab.providers.batches import BatchAPI
from llmlab.providers.forms import Forms
from llmlab.providers.http import AiohttpSender, Answer, HttpxSender, Request, Sender
from llmlab.providers.limits import levels
from llmlab.providers.sse import BOM, ServerEvent, Splitter
from llmlab.types import Reply
from llmlab.version import __version__

AFTERWORD = 2.0
"""Seconds for which token counts and the last word are waited for once an answer is complete."""
CONNECT = 30.0
"""Seconds within which a connection must stand for a request beside the completions."""
DRAIN = 0.1
"""Seconds for reading a stream to its end after its last word: the connection can then be used again."""


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
        return text.replace(self._value, "***") if self._value else text

    def __repr__(self) -> str:
        return "Secret('***')"


@dataclass
class Provider:
    """A codec and the sender: the endpoint at the bottom of every strategy."""

    name: str
    """As in `Lab("name:model")` and the frame's `provider` column."""
    codec: Codec
    """The wire format."""
    model: str
    """Answers prompts that name no model of their own."""
    base_url: str = field(repr=False)
    """Without the codec's path."""
    key: Secret | None = None
    """The API key, if there is one."""
    key_hint: str = "api_key="
    """Where the key comes from, for messages."""
    transport: httpx.AsyncBaseTransport | None = field(default=None, repr=False)
    """The user's own transport. None: llmlab's own connections."""
    prices: Prices = field(default_factory=dict[str, Price], repr=False)
    """Known prices by model."""
    batches: BatchAPI | None = field(default=None, repr=False)
    """Its Batch API, if it has one that llmlab speaks."""
    sender: Sender = field(init=False, repr=False)
    """The connections."""
    forms: Forms = field(init=False, repr=False)
    """How its models are held to a JSON schema."""

    @property
    def shown_url(self) -> str:
        """The base URL without password and query, which may hold secrets."""
        url = httpx.URL(self.base_url)
        return str(url.copy_with(userinfo=b"", query=None)) + ("?…" if url.query else "")

    @property
    def url(self) -> httpx.URL:
        """Where requests go."""
        return _url(self.base_url, self.codec.path)

    @property
    def headers(self) -> dict[str, str]:
        """Of every request, the key included."""
        headers = {
            "accept-encoding": "identity",  # a truncated gzip body raises nothing anywhere
            "content-type": "application/json",
            "user-agent": f"llmlab/{__version__}",
        }
        return headers | self.codec.headers(self.key.reveal() if self.key else None)

    def __post_init__(self) -> None:
        self.forms = Forms(self.name, self.codec.forms)
        url, headers = self.url, self.headers
        self.sender = (
            AiohttpSender(url, headers) if self.transport is None else HttpxSender(self.transport, url, headers)
        )

    async def __call__(self, call: Call) -> Reply:
        """Send one attempt and read its answer."""
        exchange = _Exchange(self, call)
        error: LLMError | None = None
        try:
            return await exchange.run()
        except LLMError as failure:
            self._explain(failure)
            error = exchange.judge(failure)
            if error is failure:
                raise
            raise error from failure
        except asyncio.CancelledError:
            error = LLMError("the attempt was given up before its answer was complete")
            raise
        except Exception as bug:
            error = LLMError(f"{type(bug).__name__}: {bug}")
            raise
        finally:
            exchange.report(error)

    async def request(
        self, method: str, path: str, body: bytes = b"", kind: str = "application/json", *, within: float = 60.0
    ) -> bytes:
        """Send a request that asks for no completion, and read its whole answer.

        Args:
            method: HTTP method.
            path: Appended to the base URL, as the codec's is.
            body: Its body.
            kind: The body's content type.
            within: Seconds for all of it.

        Raises:
            LLMError: whatever the network did, or the error that the answer stands for.
        """
        request = Request(method, _url(self.base_url, path), body, kind)
        try:
            async with asyncio.timeout(within):
                return await self._fetch(request, min(within, CONNECT))
        except TimeoutError:
            raise TimedOut(f"no whole answer to {method} {path} within {within:g} s", phase="attempt") from None
        except LLMError as failure:
            self._explain(failure)
            raise

    async def _fetch(self, request: Request, connect_timeout: float) -> bytes:
        answer = await self.sender.send(request, connect_timeout)
        try:
            if not 200 <= answer.status < 300:  # noqa: PLR2004
                raise self.codec.error(answer.status, _lowered(answer.headers), await _what_came(answer))
            return await answer.read()
        finally:
            await answer.aclose()

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
        self.complete: float | None = None
        self.pieces = 0
        self.last = 0.0
        self.held = 0.0 if call.hold is None else call.hold.held_s
        self.model, self.kind = call.prompt.model or provider.model, call.kind
        self.form = None if call.prompt.schema is None else provider.forms.of(self.model)

    async def run(self) -> Reply:
        call = self.call
        body = self.codec.encode(call.prompt, self.model, stream=call.stream, form=self.form)
        call.attempts += 1
        self.kind, call.kind = call.kind, "retry"
        self.sent = call.sent = self.loop.time()
        answer = await self.provider.sender.post(body, call.connect_timeout)
        try:
            await self._read(answer)
        finally:
            await answer.aclose()
        if self.form is not None and self.draft.finish_reason == "stop":
            self.provider.forms.listen(self.model, self.form, self.draft.text, kind=self.kind)
        return self._reply(answer.headers, self.sent)

    def judge(self, error: LLMError) -> LLMError:
        """The error as what it means: perhaps only the form was wrong in which a schema was asked for."""
        return error if self.form is None else self.provider.forms.judge(self.model, self.form, error)

    async def _read(self, answer: Answer) -> None:
        self.call.levels = levels(answer.headers)
        if not 200 <= answer.status < 300:  # noqa: PLR2004
            raise self.codec.error(answer.status, _lowered(answer.headers), await _what_came(answer))
        if self.call.stream:
            await self._read_stream(answer.chunks())
        else:
            self.codec.decode(await answer.read(), self.draft)

    async def _read_stream(self, chunks: AsyncIterator[bytes]) -> None:
        head = await _head(chunks)
        if head.removeprefix(BOM).lstrip()[:1] in (b"{", b"[", b"<"):  # one body in answer to a streaming request
            self.codec.decode(head + b"".join([chunk async for chunk in chunks]), self.draft)
            self.call.emit(Delta(self.call.index, self.draft.text))
            self._heard(self._now())
            return
        try:
            await self._read_events(head, chunks)
        except Dropped:
            if not self.draft.complete:
                raise
        if not self.draft.complete:
            raise StreamTruncated("the stream ended before the answer was complete", partial=self.draft.text)
        if self.draft.finish_reason is None and not (self.draft.text or self.draft.reasoning or self.draft.tool_calls):
            raise BadPayload("a stream without an answer in it")

    async def _read_events(self, head: bytes, chunks: AsyncIterator[bytes]) -> None:
        splitter = Splitter()
        self._take(splitter.feed(head))
        while not self.draft.complete:
            if self.call.hold is not None:
                await self.call.hold.wait()
            chunk = await anext(chunks, None)
            if chunk is None:
                self._take(splitter.close())
                return
            self._take(splitter.feed(chunk))
        await self._read_afterword(splitter, chunks)

    async def _read_afterword(self, splitter: Splitter, chunks: AsyncIterator[bytes]) -> None:
        """Read what follows a complete answer: token counts, the last word, the end that frees the connection.

        A server that says nothing more and hangs on costs a moment, not the answer.
        """
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(DRAIN if self.draft.ended else AFTERWORD) as patience:
                async for chunk in chunks:
                    self._take(splitter.feed(chunk))
                    if self.draft.ended:
                        patience.reschedule(self.loop.time() + DRAIN)
                self._take(splitter.close())

    def _take(self, events: list[ServerEvent]) -> None:
        now = self._now()  # they came together
        draft, delta, thoughts = self.draft, self.codec.delta, self.draft.reasoning
        emit, index = self.call.emit, self.call.index
        try:
            for event in events:
                thought = len(thoughts)
                text = delta(event, draft)
                if text or len(thoughts) > thought:
                    emit(Delta(index, text))
        finally:
            self._heard(now)
        if draft.complete and self.complete is None:
            self.complete = now

    def _heard(self, now: float) -> None:
        """Note when text has come, if it has."""
        if len(self.draft.pieces) > self.pieces:
            self.pieces, self.last = len(self.draft.pieces), now
            self.first = now if self.first is None else self.first

    def _reply(self, headers: Mapping[str, str], sent: float) -> Reply:
        return self.draft.reply(
            provider=self.provider.name,
            model=self.model,
            request_id=headers.get(self.codec.request_id_header),
            latency_s=(self.complete or self._now()) - sent,
            ttft_s=None if self.first is None else self.first - sent,
            itl_s=self._itl(),
            cost_usd=self._cost(),
        )

    def _now(self) -> float:
        """Loop time, less what a slow reader has kept the answer waiting: the provider's times are measured."""
        hold = self.call.hold
        return self.loop.time() - (0.0 if hold is None else hold.held_s - self.held)

    def _itl(self) -> float | None:
        return None if self.first is None or self.pieces < 2 else (self.last - self.first) / (self.pieces - 1)  # noqa: PLR2004

    def _cost(self) -> float | None:
        price, usage = self.provider.prices.get(self.model), self.draft.usage
        return None if price is None or usage is None else price.cost(usage)

    def report(self, error: LLMError | None) -> None:
        """Publish that the attempt has ended, if it was sent."""
        if self.sent is not None:
            call, now, usage, cost = self.call, self.loop.time(), self.draft.usage, self._cost()
            call.usage = usage
            if error is not None and usage is not None:
                call.waste(usage, cost)
            target = sys.intern(f"{self.provider.name}:{self.model}")  # attempts are kept, a hundred thousand of them
            ttft = None if self.first is None else self.first - self.sent
            call.emit(
                Attempted(call.index, call.attempts, self.sent, now, error, usage, cost, self.kind, target, ttft,
                          self._itl())
            )  # fmt: skip


async def _head(chunks: AsyncIterator[bytes]) -> bytes:
    """The first bytes of a body, as many as it takes to meet one that is no space."""
    head = b""
    async for chunk in chunks:
        head += chunk
        if head.strip():
            break
    return head


def _lowered(headers: Mapping[str, str]) -> dict[str, str]:
    return {name.lower(): value for name, value in headers.items()}


async def _what_came(answer: Answer) -> bytes:
    """The body of an error; if it was cut off, its status still says most."""
    try:
        return await answer.read()
    except LLMError:
        return b""


def _url(base_url: str, path: str) -> httpx.URL:
    url = httpx.URL(base_url)
    base, question, query = url.raw_path.decode().partition("?")
    base = base.rstrip("/")
    if query and "?" in path:
        question = "&"
    if base.endswith("/v1") and path.startswith("/v1/"):
        base = base.removesuffix("/v1")  # an Anthropic base URL written the way OpenAI's is
    return url.copy_with(raw_path=f"{base}{path}{question}{query}".encode())
