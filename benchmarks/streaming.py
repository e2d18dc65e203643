"""Streamed tokens per second of CPU: llmlab's `stream_many`, the openai SDK and bare aiohttp against one local server.

The server speaks OpenAI's dialect over keep-alive connections: `TOKENS` chunks of one token each, written beforehand,
so that it has much more to give than any client can take; how much is measured first, by a reader that counts bytes
and parses nothing. Every client runs in a process of its own, the order is reversed each round, and medians are shown.

Two ways to serve, and they are not the same question:

    as fast as it goes   the client is always behind, so that one read brings many tokens: the cost of a token itself
    --pace 50            every stream gets 50 tokens a second, as from a real provider: each token wakes the client

`tokens/s per core` is tokens per second of user and system time of the client's process.
"""

import argparse
import asyncio
import contextlib
import json
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib import import_module
from itertools import count
from pathlib import Path
from typing import TypeAlias

import aiohttp
import orjson
from throughput import HEADERS, KEY, MODEL, PATIENCE, available, child_env, cpu_s, raise_file_limit

Run: TypeAlias = Callable[[int], Awaitable[list[str]]]
"""Number of answers to read -> their texts."""

TOKENS = 500
WORDS = [f" word{n % 97}" for n in range(TOKENS)]
ANSWER = "".join(WORDS)
ENOUGH = 5.0
"""The server must have so many times more to give than the fastest client takes."""
SLICE = 65_536
"""Bytes written to a connection at a time; then the others have their turn."""


# -- the server -------------------------------------------------------------------------------------------


def event(delta: dict[str, str], finish: str | None = None, **more: object) -> bytes:
    """Write one chunk of an answer as api.openai.com does, in an HTTP chunk of its own."""
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
    head = {"id": "chatcmpl-bench0001", "object": "chat.completion.chunk", "created": 1767225600, "model": MODEL}
    extra = {"service_tier": "default", "system_fingerprint": "fp_bench", "choices": [choice], "usage": None}
    return framed(b"data: " + orjson.dumps(head | extra | more) + b"\n\n")


def framed(data: bytes) -> bytes:
    """Frame an HTTP chunk."""
    return b"%x\r\n%s\r\n" % (len(data), data)


def written() -> list[bytes]:
    """Write an answer: the head with the opening chunk, one piece per token, and the ending."""
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\nTransfer-Encoding: chunked\r\n\r\n"
    usage = {"prompt_tokens": 14, "completion_tokens": TOKENS, "total_tokens": 14 + TOKENS}
    ending = event({}, "stop") + event({}, choices=[], usage=usage) + framed(b"data: [DONE]\n\n") + framed(b"")
    opening = head + event({"role": "assistant", "content": ""})
    return [opening, *(event({"content": word}) for word in WORDS), ending]


PIECES = written()
WHOLE = b"".join(PIECES)


