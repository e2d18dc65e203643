"""The service under load: 200 clients that stream at once, through `llmlab serve` and, beside it, without it.

Three kinds of processes on loopback: a simulated provider (`llmlab simulate`'s own), the service before it, and this
one with the clients. Each client asks, reads its stream to `[DONE]`, and asks again, until the time is over; then what
is under way is read to its end. They begin one after the other, over the time of one answer. First all ask the
provider itself, then all ask the service.

    answers out = requests in   every stream ended well, and the provider counts as many as the clients
    overhead                    the difference of the quantiles of both phases
    RSS                         the service's memory, each second
"""

import argparse
import asyncio
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

import aiohttp

UPSTREAM = """
import asyncio, sys
from llmlab.sim import Physics, Simulator
from llmlab.sim.server import run_server
tokens, itl, ttft = int(sys.argv[1]), float(sys.argv[2]), float(sys.argv[3])
physics = Physics(slots=10_000, rtt=0.0, ttft=ttft, itl=itl, load=0.0, jitter=0.0)
simulator = Simulator(physics=physics, say=lambda _: "word " * tokens)
asyncio.run(run_server(simulator, "127.0.0.1", 0, announce=lambda text: print(text, flush=True)))
"""
WARM_UP = 3.0
"""Seconds after which memory counts: by then every connection was used."""


@dataclass
class Phase:
    """What the clients saw in one phase."""

    name: str
    asked: int = 0
    answered: int = 0
    latency_s: list[float] = field(default_factory=list)
    ttft_s: list[float] = field(default_factory=list)
    rss_mb: list[float] = field(default_factory=list)
    cpu_s: float = 0.0
    upstream: int = 0

    def ms(self, values: list[float], percent: int) -> float:
        """A quantile in milliseconds."""
        return statistics.quantiles(values, n=100)[percent - 1] * 1000.0


@contextmanager
def program(*call: str) -> Iterator[tuple[int, str]]:
    """Run a process of ours until the block ends; gives its process id and the address that it tells."""
    with tempfile.NamedTemporaryFile("w+") as told:
        process = subprocess.Popen([sys.executable, *call], stdout=told, stderr=subprocess.STDOUT)
        try:
            while (found := re.search(r"http://127\.0\.0\.1:\d+", Path(told.name).read_text())) is None:
                if process.poll() is not None:
                    raise SystemExit(Path(told.name).read_text())
                time.sleep(0.05)
            yield process.pid, found[0]
        finally:
            process.terminate()
            process.wait()


def rss_mb(pid: int) -> float:
    """Memory of a process."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def cpu_s(pid: int) -> float:
    """User and system time of a process."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def received(session: aiohttp.ClientSession, upstream: str) -> int:
    """Requests that the provider counts."""
    async with session.get(f"{upstream}/sim/stats") as answer:
        return int((await answer.json())["received"])


async def client(
    session: aiohttp.ClientSession, url: str, until: float, number: int, delay: float, phase: Phase
) -> None:
    """Ask again and again, from `delay` seconds on."""
    clock, turn = asyncio.get_running_loop().time, 0
    await asyncio.sleep(delay)
    while clock() < until:
        turn += 1
        body = {"model": "m", "stream": True, "messages": [{"role": "user", "content": f"{number} {turn}"}]}
        began, first, last = clock(), 0.0, b""
        phase.asked += 1
        async with session.post(f"{url}/v1/chat/completions", json=body) as answer:
            async for line in answer.content:
                if line.startswith(b"data: "):
                    last = line
                if not first and b'"content":"word' in line:
                    first = clock()
        if answer.status == 200 and last.strip() == b"data: [DONE]":
            phase.answered += 1
            phase.latency_s.append(clock() - began)
            phase.ttft_s.append(first - began)


async def measure(name: str, url: str, upstream: str, pid: int, args: argparse.Namespace) -> Phase:
    """One phase."""
    phase = Phase(name)
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(120)) as session:
        before, spent = await received(session, upstream), cpu_s(pid)
        until = asyncio.get_running_loop().time() + args.seconds
        pause = (args.ttft + args.tokens * args.itl) / args.clients
        clients = [asyncio.ensure_future(client(session, url, until, n, n * pause, phase)) for n in range(args.clients)]
        watching = asyncio.ensure_future(watch(pid, phase))
        await asyncio.gather(*clients)
        watching.cancel()
        phase.upstream, phase.cpu_s = await received(session, upstream) - before, cpu_s(pid) - spent
    return phase


async def watch(pid: int, phase: Phase) -> None:
    """Look at the memory each second."""
    await asyncio.sleep(WARM_UP)
    while True:
        phase.rss_mb.append(rss_mb(pid))
        await asyncio.sleep(1.0)


def report(direct: Phase, served: Phase, args: argparse.Namespace) -> None:
    """Print both phases side by side."""
    print(
        f"{args.clients} clients, {args.seconds:g} s, {args.tokens} tokens an answer, {1 / args.itl:g} tokens/s each\n"
    )
    print(f"{'':24}{'provider':>12}{'service':>12}{'overhead':>12}")
    for words, values in (("latency", "latency_s"), ("time to first token", "ttft_s")):
        for percent in (50, 99):
            a, b = (phase.ms(getattr(phase, values), percent) for phase in (direct, served))
            print(f"{f'{words} p{percent}, ms':24}{a:12,.0f}{b:12,.0f}{b - a:12,.0f}")
    for words in ("asked", "answered", "upstream"):
        print(f"{words:24}{getattr(direct, words):12,}{getattr(served, words):12,}")
    each = served.cpu_s / (served.answered * args.tokens)
    print(f"\nthe service: {served.cpu_s:.1f} s of CPU, {each * 1e6:.0f} µs a token")
    print(f"its memory: {served.rss_mb[0]:.0f} MB after {WARM_UP:g} s, {served.rss_mb[-1]:.0f} MB at the end")


def main() -> int:
    """Run both phases; 1 if an answer is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--tokens", type=int, default=40, help="of each answer")
    parser.add_argument("--itl", type=float, default=0.05, help="seconds between tokens")
    parser.add_argument("--ttft", type=float, default=0.3, help="seconds to the first one")
    parser.add_argument("--json", type=Path, help="every figure")
    args = parser.parse_args()
    with program("-c", UPSTREAM, str(args.tokens), str(args.itl), str(args.ttft)) as (upstream_pid, upstream):
        direct = asyncio.run(measure("provider", upstream, upstream, upstream_pid, args))
        service = ("-m", "llmlab", "serve", "--port", "0", "--model", "vllm:m", "--base-url", f"{upstream}/v1")
        with program(*service, "--concurrency", str(args.clients)) as (pid, url):
            served = asyncio.run(measure("service", url, upstream, pid, args))
    report(direct, served, args)
    if args.json:
        args.json.write_text(json.dumps([asdict(direct), asdict(served)]))
    whole = all(phase.asked == phase.answered == phase.upstream for phase in (direct, served))
    return 0 if whole else 1


if __name__ == "__main__":
    sys.exit(main())
