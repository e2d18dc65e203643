"""The program `llmlab serve` itself: killed, restarted and told to end in the middle of its work."""

import gzip
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest

ROWS, AT_ONCE = 60, 4
Start = Callable[..., tuple[subprocess.Popen[str], str]]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start a program of ours; gives the process and the address that it tells."""
    begun: list[subprocess.Popen[str]] = []

    def begin(*arguments: str, code: str | None = None) -> tuple[subprocess.Popen[str], str]:
        call = [sys.executable, "-m", "llmlab", *arguments] if code is None else [sys.executable, "-c", code]
        told = tmp_path / f"told-{len(begun)}"
        with told.open("w") as out:
            process = subprocess.Popen(call, stdout=out, stderr=subprocess.STDOUT, text=True)  # noqa: S603
        begun.append(process)
        while not re.search(r"http://127\.0\.0\.1:\d+\b.*\n", said := told.read_text()):
            assert process.poll() is None, said
            time.sleep(0.02)
        return process, re.findall(r"http://127\.0\.0\.1:\d+", said)[0]

    yield begin
    for process in begun:
        process.kill()
        process.wait()


UPSTREAM = (
    "import asyncio; from llmlab.sim import Physics, Simulator; from llmlab.sim.server import run_server; "
    "s = Simulator(physics=Physics(ttft=0.05, itl=0.0, jitter=0.0, rtt=0.0), say=lambda ask: 'heard: ' + ask.text); "
    "asyncio.run(run_server(s, '127.0.0.1', 0, announce=lambda text: print(text, flush=True)))"
)


def serve(start: Start, upstream: str, folder: Path, *more: str) -> tuple[subprocess.Popen[str], str]:
    return start("serve", "--port", "0", "--model", "vllm:m", "--base-url", f"{upstream}/v1", "--concurrency",
                 str(AT_ONCE), "--state", str(folder), *more)  # fmt: skip


def received(upstream: str) -> int:
    return int(httpx.get(f"{upstream}/sim/stats").json()["received"])


def job_of(url: str, job: str) -> dict[str, Any]:
    return dict(httpx.get(f"{url}/v1/jobs/{job}", timeout=30).json())


def test_a_job_outlives_the_sudden_death_of_its_server(start: Start, tmp_path: Path) -> None:
    _, upstream = start(code=UPSTREAM)
    folder = tmp_path / "jobs"
    process, url = serve(start, upstream, folder)
    body = {"prompts": [f"row {n}" for n in range(ROWS)]}
    job = httpx.post(f"{url}/v1/jobs", json=body, timeout=30).json()["id"]
    while (done := job_of(url, job)["done"]) < ROWS // 4:
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = received(upstream)
    assert done <= before < ROWS

    _, url = serve(start, upstream, folder)
    while (now := job_of(url, job))["status"] == "running":
        time.sleep(0.05)
    assert (now["status"], now["success_count"], now["durable"]) == ("done", ROWS, True)
    assert [row["content"] for row in now["results"]] == [f"heard: row {n}" for n in range(ROWS)]
    assert ROWS <= received(upstream) <= before + ROWS - done, "what was reported as answered is not asked again"
    assert sorted(path.suffix for path in folder.iterdir() if "lock" not in path.name) == [".json"]
    assert (folder / f"{job}.json").stat().st_mode & 0o077 == 0, "prompts and answers are for their owner's eyes only"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_server_well_and_soon_whoever_looks_on(
    start: Start, tmp_path: Path, number: signal.Signals
) -> None:
    _, upstream = start(code=UPSTREAM)
    process, url = serve(start, upstream, tmp_path / "jobs", "--grace", "20")
    job = httpx.post(f"{url}/v1/jobs", json={"prompts": ["row"] * 5000}, timeout=30).json()["id"]
    with (
        httpx.stream("GET", f"{url}/v1/metrics/stream", timeout=30) as figures,
        httpx.stream("GET", f"{url}/v1/jobs/{job}/events", timeout=30) as events,
    ):
        assert next(figures.iter_lines()).startswith("data: ")
        next(events.iter_lines())
        began = time.monotonic()
        process.send_signal(number)
        assert process.wait(timeout=60) == 0
    assert time.monotonic() - began < 15, "the grace is for requests at work, and there are none"


def test_two_servers_do_not_share_a_folder(start: Start, tmp_path: Path) -> None:
    _, upstream = start(code=UPSTREAM)
    serve(start, upstream, tmp_path / "jobs")
    call = [sys.executable, "-m", "llmlab", "serve", "--port", "0", "--state", str(tmp_path / "jobs")]
    second = subprocess.run(call, capture_output=True, text=True, check=False, timeout=60, env=os.environ)  # noqa: S603
    assert second.returncode == 1
    assert "in use by another service" in second.stderr
    assert "Traceback" not in second.stderr


def test_the_log_is_lines_of_json_on_standard_output(start: Start, tmp_path: Path) -> None:
    _, upstream = start(code=UPSTREAM)
    process, url = serve(start, upstream, tmp_path / "jobs")
    httpx.post(f"{url}/v1/completions", json={"prompt": "a secret thought"}, timeout=30)
    httpx.post(f"{url}/v1/completions", content=b"\xff\xfe{", timeout=30)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 0
    text = (tmp_path / "told-1").read_text()
    lines = [json.loads(line) for line in text.splitlines() if not line.startswith("llmlab: ")]
    assert next(line["status"] for line in lines if line["logger"] == "llmlab.service") == 200
    assert "secret thought" not in text


@pytest.fixture
def collector() -> Iterator[tuple[str, dict[str, bytes]]]:
    """An OTLP collector, and what it has got by path."""
    got: dict[str, bytes] = {}

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            got[self.path] = got.get(self.path, b"") + (
                gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body
            )
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}", got
        server.shutdown()
        thread.join()


def test_telemetry_goes_to_a_collector_without_texts(
    start: Start, tmp_path: Path, collector: tuple[str, dict[str, bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    address, got = collector
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", address)
    _, upstream = start(code=UPSTREAM)
    process, url = serve(start, upstream, tmp_path / "jobs", "--otel")
    httpx.post(f"{url}/v1/completions", json={"prompt": "a secret thought"}, timeout=30)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 0
    assert b"gen_ai.usage.output_tokens" in got["/v1/traces"]
    assert b"gen_ai.client.operation.duration" in got["/v1/metrics"]
    assert b"secret thought" not in b"".join(got.values())
