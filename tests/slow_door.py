"""A provider that answers after a while, and labs on it."""

import asyncio
import threading
from typing import Any

import httpx

import llmlab
from llmlab.sim import Physics, Simulator

ANSWER = {
    "model": "m",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "yes"}, "finish_reason": "stop"}],
}


class Door(httpx.AsyncBaseTransport):
    """Says when a request has come, and answers when it is opened; both from any thread."""

    def __init__(self, *, is_open: bool = True) -> None:
        self.came = threading.Semaphore(0)
        self.threads: list[str] = []
        self._open = threading.Event()
        if is_open:
            self._open.set()

    def open(self) -> None:
        self._open.set()

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        self.threads.append(threading.current_thread().name)
        self.came.release()
        await asyncio.get_running_loop().run_in_executor(None, self._open.wait)
        return httpx.Response(200, json=ANSWER, request=request)


def lab_of(transport: httpx.AsyncBaseTransport, **options: Any) -> llmlab.Lab:
    return llmlab.Lab("openai:m", api_key="k", transport=transport, **options)


def slow(seconds: float = 1.0, **options: Any) -> llmlab.Lab:
    """A lab whose answers take so many seconds each."""
    physics = Physics(rtt=0, ttft=seconds, itl=0, load=0, prefill=1e9, jitter=0)
    return llmlab.Lab("openai:m", transport=Simulator(physics=physics), seed=1, **options)