class Connection(asyncio.Protocol):
    """Answers each request of a connection with the same stream.

    Args:
        paced: Connections that get one token at each tick. None: this one gets them as fast as it goes.
    """

    def __init__(self, paced: "set[Connection] | None") -> None:
        self._paced = paced
        self._request = b""
        self._left = 0
        self._writable = asyncio.Event()
        self._writable.set()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the connection."""
        assert isinstance(transport, asyncio.Transport)  # noqa: S101  asyncio's own contract
        self._transport = transport

    def connection_lost(self, error: Exception | None) -> None:  # noqa: ARG002
        """Stop writing."""
        if self._paced is not None:
            self._paced.discard(self)
        self._writable.set()

    def data_received(self, data: bytes) -> None:
        """Answer a request once its body is there."""
        self._request += data
        head, blank, body = self._request.partition(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0] or 0)
        if not blank or len(body) < length:
            return
        self._request = b""
        if self._paced is not None:
            self._left = len(PIECES)
            self._paced.add(self)
        else:
            self._task = asyncio.get_running_loop().create_task(self._answer())

    async def _answer(self) -> None:
        for at in range(0, len(WHOLE), SLICE):
            await self._writable.wait()
            self._transport.write(WHOLE[at : at + SLICE])
            await asyncio.sleep(0)

    def pause_writing(self) -> None:
        """Wait for the client."""
        self._writable.clear()

    def resume_writing(self) -> None:
        """Go on."""
        self._writable.set()

    def tick(self) -> bool:
        """Write the next token; says whether there are more."""
        self._transport.write(PIECES[-self._left])
        self._left -= 1
        return self._left > 0


async def serve(pace: float) -> None:
    """Serve on a free port, printed, until killed; `pace` in tokens per second and stream, 0: as fast as it goes."""
    loop = asyncio.get_running_loop()
    paced: set[Connection] = set()
    server = await loop.create_server(lambda: Connection(paced if pace else None), "127.0.0.1", 0, backlog=4096)
    print(server.sockets[0].getsockname()[1], flush=True)
    began = loop.time()
    for tick in count(1):
        await asyncio.sleep(began + tick / pace - loop.time() if pace else 3600)
        paced.difference_update([each for each in paced if not each.tick()])


@contextlib.contextmanager
def server(pace: float) -> Iterator[int]:
    """Run the server in a process of its own, on the port given back."""
    command = [sys.executable, __file__, "--serve", "--pace", str(pace)]
    with subprocess.Popen(command, env=child_env(), stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None  # noqa: S101  it is a pipe
            yield int(process.stdout.readline())
        finally:
            process.terminate()


def raw_rate(port: int, answers: int = 2000) -> float:
    """Read answers one after the other, counting bytes only; gives tokens per second of wall time."""
    body = b"{}"
    ask = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)
    with socket.create_connection(("127.0.0.1", port)) as connection:
        began = time.perf_counter()
        for _ in range(answers):
            connection.sendall(ask)
            left = len(WHOLE)
            while left:
                left -= len(connection.recv(left))
        return answers * TOKENS / (time.perf_counter() - began)


# -- the clients ------------------------------------------------------------------------------------------


def prompts(rows: int) -> list[str]:
    """Make distinct prompts."""
    return [f"Say the number {n}." for n in range(rows)]


async def swarm(ask: Callable[[str], Awaitable[str]], rows: int, streams: int) -> list[str]:
    """Ask all prompts with as many workers as streams."""
    todo = iter(prompts(rows))

    async def work() -> list[str]:
        return [await ask(prompt) for prompt in todo]

    return [answer for each in await asyncio.gather(*(work() for _ in range(streams))) for answer in each]


@contextlib.asynccontextmanager
async def bare_aiohttp(url: str, streams: int) -> AsyncIterator[Run]:
    """Read lines and parse them, nothing else: the yardstick."""
    connector = aiohttp.TCPConnector(limit=streams)
    async with aiohttp.ClientSession(connector=connector, headers=HEADERS) as session:

        async def ask(prompt: str) -> str:
            body = {"model": MODEL, "stream": True, "messages": [{"role": "user", "content": prompt}]}
            pieces = []
            async with session.post(f"{url}/chat/completions", data=orjson.dumps(body)) as response:
                async for line in response.content:
                    if line.startswith(b"data: {"):
                        choices = orjson.loads(line[6:])["choices"]
                        pieces += [choice["delta"].get("content") or "" for choice in choices]
            return "".join(pieces)

        yield lambda rows: swarm(ask, rows, streams)


@contextlib.asynccontextmanager
async def openai_sdk(url: str, streams: int) -> AsyncIterator[Run]:
    """Use the official SDK as it comes."""
    openai = import_module("openai")
    async with openai.AsyncOpenAI(base_url=url, api_key=KEY, max_retries=0) as client:

        async def ask(prompt: str) -> str:
            message = {"role": "user", "content": prompt}
            options = {"include_usage": True}
            chunks = await client.chat.completions.create(
                model=MODEL, messages=[message], stream=True, stream_options=options
            )
            pieces = []
            async for chunk in chunks:
                pieces += [choice.delta.content or "" for choice in chunk.choices]
            return "".join(pieces)

        yield lambda rows: swarm(ask, rows, streams)


@contextlib.asynccontextmanager
async def llmlab_stream_many(url: str, streams: int) -> AsyncIterator[Run]:
    """Use llmlab's full default stack: policies, events, back-pressure, merged pieces."""
    llmlab = import_module("llmlab")
    async with llmlab.Lab(f"openai:{MODEL}", base_url=url, api_key=KEY, concurrency=streams) as lab:

        async def run(rows: int) -> list[str]:
            answers: list[list[str]] = [[] for _ in range(rows)]
            async for row, piece in lab.stream_many(prompts(rows)):
                answers[row].append(str(piece))
            return ["".join(pieces) for pieces in answers]

        yield run


SDK, OURS = "openai", "llmlab"
CLIENTS: dict[str, Callable[[str, int], contextlib.AbstractAsyncContextManager[Run]]] = {
    SDK: openai_sdk,
    OURS: llmlab_stream_many,
    "aiohttp": bare_aiohttp,
}
SHARE = {SDK: 0.05}
"""Share of the rows that a client gets, so that a slow one takes no longer than the others."""


# -- measuring --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sample:
    """One run of one client."""

    client: str
    streams: int
    tokens_s: float
    """Tokens per second of wall time."""
    per_core: float
    """Tokens per second of user and system time of the client's process."""


