"""What the tests share: virtual time, and endpoints that answer from a script."""

import asyncio
import random
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, TypeVar

import pytest
from hypothesis import settings

from llmlab import core
from llmlab.call import Call
from llmlab.clock import run_virtual
from llmlab.events import Event
from llmlab.types import Prompt, Reply

T = TypeVar("T")

# How fast a machine is, and what else it does, says nothing about whether a claim holds.
settings.register_profile("llmlab", deadline=None)
settings.load_profile("llmlab")


@pytest.fixture(autouse=True)
def _quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """The line about the simulated provider has its own test; elsewhere it is noise."""
    monkeypatch.setattr(core, "_told", True)


@pytest.fixture
def virtual() -> Callable[[Callable[[], Awaitable[Any]]], Any]:
    """Run an async function in virtual time."""
    return run_virtual


@pytest.fixture
def make_call() -> Callable[..., Call]:
    """Make calls that keep what they emit in `call.events`."""

    def make(index: int = 0, **fields: Any) -> Call:
        events: list[Event] = []
        call = Call(index, Prompt.of(f"prompt {index}"), events.append, random.Random(index), seq=index, **fields)
        EVENTS[id(call)] = events
        return call

    return make


EVENTS: dict[int, list[Event]] = {}


@pytest.fixture
def emitted() -> Iterator[Callable[[Call], list[Event]]]:
    """What a call made by `make_call` has emitted."""
    yield lambda call: EVENTS[id(call)]
    EVENTS.clear()


def reply(text: str = "answer") -> Reply:
    return Reply(text, "stop", "test", "model")


class Script:
    """An endpoint that answers from a list: an exception is raised, a number of seconds is slept first."""

    def __init__(self, *steps: Any) -> None:
        self.steps = list(steps)
        self.at: list[float] = []

    async def __call__(self, call: Call) -> Reply:
        self.at.append(asyncio.get_running_loop().time())
        call.attempts += 1
        step = self.steps.pop(0) if self.steps else None
        if isinstance(step, BaseException):
            raise step
        if isinstance(step, int | float):
            await asyncio.sleep(step)
        return reply()


@pytest.fixture
def script() -> type[Script]:
    return Script
