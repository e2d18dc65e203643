"""Rows per second and CPU per row of llmlab and its peers against one instant local server.

Every client runs in a process of its own, the order is reversed each round, and the medians of all rounds
are shown: what is compared was measured in the same minutes on the same machine. The server is nginx with
its echo module, so that the client is what is measured, and `wrk` shows beforehand how much the server has
to give. A client opens its connections and warms up on one prompt per connection; then the clock starts.

With `--latency S` the server waits S seconds before each answer, and the figure is the share of the
rate that Little's law allows: connections / latency.
"""

import argparse
import asyncio
import contextlib
import importlib.util
import json
import os
import resource
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import TypeAlias

import aiohttp
import httpx
import orjson

Run: TypeAlias = Callable[[list[str]], Awaitable[list[str]]]
"""Prompts to answers, in the same order."""

MODEL = "bench"
KEY = "none"
HEADERS = {"Content-Type": "application/json", "Authorization": f"Bearer {KEY}"}
ANSWER = "Positive. The reviewer likes the light and the size, and forgives the short cable; no refund."
COMPLETION = {
    "id": "chatcmpl-bench0001",
    "object": "chat.completion",
    "created": 1767225600,
    "model": MODEL,
    "choices": [{"index": 0, "message": {"role": "assistant", "content": ANSWER}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 14, "completion_tokens": 24, "total_tokens": 38},
}

PREFIXES = ("/usr/lib", "/usr/lib64", "/usr/share", "/usr/local/lib", "/etc")
NO_NGINX = "nginx with its echo module is needed: apt-get install nginx-light libnginx-mod-http-echo"
FILES = 8192  # open at once: what nginx is told, too
ENOUGH = 15_000  # requests/s: above what bare aiohttp reaches on one core
PATIENCE = 180.0  # seconds for one client's run, and for one of plain httpx's requests in its pool
CONFIG = """
{modules}
daemon off; master_process off; worker_processes 1; worker_rlimit_nofile {files};
pid {folder}/nginx.pid; error_log {folder}/error.log crit;
events {{ worker_connections 4096; }}
http {{
  access_log off; keepalive_requests 100000000; keepalive_timeout 300s; client_body_buffer_size 64k;
  client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; scgi_temp_path {folder}/scgi;
  fastcgi_temp_path {folder}/fastcgi; uwsgi_temp_path {folder}/uwsgi;
  server {{
    listen 127.0.0.1:{port} backlog=4096;
    location / {{ default_type application/json; echo_read_request_body; {sleep} echo '{answer}'; }}
  }}
}}
"""
WRK_SCRIPT = """
wrk.method = "POST"
wrk.headers["Content-Type"] = "application/json"
wrk.body = [[{"model": "bench", "messages": [{"role": "user", "content": "Say the number 1."}]}]]
"""


def body(prompt: str) -> bytes:
    """Encode the request that the bare clients post."""
    return orjson.dumps({"model": MODEL, "messages": [{"role": "user", "content": prompt}]})


def text(payload: bytes) -> str:
    """Parse an answer as far as every client has to."""
    return str(orjson.loads(payload)["choices"][0]["message"]["content"])


async def swarm(ask: Callable[[str], Awaitable[str]], prompts: list[str], connections: int) -> list[str]:
    """Ask all prompts with as many workers as connections."""
    answers = [""] * len(prompts)
    todo = iter(enumerate(prompts))

    async def work() -> None:
        for row, prompt in todo:
            answers[row] = await ask(prompt)

    await asyncio.gather(*(work() for _ in range(connections)))
    return answers


@contextlib.asynccontextmanager
async def bare_aiohttp(url: str, connections: int) -> AsyncIterator[Run]:
    """Post and parse, nothing else: the yardstick."""
    connector = aiohttp.TCPConnector(limit=connections)
    async with aiohttp.ClientSession(connector=connector, headers=HEADERS) as session:

        async def ask(prompt: str) -> str:
            async with session.post(f"{url}/chat/completions", data=body(prompt)) as response:
                return text(await response.read())

        yield lambda prompts: swarm(ask, prompts, connections)


@contextlib.asynccontextmanager
async def plain_httpx(url: str, connections: int) -> AsyncIterator[Run]:
    """Use httpx with its own connection pool."""
    limits = httpx.Limits(max_connections=connections, max_keepalive_connections=connections)
    async with httpx.AsyncClient(limits=limits, headers=HEADERS, timeout=PATIENCE) as client:

        async def ask(prompt: str) -> str:
            response = await client.post(f"{url}/chat/completions", content=body(prompt))
            return text(response.content)

        yield lambda prompts: swarm(ask, prompts, connections)


@contextlib.asynccontextmanager
async def openai_sdk(url: str, connections: int) -> AsyncIterator[Run]:
    """Use the official SDK as it comes, its default HTTP client and limits included."""
    openai = import_module("openai")
    async with openai.AsyncOpenAI(base_url=url, api_key=KEY, max_retries=0) as client:

        async def ask(prompt: str) -> str:
            message = {"role": "user", "content": prompt}
            reply = await client.chat.completions.create(model=MODEL, messages=[message])
            return str(reply.choices[0].message.content)

        yield lambda prompts: swarm(ask, prompts, connections)


@contextlib.asynccontextmanager
async def lm_deluge(url: str, connections: int) -> AsyncIterator[Run]:
    """Use lm-deluge with its limits out of the way; it opens a new pool for every batch."""
    deluge, models = import_module("lm_deluge"), import_module("lm_deluge.models")
    os.environ["LLMLAB_BENCH_KEY"] = KEY
    models.register_model(id=MODEL, name=MODEL, api_base=url, api_key_env_var="LLMLAB_BENCH_KEY")
    limits = {"max_requests_per_minute": 10**9, "max_tokens_per_minute": 10**12, "max_attempts": 1}
    client = deluge.LLMClient(MODEL, max_concurrent_requests=connections, **limits)

    async def run(prompts: list[str]) -> list[str]:
        replies = await client.process_prompts_async(prompts, show_progress=False)
        return [str(reply.completion) for reply in replies]

    yield run


@contextlib.asynccontextmanager
async def llmlab_run_many(url: str, connections: int) -> AsyncIterator[Run]:
    """Use llmlab's full default stack: policies, events, frame."""
    llmlab = import_module("llmlab")
    async with llmlab.Lab(f"openai:{MODEL}", base_url=url, api_key=KEY, concurrency=connections) as lab:

        async def run(prompts: list[str]) -> list[str]:
            out = await lab.run_many(prompts, progress=False)
            return list(out["content"].where(out["status"] == "ok", ""))

        yield run


YARDSTICK = "aiohttp"
CLIENTS: dict[str, Callable[[str, int], contextlib.AbstractAsyncContextManager[Run]]] = {
    YARDSTICK: bare_aiohttp,
    "httpx": plain_httpx,
    "openai": openai_sdk,
    "lm-deluge": lm_deluge,
    "llmlab": llmlab_run_many,
}


@dataclass(frozen=True)
class Sample:
    """One run of one client."""

    client: str
    connections: int
    rows_s: float
    """Rows per second of wall time."""
    cpu_us: float
    """Microseconds of user and system time of the client's process per row."""


def cpu_s() -> float:
    """Seconds of CPU that this process has used, all threads."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


async def measure(name: str, url: str, connections: int, rows: int) -> Sample:
    """Warm the client up, then run `rows` distinct prompts.

    Raises:
        RuntimeError: an answer is not the server's.
    """
    async with CLIENTS[name](url, connections) as run:
        await run([f"Warm up {i}." for i in range(connections)])
        prompts = [f"Say the number {i}." for i in range(rows)]
        cpu, wall = cpu_s(), time.perf_counter()
        answers = await run(prompts)
        wall, cpu = time.perf_counter() - wall, cpu_s() - cpu
    if wrong := rows - answers.count(ANSWER):
        raise RuntimeError(f"{wrong} of {rows} rows have no answer, or not the server's")
    return Sample(name, connections, rows / wall, cpu / rows * 1e6)


def child_env() -> dict[str, str]:
    """Measure the tree this file is in, and talk to the server directly."""
    env = {key: value for key, value in os.environ.items() if not key.lower().endswith("_proxy")}
    paths = [str(Path(__file__).resolve().parents[1]), env.get("PYTHONPATH", "")]
    return env | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}


def sample(name: str, port: int, connections: int, rows: int) -> Sample:
    """Run `measure` in a new process.

    Raises:
        RuntimeError: the client failed or took longer than `PATIENCE`.
    """
    command = [sys.executable, __file__, "--child", name, "--port", str(port)]
    command += ["--connections", str(connections), "--rows", str(rows)]
    try:
        done = subprocess.run(command, env=child_env(), capture_output=True, text=True, timeout=PATIENCE, check=True)
    except subprocess.TimeoutExpired:
        raise RuntimeError(f"not done after {PATIENCE:.0f} s") from None
    except subprocess.CalledProcessError as error:
        raise RuntimeError((error.stderr.strip().splitlines() or ["died"])[-1]) from None
    return Sample(**json.loads(done.stdout.splitlines()[-1]))


def find_nginx() -> tuple[str, str]:
    """Find the program, and the lines that load its echo module (and the kit, where that is a module too).

    Raises:
        SystemExit: one of them is not installed.
    """
    program = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")
    for folder in (Path(prefix, "nginx/modules") for prefix in PREFIXES):
        wanted = (folder / "ndk_http_module.so", folder / "ngx_http_echo_module.so")
        if program and wanted[1].exists():
            return program, "\n".join(f"load_module {path};" for path in wanted if path.exists())
    raise SystemExit(NO_NGINX)


def comes_up(port: int, process: subprocess.Popen[bytes]) -> bool:
    """Wait until the server accepts connections; False when it ended, or took more than five seconds."""
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return True
        time.sleep(0.02)
    return False


@contextlib.contextmanager
def server(latency: float) -> Iterator[int]:
    """Serve one chat completion for every request, `latency` seconds after it, on the port given back.

    Raises:
        SystemExit: nginx or its echo module is missing, or it does not start.
    """
    nginx, modules = find_nginx()
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = int(free.getsockname()[1])
    sleep = f"echo_sleep {latency:.3f};" if latency else ""
    answer = orjson.dumps(COMPLETION).decode()
    fields = {"modules": modules, "port": port, "files": FILES, "sleep": sleep, "answer": answer}
    with tempfile.TemporaryDirectory() as folder:
        config, log = Path(folder, "nginx.conf"), Path(folder, "error.log")
        config.write_text(CONFIG.format(**fields, folder=folder))
        command = [nginx, "-p", folder, "-c", str(config), "-e", str(log)]
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        try:
            if not comes_up(port, process):
                raise SystemExit(f"nginx does not start: {log.read_text().strip()}")
            yield port
        finally:
            process.terminate()
            process.wait(timeout=10)


def wrk_rate(port: int, connections: int) -> float | None:
    """Measure for three seconds how many requests/s the server can answer; None without `wrk`.

    Raises:
        SystemExit: the answers are errors.
    """
    if (wrk := shutil.which("wrk")) is None:
        return None
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as script:
        script.write(WRK_SCRIPT)
        script.flush()
        url = f"http://127.0.0.1:{port}/v1/chat/completions"
        command = [wrk, "-t1", f"-c{connections}", "-d3s", "-s", script.name, url]
        report = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    if "Non-2xx" in report:
        raise SystemExit(f"nginx answers with errors:\n{report}")
    return float(report.partition("Requests/sec:")[2].split()[0])


def check_server(port: int, connections: int, latency: float) -> None:
    """Print what the server has to give, and say so when that is too little to judge clients by."""
    if (rate := wrk_rate(port, connections)) is None:
        print("server: not checked (apt-get install wrk)")
        return
    enough = 0.85 * connections / latency if latency else ENOUGH  # the first and the last wave are cut
    verdict = "enough" if rate >= enough else f"TOO SLOW to judge clients by, {enough:,.0f} wanted"
    print(f"server: {rate:,.0f} requests/s at {connections} connections by wrk: {verdict}")


def available(names: Sequence[str]) -> list[str]:
    """Leave out what is not installed, and say so."""
    here = [name for name in names if name == "llmlab" or importlib.util.find_spec(name.replace("-", "_"))]
    for name in names:
        if name not in here:
            print(f"{name}: not installed, skipped")
    return here


def collect(names: list[str], port: int, connections: int, rows: int, repeat: int) -> list[Sample]:
    """Measure every client `repeat` times, each round in reverse; one that fails is not asked again."""
    samples: list[Sample] = []
    failed: set[str] = set()
    order = [name for number in range(repeat) for name in names[:: -1 if number % 2 else 1]]
    for name in order:
        if name in failed:
            continue
        try:
            samples.append(sample(name, port, connections, rows))
        except RuntimeError as error:
            failed.add(name)
            print(f"{name} at {connections} connections failed: {error}")
    return samples


def medians(samples: list[Sample]) -> list[Sample]:
    """Take the median of each client and number of connections, in the order of first appearance."""
    groups: dict[tuple[str, int], list[Sample]] = {}
    for one in samples:
        groups.setdefault((one.client, one.connections), []).append(one)
    mid = statistics.median
    return [
        Sample(*key, mid(one.rows_s for one in group), mid(one.cpu_us for one in group))
        for key, group in groups.items()
    ]


def table(results: list[Sample], latency: float) -> str:
    """Format the medians; the ratio is rows/s over bare aiohttp's at the same number of connections."""
    yardstick = {one.connections: one.rows_s for one in results if one.client == YARDSTICK}
    share = "  of Little's law" if latency else ""
    lines = [f"{'connections':>11}  {'client':<10}{'rows/s':>8}{'CPU µs/row':>12}{'/ aiohttp':>11}{share}"]
    for one in results:
        bare = yardstick.get(one.connections)
        ratio = f"{one.rows_s / bare:.2f}" if bare else "-"
        share = f"{one.rows_s * latency / one.connections:>17.0%}" if latency else ""
        figures = f"{one.rows_s:>8,.0f}{one.cpu_us:>12,.0f}{ratio:>11}"
        lines.append(f"{one.connections:>11,}  {one.client:<10}{figures}{share}")
    return "\n".join(lines)


def raise_file_limit() -> None:
    """Allow 1,000 connections and more, here and in every process started from here."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = FILES if hard == resource.RLIM_INFINITY else min(FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rows", type=int, help="rows of each run: default 5000; with --latency 10000")
    parser.add_argument("--connections", type=int, nargs="+", help="default 100 1000; with --latency 1000")
    parser.add_argument("--repeat", type=int, default=3, help="runs of each client (default %(default)s)")
    parser.add_argument("--only", nargs="+", choices=CLIENTS, default=list(CLIENTS), help="default all")
    parser.add_argument("--latency", type=float, default=0.0, help="seconds that the server takes; default 0")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every single run to this file")
    parser.add_argument("--child", choices=CLIENTS, help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    args.rows = args.rows or (10_000 if args.latency else 5_000)
    args.connections = args.connections or ([1000] if args.latency else [100, 1000])
    return args


def main(argv: Sequence[str] | None = None) -> None:
    """Measure the chosen clients and print a table."""
    args = parse(argv)
    if args.child:
        url = f"http://127.0.0.1:{args.port}/v1"
        done = asyncio.run(measure(args.child, url, args.connections[0], args.rows))
        print(json.dumps(asdict(done)))
        return
    raise_file_limit()
    names = available(args.only)
    samples: list[Sample] = []
    with server(args.latency) as port:
        for connections in args.connections:
            check_server(port, connections, args.latency)
            samples += collect(names, port, connections, args.rows, args.repeat)
    print(table(medians(samples), args.latency))
    if args.json:
        runs = {"rows": args.rows, "latency": args.latency, "samples": [asdict(one) for one in samples]}
        args.json.write_text(json.dumps(runs, indent=1) + "\n")


if __name__ == "__main__":
    main()
