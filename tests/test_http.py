"""The sender, over real loopback sockets (through aiohttp) and over a user's own httpx transport (respx)."""

import asyncio
import gc
import socket
import struct
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import httpx
import orjson
import pytest
import respx

from llmlab.call import Call
from llmlab.errors import (
    AuthFailed,
    BadPayload,
    ConnectFailed,
    Dropped,
    LLMError,
    RateLimited,
    ServerError,
    StreamTruncated,
    TimedOut,
    Unsendable,
)
from llmlab.events import Attempted, Delta
from llmlab.prices import Price
from llmlab.providers import endpoint
from llmlab.providers.anthropic import Anthropic
from llmlab.providers.endpoint import Provider, Secret
from llmlab.providers.openai import OpenAI
from llmlab.types import Reply

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]
Behaviour = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]

ANSWER = orjson.dumps(
    {
        "id": "c1",
        "model": "m-1",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "Hi"}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 9, "completion_tokens": 2, "total_tokens": 11},
    }
)


def piece(text: str = "", reason: str | None = None) -> bytes:
    choice = {"index": 0, "delta": {"content": text}, "finish_reason": reason}
    return b"data: " + orjson.dumps({"model": "m-1", "choices": [choice]}) + b"\n\n"


def whole(body: bytes, *, status: str = "200 OK", kind: str = "application/json", more: str = "") -> bytes:
    head = f"HTTP/1.1 {status}\r\ncontent-type: {kind}\r\ncontent-length: {len(body)}\r\n{more}\r\n"
    return head.encode() + body


def chunked(*chunks: bytes, end: bool = True) -> bytes:
    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
    body = b"".join(b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in chunks)
    return head + body + (b"0\r\n\r\n" if end else b"")


async def read_request(reader: asyncio.StreamReader) -> bytes:
    head = await reader.readuntil(b"\r\n\r\n")
    length = next(int(line.split(b":")[1]) for line in head.lower().split(b"\r\n") if b"content-length" in line)
    return head + await reader.readexactly(length)


