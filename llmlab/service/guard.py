"""What every request passes before a route sees it: an id, a key, a bound on its size, a line in the log.

    keys are set       Authorization: Bearer KEY, or 401. Free of it: the health check and the page itself
    no keys            only what comes over loopback, names loopback as its host, passed no proxy and is sent by no web
                       page of others: neither a name that its owner points to 127.0.0.1 nor a form can ask here

The log has one JSON object a line, and of prompts only their number: a key or a prompt's text is never in it.
"""

import asyncio
import ipaddress
import json
import logging
import re
import time
import uuid
from collections.abc import MutableMapping
from typing import Any

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from llmlab.loops import heeds_interrupts
from llmlab.service.desk import Desk
from llmlab.service.faults import Failure, Fault, fault_of

log = logging.getLogger("llmlab.service")

OPEN = frozenset({"/", "/page.js", "/page.css", "/v1/health", "/docs", "/openapi.json"})
"""Paths that need no key."""
PASSED_ON = ("forwarded", "x-forwarded-for", "x-forwarded-host", "x-real-ip", "via")
"""Headers of a request that came by way of a proxy, and thus from who knows where."""
ID = re.compile(r"[\w.:-]{1,64}", re.ASCII)
"""A request's id from outside, fit to stand in logs and headers."""

State = MutableMapping[str, Any]


class Guard:
    """The outermost layer of the app, but for CORS.

    Args:
        app: What is guarded.
        desk: The service's.
    """

    def __init__(self, app: ASGIApp, desk: Desk) -> None:
        self._app, self._desk = app, desk

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request in, or answer why not."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        request_id = _id(headers.get("x-request-id"))
        state: State = scope.setdefault("state", {})
        state.update(request_id=request_id, desk=self._desk, client=None, noted={}, size=0)
        if scope["method"] == "HEAD" and scope["path"] in OPEN:
            scope["method"] = "GET"  # the server leaves its body out
        begun, status = time.perf_counter(), 0

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message = {**message, "headers": [*message["headers"], (b"x-request-id", request_id.encode())]}
            await send(message)

        held, token = _Body(self._desk, state, receive), heeds_interrupts.set(False)
        try:
            self._admit(scope, headers, state)
            held.check(headers)
            await self._app(scope, held.receive, answer)
        except Exception as error:
            if status:
                internal(error, request_id)
                raise  # there is no other way to tell the server that the answer is not whole
            fault = error.fault if isinstance(error, Failure) else internal(error, request_id)
            await refuse(fault, request_id)(scope, receive, answer)
        finally:
            heeds_interrupts.reset(token)
            held.leave()
            self._note(scope, state, status, time.perf_counter() - begun)

    def _admit(self, scope: Scope, headers: Headers, state: State) -> None:
        settings = self._desk.settings
        if not settings.keys and not _is_local(scope, headers):
            raise Failure(Fault(403, "forbidden", "without keys the service answers on loopback only"))
        if not settings.keys and not _is_own_page(headers, settings.cors):
            raise Failure(Fault(403, "forbidden", "web pages of other origins may not ask here"))
        scheme, _, key = headers.get("authorization", "").partition(" ")
        client = self._desk.client(key.strip() if scheme.lower() == "bearer" else "")
        if client is None and scope["path"] not in OPEN:
            raise Failure(Fault(401, "unauthorized", "give a valid key: Authorization: Bearer KEY"))
        state["client"] = client

    def _note(self, scope: Scope, state: State, status: int, seconds: float) -> None:
        client, route = state["client"], getattr(scope.get("route"), "path", "other")
        self._desk.answered[route, status] += 1
        if not log.isEnabledFor(logging.INFO):
            return
        line = {
            "request_id": state["request_id"],
            "method": scope["method"],
            "path": scope["path"],
            "status": status,
            "duration_ms": round(seconds * 1000.0, 1),
            "client": None if client is None else client.name,
            **state["noted"],
        }
        log.info(json.dumps(line, ensure_ascii=True))


class _Body:
    """A request's body, of bounded size whatever its header says, bounded with all others, and in bounded time."""

    def __init__(self, desk: Desk, state: State, receive: Receive) -> None:
        self._desk, self._state, self._receive = desk, state, receive
        self._room = desk.bodies.take(0, ANONYMOUS)
        self._whole = False

    def check(self, headers: Headers) -> None:
        """Complain of what is said to be too large, before it is read."""
        said = headers.get("content-length", "0")
        if said.isascii() and said.isdigit() and int(said[:20]) > self._desk.settings.max_body:
            raise Failure(Fault(TOO_LARGE, "too_large", self._words))

    @property
    def _words(self) -> str:
        return f"a body has {self._desk.settings.max_body} bytes at most"

    async def receive(self) -> Message:
        """What ASGI's receive gives."""
        if self._whole:
            return await self._receive()
        try:
            async with asyncio.timeout(self._desk.settings.stall):
                message = await self._receive()
        except TimeoutError:
            raise HTTPException(408, "the body did not come in time") from None
        self._whole = not message.get("more_body", False)
        self._grow(len(message.get("body", b"")))
        return message

    def _grow(self, size: int) -> None:
        self._state["size"] += size
        if self._state["size"] > self._desk.settings.max_body:
            raise HTTPException(TOO_LARGE, self._words)  # FastAPI makes a 400 of anything else
        try:
            self._room.grow(size)
        except Failure as full:
            raise HTTPException(full.fault.status, full.fault.message, full.fault.headers()) from None

    def leave(self) -> None:
        """The request is over."""
        self._room.leave()


ANONYMOUS = ""
"""Whose bodies are: they are read before anybody is charged for them."""
UNAUTHORIZED, TOO_LARGE = 401, 413


def refuse(fault: Fault, request_id: str | None) -> JSONResponse:
    """Answer with a failure."""
    headers = fault.headers() | ({"WWW-Authenticate": "Bearer"} if fault.status == UNAUTHORIZED else {})
    return JSONResponse(fault.body(request_id), fault.status, headers)


def internal(error: BaseException, request_id: str) -> Fault:
    """What a client is told of a failure of our own; the log has the rest."""
    log.error(json.dumps({"request_id": request_id, "error": type(error).__name__}), exc_info=error)
    return fault_of(error)


def _id(given: str | None) -> str:
    return given if given and ID.fullmatch(given) else f"req_{uuid.uuid4().hex}"


def _is_local(scope: Scope, headers: Headers) -> bool:
    """Whether a request comes from this machine and knows that it does."""
    if any(name in headers for name in PASSED_ON):
        return False
    server, client = scope.get("server"), scope.get("client")
    if server is None or not _is_address(server[0]):
        return True  # no TCP: in process, or a unix socket, whose permissions say who may ask
    host = headers.get("host", "")
    name = host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]
    local_name = name.lower() == "localhost" or _is_loopback(name)
    return local_name and _is_loopback(server[0]) and client is not None and _is_loopback(client[0])


def _is_own_page(headers: Headers, cors: Any) -> bool:
    """Whether no web page of others asks: browsers name the page's origin with whatever may have an effect."""
    origin = headers.get("origin")
    return origin is None or origin in cors or origin.partition("://")[2] == headers.get("host")


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _is_loopback(host: str) -> bool:
    return _is_address(host) and ipaddress.ip_address(host).is_loopback
