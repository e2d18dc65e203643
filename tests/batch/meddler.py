"""A transport between a lab and the simulator that meddles with the answers."""

import asyncio
from collections.abc import Callable
from typing import Any

import httpx

from llmlab.clock import run_virtual
from llmlab.sim.batches import BatchPace
from llmlab.sim.transport import Simulator
from tests.batch.labs import make_lab, make_sim

CREATE = {"openai": "/batches", "anthropic": "/messages/batches"}
PROMPTS = [f"prompt {n}" for n in range(30)]

Meddle = Callable[[httpx.Request, httpx.Response], httpx.Response | None]


class Meddler(httpx.AsyncBaseTransport):
    """Stands between a lab and the simulator: the requests have been done when it does something to the answers.

    Args:
        sim: The provider.
        meddle: Gets the request and the answer; gives another answer, raises, or gives None to let it be. In the
            request's extensions is how many like it have come `before`.
    """

    def __init__(self, sim: Simulator, meddle: Meddle) -> None:
        self.sim, self._meddle = sim, meddle
        self.seen: list[tuple[float, str, str]] = []

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        path = request.url.path
        before = sum((method, where) == (request.method, path) for _, method, where in self.seen)
        self.seen.append((asyncio.get_running_loop().time(), request.method, path))
        response = await self.sim.handle_async_request(request)
        body = await response.aread()
        whole = httpx.Response(response.status_code, headers=response.headers, content=body, request=request)
        request.extensions["before"] = before
        return self._meddle(request, whole) or whole

    def times(self, method: str, ending: str) -> list[float]:
        return [at for at, how, path in self.seen if how == method and path.endswith(ending)]


def creates(request: httpx.Request, dialect: str) -> bool:
    return request.method == "POST" and request.url.path.endswith(CREATE[dialect])


def before(request: httpx.Request) -> int:
    return int(request.extensions["before"])


def lost(*_: Any) -> httpx.Response:
    raise httpx.ReadError("")


def count_batches(sim: Simulator, dialect: str) -> int:
    desk = sim.world._desks[0 if dialect == "anthropic" else 1][1]
    return len(desk._shelf._batches)


def run(dialect: str, meddle: Meddle, pace: BatchPace | None = None, **settings: Any) -> tuple[Any, Any, Meddler]:
    async def main() -> Any:
        transport = Meddler(make_sim(pace), meddle)
        job = make_lab(transport.sim, dialect, transport=transport).submit_batch(PROMPTS, **settings)
        return await job, job, transport

    found: tuple[Any, Any, Meddler] = run_virtual(main)
    return found