async def measure(name: str, url: str, streams: int, rows: int) -> Sample:
    """Warm the client up, then read `rows` answers.

    Raises:
        RuntimeError: an answer is not the server's.
    """
    async with CLIENTS[name](url, streams) as run:
        await run(streams)
        cpu, wall = cpu_s(), time.perf_counter()
        answers = await run(rows)
        wall, cpu = time.perf_counter() - wall, cpu_s() - cpu
    if wrong := rows - answers.count(ANSWER):
        raise RuntimeError(f"{wrong} of {rows} answers are not the server's")
    return Sample(name, streams, rows * TOKENS / wall, rows * TOKENS / cpu)


def sample(name: str, port: int, streams: int, rows: int) -> Sample:
    """Run `measure` in a new process.

    Raises:
        RuntimeError: the client failed or took longer than `PATIENCE`.
    """
    command = [sys.executable, __file__, "--child", name, "--port", str(port)]
    command += ["--streams", str(streams), "--rows", str(rows)]
    try:
        done = subprocess.run(command, env=child_env(), capture_output=True, text=True, timeout=PATIENCE, check=True)
    except subprocess.TimeoutExpired:
        raise RuntimeError(f"not done after {PATIENCE:.0f} s") from None
    except subprocess.CalledProcessError as error:
        raise RuntimeError((error.stderr.strip().splitlines() or ["died"])[-1]) from None
    return Sample(**json.loads(done.stdout.splitlines()[-1]))


def collect(names: list[str], port: int, streams: int, rows: int, repeat: int, *, fast: bool) -> list[Sample]:
    """Measure every client `repeat` times, each round in reverse."""
    samples = []
    for number in range(repeat):
        for name in names[:: -1 if number % 2 else 1]:
            share = SHARE.get(name, 1.0) if fast else 1.0
            samples.append(sample(name, port, streams, max(streams, round(rows * share))))
    return samples


def table(samples: list[Sample]) -> str:
    """Format the medians, with the spread of tokens/s per core and its ratio to the SDK's."""
    groups: dict[tuple[int, str], list[Sample]] = {}
    for one in samples:
        groups.setdefault((one.streams, one.client), []).append(one)
    mid = {key: statistics.median(one.per_core for one in group) for key, group in groups.items()}
    heads = ("tokens/s", "per core", "lowest", "highest", "CPU s/M", "/ SDK")
    lines = [f"{'streams':>7}  {'client':<8}" + "".join(f"{head:>11}" for head in heads)]
    for (streams, client), group in groups.items():
        cores = [one.per_core for one in group]
        wall, core, sdk = (
            statistics.median(one.tokens_s for one in group),
            mid[streams, client],
            mid.get((streams, SDK)),
        )
        ratio = f"{core / sdk:.1f}" if sdk else "-"
        figures = f"{wall:>11,.0f}{core:>11,.0f}{min(cores):>11,.0f}{max(cores):>11,.0f}{1e6 / core:>11.2f}"
        lines.append(f"{streams:>7,}  {client:<8}{figures}{ratio:>11}")
    return "\n".join(lines)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rows", type=int, default=2000, help="answers of each run; the SDK gets a twentieth")
    parser.add_argument("--streams", type=int, nargs="+", default=[50, 100], help="at a time (default 50 100)")
    parser.add_argument("--repeat", type=int, default=3, help="runs of each client (default %(default)s)")
    parser.add_argument("--pace", type=float, default=0.0, help="tokens/s of each stream; 0: as fast as it goes")
    parser.add_argument("--only", nargs="+", choices=CLIENTS, default=list(CLIENTS), help="default all")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every single run to this file")
    parser.add_argument("--child", choices=CLIENTS, help=argparse.SUPPRESS)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure the chosen clients and print a table."""
    args = parse(argv)
    if args.serve:
        asyncio.run(serve(args.pace))
        return
    if args.child:
        url = f"http://127.0.0.1:{args.port}/v1"
        done = asyncio.run(measure(args.child, url, args.streams[0], args.rows))
        print(json.dumps(asdict(done)))
        return
    raise_file_limit()
    names, samples = available(args.only), []
    with server(args.pace) as port:
        rate = None if args.pace else raw_rate(port)
        for streams in args.streams:
            samples += collect(names, port, streams, args.rows, args.repeat, fast=not args.pace)
    if rate is not None:
        fastest = max(one.tokens_s for one in samples)
        verdict = "enough" if rate >= ENOUGH * fastest else "TOO SLOW to judge clients by"
        print(f"server: {rate:,.0f} tokens/s to one reader that parses nothing, {rate / fastest:.1f} x: {verdict}")
    print(table(samples))
    if args.json:
        runs = {"rows": args.rows, "pace": args.pace, "samples": [asdict(one) for one in samples]}
        args.json.write_text(json.dumps(runs, indent=1) + "\n")


if __name__ == "__main__":
    main()
