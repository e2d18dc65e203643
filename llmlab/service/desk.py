"""What all routes of the service share: the lab, who may ask, what is at work, and how it ends.

full          as many prompts as `max_pending` are at work: more are refused with 429, so that memory is bounded
draining      nothing new is taken (503), what is at work may end
client gone   its upstream requests are cancelled at once
"""

import asyncio
import contextlib
import hashlib
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Coroutine, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from fastapi import Request

from llmlab.errors import LabClosed
from llmlab.job import Job
from llmlab.lab import Lab
from llmlab.metrics import Metrics
from llmlab.rules.meter import Meter
from llmlab.service.faults import ENDING, GONE, Failure, Fault, fault_of, late
from llmlab.service.rooms import Pool, Room

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
    """Prompts at work at a time, but for those of long jobs."""
    max_job_prompts: int
    """Prompts of long jobs at work at a time."""
    deadline: float
    """Seconds for a request that waits for its answer."""
    stall: float
    """Seconds for which a reader may take nothing, or a writer give nothing."""
    grace: float
    """Seconds for what is at work when the service ends."""
    cors: Collection[str]
    """Origins whose web pages may ask."""
    log_prompts: bool
    """Whether prompts' texts stand in the log."""

    def __post_init__(self) -> None:
        for name in ("max_body", "max_prompts", "max_pending", "max_job_prompts", "deadline", "stall"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0, not {getattr(self, name)!r}")
        if not self.grace >= 0:
            raise ValueError(f"grace must be 0 or more, not {self.grace!r}")
        if self.rpm is not None and not self.rpm > 0:
            raise ValueError(f"rpm must be above 0, or None for no limit, not {self.rpm!r}")
        _check_keys(self.keys)


SHORTEST = 8
"""Characters of a key, at least."""
BURST = 0.1
"""Share of a minute's prompts that one key may send at once."""
BODIES = 32
"""Bodies of the largest size that are held at a time."""


def _check_keys(keys: Mapping[str, str]) -> None:
    for name, key in keys.items():
        if not isinstance(key, str) or len(key) < SHORTEST:
            raise ValueError(f"a key is a text of at least {SHORTEST} characters; {name!r} has none")
        if not (key.isascii() and key.isprintable()) or " " in key:
            raise ValueError(f"a key is made of ASCII letters, digits and signs, without spaces; {name!r} has others")
    if len(set(keys.values())) < len(keys):
        raise ValueError("two names have the same key")


@dataclass
class Client:
    """Who asks: one of those with a key, or anybody where none is needed."""

    name: str
    """For logs and counts; never the key."""
    lab: Lab
    """The service's lab, in which it takes turns with the others."""
    meter: Meter
    """Its own rate limit."""

    def charge(self, now: float, prompts: int = 1) -> None:
        """Count prompts against its own limit: who may ask one may ask many, and then waits until they are made up for.

        Raises:
            Failure: it has asked too often.
        """
        wait = self.meter.free(1.0) - now
        if wait > 0:
            raise Failure(Fault(429, "rate_limited", "too many prompts with this key", wait))
        self.meter.take(now, prompts)


@dataclass
class Desk:
    """The service's state; lives on the server's loop."""

    lab: Lab
    """Answers."""
    settings: Settings
    """As the service was told."""
    metrics: Metrics = field(default_factory=lambda: Metrics(words=lambda error: fault_of(error).message))
    """What all jobs of the lab came to so far."""
    answered: Counter[tuple[str, int]] = field(default_factory=Counter)
    """Requests answered, by route and status."""
    asks: Pool = field(init=False)
    """Prompts whose client waits for the answer."""
    job_prompts: Pool = field(init=False)
    """Prompts of long jobs."""
    bodies: Pool = field(init=False)
    """Bytes of requests that are held."""
    draining: bool = False
    """Whether nothing new is taken."""
    over: bool = False
    """Whether what is still at work is cancelled."""
    _clients: dict[bytes, Client] = field(default_factory=dict, repr=False)
    _working: "set[asyncio.Future[Any]]" = field(default_factory=set, repr=False)
    _looking: "set[asyncio.Future[Any]]" = field(default_factory=set, repr=False)
    _end: "asyncio.Task[None] | None" = field(default=None, repr=False)

    def __post_init__(self) -> None:
        settings = self.settings
        for name, key in settings.keys.items():
            self._clients[_digest(key)] = self._client(name)
        if not self._clients:
            self._clients[_digest("")] = self._client(ANYBODY)
        shared = len(self._clients) > 1
        self.asks = Pool(settings.max_pending, "prompts", shared)
        self.job_prompts = Pool(settings.max_job_prompts, "prompts of long jobs", shared)
        self.bodies = Pool(BODIES * settings.max_body, "bytes of requests", shared)
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

    def named(self, name: str) -> Client | None:
        """The client of this name. None: there is none."""
        return next((client for client in self._clients.values() if client.name == name), None)

    # -- work ---------------------------------------------------------------------------------------------

    @property
    def pending(self) -> int:
        """Prompts whose clients wait."""
        return self.asks.used

    def take_room(self, pool: Pool, prompts: int, client: Client) -> Room:
        """Let prompts in, and charge their client.

        Raises:
            Failure: the service is full or about to end, or its client has asked too often.
        """
        if self.draining:
            raise Failure(ENDING)
        room = pool.take(prompts, client.name)
        try:
            client.charge(asyncio.get_running_loop().time(), prompts)
        except Failure:
            room.leave()
            raise
        return room

    @contextlib.contextmanager
    def at_work(self, task: "asyncio.Future[Any]", *, looks_on: bool = False) -> Any:
        """Have a task cancelled when the service's time is over, or if it only looks on as soon as that is near."""
        group = self._looking if looks_on else self._working
        group.add(task)
        if self.over or (looks_on and self.draining):
            task.cancel()
        try:
            yield
        finally:
            group.discard(task)

    async def until_gone(self, request: Request, work: Coroutine[Any, Any, T], seconds: float | None = None) -> T:
        """Wait for an answer as long as its client does, and no longer than the deadline.

        Raises:
            Failure: the deadline has passed, the client is gone, or the service ends.
        """
        limit = min(self.settings.deadline, seconds or self.settings.deadline)
        task = asyncio.ensure_future(work)
        gone = asyncio.ensure_future(until_disconnected(request.receive))
        try:
            with self.at_work(task):
                await asyncio.wait({task, gone}, timeout=limit, return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                raise Failure(GONE if gone.done() else late(limit))
            if task.cancelled():
                raise Failure(ENDING) if self.over else LabClosed("the answer was stopped")
            return task.result()
        finally:
            await end_all(task, gone)

    def check_model(self, model: str | None) -> str | None:
        """The model to ask, None for the lab's own.

        Raises:
            Failure: it is none of those that may be asked for.
        """
        own = self.lab.target.provider.model
        if model in (None, "", "default", own, self.lab.model):
            return None
        if self.settings.models is not None and model not in self.settings.models:
            known = ", ".join(self.models)
            raise Failure(Fault(404, "model_not_found", f"there is no model of that name here; there are: {known}"))
        return model

    @property
    def models(self) -> list[str]:
        """Those that may be asked for, as far as they are named; the lab's own first."""
        return list(dict.fromkeys([self.lab.target.provider.model, *sorted(self.settings.models or ())]))

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
        """Take nothing new, wait for what is at work as long as is allowed, then cancel it; again: wait for that."""
        if self._end is None:
            self._end = asyncio.ensure_future(self._drain())
        await asyncio.shield(self._end)

    async def _drain(self) -> None:
        self.draining = True
        for task in tuple(self._looking):
            task.cancel()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self.settings.grace):
                await self.asks.idle.wait()
        self.over = True
        for task in tuple(self._working):
            task.cancel()
        self._unwatch()


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