def answer_with(data: bytes, *, then: str = "close") -> Behaviour:
    async def behave(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            await read_request(reader)
            writer.write(data)
            await writer.drain()
            if then == "reset":
                raw = writer.get_extra_info("socket")
                raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                writer.transport.abort()
            if then != "keep":
                return

    return behave


@asynccontextmanager
async def serving(behave: Behaviour) -> AsyncIterator[str]:
    tasks: set[asyncio.Task[None]] = set()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        try:
            await behave(reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def make_provider(base_url: str, **fields: object) -> Provider:
    return Provider("test", OpenAI(), "m", base_url, **fields)  # type: ignore[arg-type]


async def ask(provider: Provider, call: Call) -> Reply:
    try:
        return await provider(call)
    finally:
        await provider.sender.aclose()


async def ask_server(behave: Behaviour, call: Call) -> Reply:
    async with serving(behave) as base_url:
        return await ask(make_provider(base_url), call)


def error_from(behave: Behaviour, call: Call) -> LLMError:
    with pytest.raises(LLMError) as raised:
        asyncio.run(ask_server(behave, call))
    return raised.value


def test_a_plain_answer_is_read(make_call) -> None:
    reply = asyncio.run(ask_server(answer_with(whole(ANSWER, more="x-request-id: r7\r\n")), make_call()))
    assert (reply.content, reply.finish_reason, reply.model, reply.request_id) == ("Hi", "stop", "m-1", "r7")
    assert reply.latency_s > 0
    assert reply.ttft_s is None


def test_a_streamed_answer_is_read_piece_by_piece(make_call, emitted) -> None:
    call = make_call(stream=True)
    body = chunked(piece("Hel"), piece("lo"), piece(reason="stop"), b"data: [DONE]\n\n")
    reply = asyncio.run(ask_server(answer_with(body), call))
    assert reply.content == "Hello"
    assert [event.text for event in emitted(call) if isinstance(event, Delta)] == ["Hel", "lo"]
    assert reply.ttft_s is not None
    assert 0 < reply.ttft_s <= reply.latency_s


def test_a_connection_is_used_again(make_call) -> None:
    connections = 0

    async def behave(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        await answer_with(whole(ANSWER), then="keep")(reader, writer)

    async def main() -> None:
        async with serving(behave) as base_url:
            provider = make_provider(base_url)
            for _ in range(5):
                await provider(make_call())
            await provider.sender.aclose()

    asyncio.run(main())
    assert connections == 1


def test_a_connection_is_used_again_after_a_stream(make_call) -> None:
    connections = 0
    body = chunked(piece("a"), piece(reason="stop"), b"data: [DONE]\n\n")

    async def behave(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        await answer_with(body, then="keep")(reader, writer)

    async def main() -> None:
        async with serving(behave) as base_url:
            provider = make_provider(base_url)
            for _ in range(5):
                await provider(make_call(stream=True))
            await provider.sender.aclose()

    asyncio.run(main())
    assert connections == 1


def test_two_hundred_requests_at_once_have_two_hundred_connections(make_call) -> None:
    """The pool never caps in secret: all requests are on the wire before the first one is answered."""
    arrived = 0
    all_here = asyncio.Event()

    async def behave(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal arrived
        await read_request(reader)
        arrived += 1
        if arrived == 200:
            all_here.set()
        await all_here.wait()
        writer.write(whole(ANSWER))
        await writer.drain()

    async def main() -> None:
        async with serving(behave) as base_url:
            provider = make_provider(base_url)
            async with asyncio.timeout(20):
                await asyncio.gather(*(provider(make_call(i)) for i in range(200)))
            await provider.sender.aclose()

    asyncio.run(main())
    assert arrived == 200


def test_a_refused_connection_is_connect_failed(make_call) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        provider = make_provider(f"http://127.0.0.1:{closed.getsockname()[1]}/v1")
        with pytest.raises(ConnectFailed):
            asyncio.run(ask(provider, make_call()))


def test_a_name_that_does_not_resolve_is_connect_failed(make_call) -> None:
    with pytest.raises(ConnectFailed):
        asyncio.run(ask(make_provider("http://no-such-host.invalid/v1"), make_call()))


async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:  # noqa: ARG001
    await read_request(reader)


@pytest.mark.parametrize(
    "behave",
    [
        pytest.param(hang_up, id="closed before the response"),
        pytest.param(answer_with(b"", then="reset"), id="reset before the response"),
        pytest.param(answer_with(b"no http at all\r\n\r\n"), id="garbage instead of HTTP"),
        pytest.param(answer_with(whole(ANSWER)[:-5]), id="shorter than its length"),
        pytest.param(answer_with(whole(ANSWER)[:-5], then="reset"), id="reset in the body"),
        pytest.param(answer_with(chunked(ANSWER[:20], end=False)), id="chunked body cut off"),
    ],
)
def test_a_broken_connection_is_dropped_and_may_be_retried(behave: Behaviour, make_call) -> None:
    error = error_from(behave, make_call())
    assert isinstance(error, Dropped)
    assert error.verdict.retry


def test_a_stream_cut_midway_is_an_error_not_a_short_answer(make_call) -> None:
    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n"
    error = error_from(answer_with(head + piece("The answer is")), make_call(stream=True))
    assert isinstance(error, StreamTruncated)
    assert error.partial == "The answer is"
    assert error.verdict.retry


def test_a_chunked_stream_cut_midway_is_an_error(make_call) -> None:
    error = error_from(answer_with(chunked(piece("The"), end=False)), make_call(stream=True))
    assert isinstance(error, Dropped | StreamTruncated)


def test_a_stream_that_breaks_after_its_last_word_is_complete(make_call) -> None:
    body = chunked(piece("Yes"), piece(reason="stop"), end=False)
    assert asyncio.run(ask_server(answer_with(body), make_call(stream=True))).content == "Yes"


def test_a_whole_body_in_answer_to_a_streaming_request_is_one_piece(make_call, emitted) -> None:
    call = make_call(stream=True)
    reply = asyncio.run(ask_server(answer_with(whole(b"\n\n" + ANSWER)), call))
    assert reply.content == "Hi"
    assert [event.text for event in emitted(call) if isinstance(event, Delta)] == ["Hi"]


@pytest.mark.parametrize("stream", [False, True])
def test_html_with_status_200_is_a_bad_payload(stream: bool, make_call) -> None:
    error = error_from(answer_with(whole(b"<html>Bad gateway</html>", kind="text/html")), make_call(stream=stream))
    assert isinstance(error, BadPayload)


@pytest.mark.parametrize("stream", [False, True])
def test_an_error_status_becomes_its_class(stream: bool, make_call) -> None:
    body = b'{"error":{"message":"slow down","type":"requests","code":"rate_limit_exceeded"}}'
    data = whole(body, status="429 Too Many Requests", more="Retry-After: 7\r\nX-Request-Id: r9\r\n")
    error = error_from(answer_with(data), make_call(stream=stream))
    assert isinstance(error, RateLimited)
    assert (error.status, error.retry_after, error.request_id) == (429, 7.0, "r9")


def test_redirects_are_not_followed_as_the_key_would_go_along(make_call) -> None:
    data = whole(b"", status="307 Temporary Redirect", more="Location: http://127.0.0.1:9/steal\r\n")
    assert error_from(answer_with(data), make_call()).status == 307


def test_each_attempt_is_counted_and_published_once(make_call, emitted) -> None:
    call = make_call()
    error_from(answer_with(whole(b"{}", status="500 Oops")), call)
    (event,) = [event for event in emitted(call) if isinstance(event, Attempted)]
    assert call.attempts == event.attempt == 1
    assert isinstance(event.error, ServerError)


def test_an_attempt_given_up_is_published_and_its_connection_closed(make_call, emitted) -> None:
    arrived, closed = asyncio.Event(), asyncio.Event()

    async def behave(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:  # noqa: ARG001
        await read_request(reader)
        arrived.set()
        assert await reader.read() == b""
        closed.set()

    async def main(call: Call) -> None:
        async with serving(behave) as base_url:
            task = asyncio.create_task(ask(make_provider(base_url), call))
            async with asyncio.timeout(5):
                await arrived.wait()
            task.cancel()
            async with asyncio.timeout(5):
                await closed.wait()
            await asyncio.gather(task, return_exceptions=True)

    call = make_call()
    asyncio.run(main(call))
    (event,) = [event for event in emitted(call) if isinstance(event, Attempted)]
    assert "given up" in str(event.error)


# -- a transport of the user's own ------------------------------------------------------------------------


def mocked(handler: Callable[[httpx.Request], httpx.Response]) -> httpx.MockTransport:
    return httpx.MockTransport(handler)


def test_a_users_own_transport_is_used_and_left_open(make_call) -> None:
    router = respx.MockRouter()
    route = router.post("http://api.test/v1/chat/completions").respond(content=ANSWER)
    transport = httpx.MockTransport(router.async_handler)
    provider = make_provider("http://api.test/v1", transport=transport, key=Secret("sk-1"))
    assert asyncio.run(ask(provider, make_call())).content == "Hi"
    sent = route.calls.last.request
    assert sent.headers["authorization"] == "Bearer sk-1"
    assert orjson.loads(sent.content)["model"] == "m"


@pytest.mark.parametrize(
    ("raised", "expected"),
    [
        (httpx.ConnectError("x"), ConnectFailed),
        (httpx.ProxyError("x"), ConnectFailed),
        (httpx.ConnectTimeout("x"), TimedOut),
        (httpx.ReadTimeout(""), TimedOut),
        (httpx.ReadError(""), Dropped),
        (httpx.WriteError(""), Dropped),
        (httpx.RemoteProtocolError("x"), Dropped),
        (httpx.DecodingError("x"), Dropped),
        (ConnectionResetError("x"), Dropped),
        (httpx.PoolTimeout("x"), Unsendable),
        (httpx.LocalProtocolError("x"), Unsendable),
        (httpx.UnsupportedProtocol("x"), Unsendable),
        (httpx.InvalidURL("x"), Unsendable),
    ],
    ids=lambda value: getattr(value, "__name__", type(value).__name__),
)
def test_what_a_transport_raises_becomes_its_class(raised: Exception, expected: type, make_call) -> None:
    def handler(_: httpx.Request) -> httpx.Response:
        raise raised

    provider = make_provider("http://api.test/v1", transport=mocked(handler))
    with pytest.raises(expected):
        asyncio.run(ask(provider, make_call()))


def test_a_bug_in_a_transport_stays_what_it_is(make_call) -> None:
    def handler(_: httpx.Request) -> httpx.Response:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        asyncio.run(ask(make_provider("http://api.test/v1", transport=mocked(handler)), make_call()))


def test_an_anthropic_base_url_may_end_in_v1_or_not(make_call) -> None:
    seen = []

    def handler(request: httpx.Request) -> httpx.Response:
        seen.append(str(request.url))
        return httpx.Response(401, json={"error": {"type": "authentication_error", "message": "no"}})

    for base in ("http://api.test", "http://api.test/", "http://api.test/v1", "http://api.test/proxy"):
        provider = Provider("anthropic", Anthropic(), "m", base, transport=mocked(handler))
        with pytest.raises(AuthFailed):
            asyncio.run(provider(make_call()))
    assert seen[:3] == ["http://api.test/v1/messages"] * 3
    assert seen[3] == "http://api.test/proxy/v1/messages"


def test_a_query_in_the_base_url_is_kept(make_call) -> None:
    seen = []

    def handler(request: httpx.Request) -> httpx.Response:
        seen.append(str(request.url))
        return httpx.Response(200, content=ANSWER)

    provider = make_provider("http://a.test/openai/deployments/d?api-version=1", transport=mocked(handler))
    asyncio.run(provider(make_call()))
    assert seen == ["http://a.test/openai/deployments/d/chat/completions?api-version=1"]


def test_a_key_the_server_echoes_is_blotted_out(make_call) -> None:
    def handler(_: httpx.Request) -> httpx.Response:
        return httpx.Response(401, json={"error": {"message": "Incorrect key my-secret-key-123", "code": "x"}})

    provider = make_provider("http://a.test/v1", transport=mocked(handler), key=Secret("my-secret-key-123"))
    with pytest.raises(AuthFailed) as raised:
        asyncio.run(provider(make_call()))
    assert "my-secret-key-123" not in str(raised.value) + repr(raised.value) + repr(raised.value.args)
    assert "my-secret-key-123" not in repr(provider) + repr(vars(provider))


def test_a_rejected_key_says_where_the_key_came_from(make_call) -> None:
    def handler(_: httpx.Request) -> httpx.Response:
        return httpx.Response(401, json={"error": {"message": "no", "code": "invalid_api_key"}})

    provider = make_provider("http://a.test/v1", transport=mocked(handler), key_hint="OPENAI_API_KEY or api_key=")
    with pytest.raises(AuthFailed, match="check OPENAI_API_KEY or api_key="):
        asyncio.run(provider(make_call()))


def test_a_known_price_makes_a_cost(make_call) -> None:
    provider = make_provider(
        "http://a.test/v1",
        transport=mocked(lambda _: httpx.Response(200, content=ANSWER)),
        prices={"m": Price(1.0, 10.0)},
    )
    assert asyncio.run(provider(make_call())).cost_usd == pytest.approx((9 * 1 + 2 * 10) / 1e6)


def test_connections_are_closed_by_the_end_of_the_loop_without_a_word(make_call, recwarn) -> None:
    async def main() -> None:
        async with serving(answer_with(whole(ANSWER), then="keep")) as base_url:
            await make_provider(base_url)(make_call())

    asyncio.run(main())
    assert not [str(warning.message) for warning in recwarn if "nclosed" in str(warning.message)]


# -- what an adversary found ------------------------------------------------------------------------------


def hold_open(data: bytes) -> Behaviour:
    """Sends an answer and keeps the connection open, without a word."""

    async def behave(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(data)
        await writer.drain()
        await reader.read()

    return behave


def test_a_complete_stream_whose_server_hangs_on_is_an_answer(make_call, monkeypatch) -> None:
    monkeypatch.setattr(endpoint, "AFTERWORD", 0.05)
    call = make_call(stream=True)
    reply = asyncio.run(ask_server(hold_open(chunked(piece("Yes"), piece(reason="stop"), end=False)), call))
    assert (reply.content, call.attempts) == ("Yes", 1)


def test_token_counts_that_follow_a_complete_answer_are_read(make_call) -> None:
    usage = b'data: {"choices":[],"usage":{"prompt_tokens":5,"completion_tokens":1}}\n\n'
    body = chunked(piece("Yes"), piece(reason="stop"), usage, b"data: [DONE]\n\n")
    reply = asyncio.run(ask_server(answer_with(body), make_call(stream=True)))
    assert reply.usage is not None
    assert reply.usage.input_tokens == 5


def test_latency_ends_with_the_answer_and_not_with_the_connection(make_call, monkeypatch) -> None:
    monkeypatch.setattr(endpoint, "DRAIN", 0.5)
    body = chunked(piece("Yes"), piece(reason="stop"), b"data: [DONE]\n\n", end=False)
    reply = asyncio.run(ask_server(hold_open(body), make_call(stream=True)))
    assert reply.latency_s < 0.4


@pytest.mark.parametrize(("status", "kind"), [("401 No", AuthFailed), ("429 Slow", RateLimited)])
def test_an_error_whose_body_is_cut_off_is_still_that_error(status: str, kind: type, make_call) -> None:
    data = whole(b'{"error":{"message":"x"}}', status=status, more="Retry-After: 7\r\n")[:-5]
    error = error_from(answer_with(data), make_call())
    assert isinstance(error, kind)
    assert error.retry_after == 7.0


def test_an_emoji_cut_in_two_is_put_together_again(make_call) -> None:
    halves = [b'data: {"choices":[{"index":0,"delta":{"content":"\\ud83d"}}]}\n\n',
              b'data: {"choices":[{"index":0,"delta":{"content":"\\ude00!"},"finish_reason":"stop"}]}\n\n']  # fmt: skip
    reply = asyncio.run(ask_server(answer_with(chunked(*halves, b"data: [DONE]\n\n")), make_call(stream=True)))
    assert reply.content == "\N{GRINNING FACE}!"


def test_a_percent_encoded_path_stays_as_it_is(make_call) -> None:
    seen = []

    def handler(request: httpx.Request) -> httpx.Response:
        seen.append(request.url.raw_path)
        return httpx.Response(200, content=ANSWER)

    asyncio.run(make_provider("http://a.test/a%2Fb/v1", transport=mocked(handler))(make_call()))
    assert seen == [b"/a%2Fb/v1/chat/completions"]


def test_neither_netrc_nor_a_proxy_for_others_touches_a_request(make_call, monkeypatch, tmp_path) -> None:
    (tmp_path / ".netrc").write_text("default login joe password hunter2\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / ".netrc"))
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    seen: list[bytes] = []

    async def behave(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append(await read_request(reader))
        writer.write(whole(ANSWER))
        await writer.drain()

    async def main() -> None:
        async with serving(behave) as base_url:
            await ask(Provider("anthropic", OpenAI(), "m", base_url, key=Secret("sk-1")), make_call())

    asyncio.run(main())
    assert seen[0].lower().count(b"authorization:") == 1
    assert b"Bearer sk-1" in seen[0]


def test_the_environments_proxy_is_used(make_call, monkeypatch) -> None:
    seen: list[bytes] = []

    async def behave(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append(await read_request(reader))
        writer.write(whole(ANSWER))
        await writer.drain()

    async def main() -> None:
        async with serving(behave) as proxy:
            monkeypatch.setenv("HTTP_PROXY", proxy.removesuffix("/v1"))
            monkeypatch.setenv("http_proxy", proxy.removesuffix("/v1"))
            monkeypatch.setenv("no_proxy", "")
            await ask(make_provider("http://no-such-host.invalid/v1"), make_call())

    asyncio.run(main())
    assert seen[0].startswith(b"POST http://no-such-host.invalid/v1/chat/completions")


@pytest.mark.parametrize(
    "behave",
    [
        pytest.param(hang_up, id="hung up"),
        pytest.param(answer_with(b"", then="reset"), id="reset"),
        pytest.param(answer_with(b"hello\r\n\r\n"), id="garbage"),
        pytest.param(answer_with(chunked(ANSWER[:20], end=False)), id="cut"),
    ],
)
def test_a_traceback_that_shows_locals_shows_no_key(behave: Behaviour, make_call) -> None:
    """IPython's verbose tracebacks print the locals of every frame, of causes and contexts too."""

    async def main() -> LLMError:
        async with serving(behave) as base_url:
            provider = make_provider(base_url, key=Secret("sk-very-secret"))
            with pytest.raises(LLMError) as raised:
                await ask(provider, make_call())
            return raised.value

    error: BaseException | None = asyncio.run(main())
    seen: list[str] = []
    while error is not None:
        seen.append(repr(error))
        frames = traceback.walk_tb(error.__traceback__)
        seen += [repr(value) for frame, _ in frames for value in frame.f_locals.values() if value is not frame]
        error = error.__cause__ or error.__context__
    shown = "\n".join(text for text in seen if "Secret(" not in text or "sk-" in text)
    # The test's own frame holds the Provider; what counts is that nobody's repr gives the key away.
    assert "sk-very-secret" not in shown


def test_a_sender_that_is_forgotten_has_its_connections_closed(make_call, caplog, recwarn) -> None:
    closed = asyncio.Event()

    async def behave(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(whole(ANSWER))
        await writer.drain()
        assert await reader.read() == b""
        closed.set()

    async def main() -> None:
        async with serving(behave) as base_url:
            await make_provider(base_url)(make_call())
            gc.collect()
            async with asyncio.timeout(5):
                await closed.wait()

    asyncio.run(main())
    assert "nclosed" not in caplog.text
    assert not [str(warning.message) for warning in recwarn if "nclosed" in str(warning.message)]
