"""A service in process, on the simulator."""

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

import llmlab
from llmlab.service import create_app
from llmlab.sim import Faults, Physics, Simulator
from llmlab.sim.wire import Ask


@dataclass
class Served:
    """A service at work, and who asks it."""

    app: FastAPI
    client: httpx.AsyncClient
    simulator: Simulator
    lab: llmlab.Lab


Serve = Callable[..., AbstractAsyncContextManager[Served]]


def echo(ask: Ask) -> str:
    return f"heard: {ask.text}"


@pytest.fixture
def serve() -> Serve:
    """Begin a service: `async with serve(faults="…", keys=…) as served`."""

    @asynccontextmanager
    async def begin(
        *,
        physics: Physics | None = None,
        faults: str = "",
        lab: dict[str, Any] | None = None,
        model: str = "openai:m",
        **settings: Any,
    ) -> AsyncIterator[Served]:
        simulator = Simulator(physics=physics or Physics.instant(), faults=Faults.parse(faults), say=echo)
        own = llmlab.Lab(model, api_key="sk-upstream-secret", transport=simulator, progress=False, **(lab or {}))
        app = create_app(own, **settings)
        transport = httpx.ASGITransport(app)
        client = httpx.AsyncClient(transport=transport, base_url="http://test")
        async with own, app.router.lifespan_context(app), client:
            yield Served(app, client, simulator, own)

    return begin
