"""What all routes of the service share: the lab, who may ask, what is at work, and how it ends.

full          as many rows as `max_pending` are at work: more are refused with 429, so that memory is bounded
draining      nothing new is taken (503), what is at work may end
client gone   its upstream requests are cancelled at once
"""

import asyncio
import contextlib
import hashlib
from collections.abc import Awaitable, Callable, Collection, Coroutine, Mapping
from dataclasses import dataclass, field
from typing import Any, Self, TypeVar

from fastapi import Request

from llmlab.errors import LabClosed
from llmlab.job import Job
from llmlab.lab import Lab
from llmlab.metrics import Metrics
from llmlab.rules.meter import Meter
from llmlab.service.faults import SOON, Failure, Fault

T = TypeVar("T")

ANYBODY = "anybody"
"""Name of the client where nobody needs a key."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What a service is told when it is made; described at `llmlab.service.create_app`."""

    keys: Mapping[str, str] = field(repr=False)
    """By name."""
    models: Collection[str] | None
    """That may be asked for besides the lab's own. None: any."""
    rpm: float | None
    """For each key. None: no limit."""
    max_body: int
    """Bytes."""
    max_prompts: int
    """Of one batch."""
    max_pending: int
    """Rows at work at a time."""
    deadline: float
    """Seconds for a request that waits for its answer."""
    stall: float
    """Seconds for which a reader may take nothing."""
    grace: float
    """Seconds for what is at work when the service ends."""
    log_prompts: bool
    """Whether prompts' texts stand in the log."""

    def __post_init__(self) -> None:
        for name in ("max_body", "max_prompts", "max_pending", "deadline", "stall"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0, not {getattr(self, name)!r}")
        if self.rpm is not None and not self.rpm > 0:
            raise ValueError(f"rpm must be above 0, or None for no limit, not {self.rpm!r}")
        if any(not isinstance(key, str) or len(key) < SHORTEST for key in self.keys.values()):
            raise ValueError(f"a key is a text of at least {SHORTEST} characters")


SHORTEST = 8
"""Characters of a key, at least."""
BURST = 0.1
"""Share of a minute's requests that one key may send at once."""


@dataclass
class Client:
    """Who asks: one of those with a key, or anybody where none is needed."""

    name: str
    """For logs and counts; never the key."""
    lab: Lab
    """The service's lab, in which it takes turns with the others."""
    meter: Meter
    """Its own rate limit."""

    def charge(self, now: float, requests: float = 1.0) -> None:
        """Count requests against its own limit.

        Raises:
            Failure: it has asked too often.
        """
        wait = self.meter.free(requests) - now
        if wait > 0:
            raise Failure(Fault(429, "rate_limited", "too many requests with this key", wait))
        self.meter.take(now, requests)


@dataclass
class Desk:
    """The service's state; lives on the server's loop."""

    lab: Lab
    """Answers."""
    settings: Settings
    """As the service was told."""
    metrics: Metrics = field(default_factory=Metrics)
    """What all jobs of the lab came to so far."""
    pending: int = 0
    """Rows at work."""
    waited_for: int = 0
    """Those of them that the service's end waits for: all but the rows of long jobs."""
    draining: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when the service takes nothing new."""
    over: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when what is still at work is cancelled."""
    idle: asyncio.Event = field(default_factory=asyncio.Event)
    """Set while nothing is at work that is waited for."""
    _clients: dict[bytes, Client] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        self.idle.set()
        for name, key in self.settings.keys.items():
            self._clients[_digest(key)] = self._client(name)
        if not self._clients:
            self._clients[_digest("")] = self._client(ANYBODY)
        self._unwatch = self.lab.watch(self._begun)

    def _client(self, name: str) -> Client:
        rpm = self.settings.rpm
        meter = Meter(60.0, own=rpm)
        if rpm is not None:
            meter.bound(0.0, max(BURST, 1 / rpm))
        return Client(name, self.lab.member(), meter)

    def client(self, key: str) -> Client | None:
        """Who has this key. None: nobody."""
        return self._clients.get(_digest(key if self.settings.keys else ""))

    # -- work ---------------------------------------------------------------------------------------------

    @property
    def clients(self) -> tuple[Client, ...]:
        """All who may ask."""
        return tuple(self._clients.values())

    def take_room(self, rows: int, *, waits: bool = True) -> "Room":
        """Count rows as at work until the room is left; `waits`: the service's end waits for them.

        Raises:
            Failure: the service is full, or is about to end.
        """
        if self.draining.is_set():
            raise Failure(ENDING)
        if self.pending + rows > self.settings.max_pending:
            words = f"{self.pending} prompts are at work, of {self.settings.max_pending} at most"
            raise Failure(Fault(429, "queue_full", words, SOON))
        return Room(self, rows, waits=waits)

    async def until_gone(self, request: Request, work: Coroutine[Any, Any, T], seconds: float | None = None) -> T:
        """Wait for an answer as long as its client does, and no longer than the deadline.

        Raises:
            Failure: the deadline has passed, or the client is gone.
        """
        task = asyncio.ensure_future(work)
        gone = asyncio.ensure_future(until_disconnected(request.receive))
        over = asyncio.ensure_future(self.over.wait())
        limit = min(self.settings.deadline, seconds or self.settings.deadline)
        try:
            await asyncio.wait({task, gone, over}, timeout=limit, return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                raise Failure(GONE if gone.done() else ENDING if over.done() else _late(limit))
            if task.cancelled():
                raise LabClosed("the answer was stopped")
            return task.result()
        finally:
            await end_all(task, gone, over)

    def check_model(self, model: str | None) -> str | None:
        """The model to ask, None for the lab's own.

        Raises:
            Failure: it is none of those that may be asked for.
        """
        own = self.lab.target.provider.model
        if model in (None, "", "default", own, self.lab.model):
            return None
        if self.settings.models is not None and model not in self.settings.models:
            known = ", ".join(sorted({own, *self.settings.models}))
            raise Failure(Fault(404, "model_not_found", f"there is no model of that name here; there are: {known}"))
        return model

    # -- state --------------------------------------------------------------------------------------------

    def _begun(self, job: Job[Any]) -> None:
        self.metrics.watch(job.bus)

    @property
    def breakers(self) -> dict[str, str]:
        """State of each target's breaker, by the target's name; "closed" where there is none."""
        now = asyncio.get_running_loop().time()
        route = self.lab.target.route
        lines = () if route is None else route.lines
        return {name: str(line.gauge(now).get("breaker", "closed")) for name, line in lines}

    @property
    def queued(self) -> int:
        """Calls standing in the line of the lab's own target."""
        line = self.lab.target.line
        return 0 if line is None else line.waiting

    @property
    def in_flight(self) -> int:
        """Requests in flight to the lab's own target."""
        slots = self.lab.strategy.slots
        return self.pending if slots is None else slots.in_use

    async def drain(self) -> None:
        """Take nothing new, wait for what is at work as long as is allowed, then cancel it."""
        self.draining.set()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self.settings.grace):
                await self.idle.wait()
        self.over.set()
        self._unwatch()


class Room:
    """Rows that are counted as at work."""

    def __init__(self, desk: Desk, rows: int, *, waits: bool = True) -> None:
        self._desk, self._rows, self._waits = desk, rows, waits
        desk.pending += rows
        desk.waited_for += rows * waits
        if desk.waited_for:
            desk.idle.clear()

    def leave(self) -> None:
        """They are done; a second call does nothing."""
        self._desk.pending -= self._rows
        self._desk.waited_for -= self._rows * self._waits
        self._rows = 0
        if not self._desk.waited_for:
            self._desk.idle.set()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.leave()


ENDING = Fault(503, "shutting_down", "the service is shutting down", SOON)
GONE = Fault(499, "client_gone", "the client has closed the connection")


def _late(limit: float) -> Fault:
    return Fault(504, "deadline", f"there was no answer within {limit:g} s")


def _digest(key: str) -> bytes:
    # Looked up by digest: how long the look-up takes says nothing about the keys.
    return hashlib.sha256(key.encode()).digest()


async def until_disconnected(receive: Callable[[], Awaitable[Any]]) -> None:
    """Return when the client has closed the connection; what it sends until then is thrown away."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def end_all(*tasks: "asyncio.Future[Any]") -> None:
    """Cancel what is not done, and wait until it is."""
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    for task in tasks:
        _ = task.cancelled() or task.exception()  # seen: nobody else will ask
