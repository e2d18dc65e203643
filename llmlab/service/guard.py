"""What every request passes before a route sees it: an id, a key, a bound on its size, a line in the log.

    keys are set       Authorization: Bearer KEY, or 401. Free of it: the health check and the page itself
    no keys            only what comes over loopback and names loopback as its host is answered: a web page that lets
                       its own name point to 127.0.0.1 is none of ours

The log has one JSON object a line, and of prompts only their number: a key or a prompt's text is never in it.
"""

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

from llmlab.service.desk import Desk
from llmlab.service.faults import Failure, Fault, fault_of

log = logging.getLogger("llmlab.service")

OPEN = frozenset({"/", "/page.js", "/page.css", "/v1/health", "/docs", "/openapi.json"})
"""Paths that need no key."""
ID = re.compile(r"[\w.:-]{1,64}", re.ASCII)
"""A request's id from outside, fit to stand in logs and headers."""

State = MutableMapping[str, Any]


class Guard:
    """The outermost layer of the app.

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
        state.update(request_id=request_id, desk=self._desk, client=None, noted={})
        begun, status = time.perf_counter(), 0

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message = {**message, "headers": [*message["headers"], (b"x-request-id", request_id.encode())]}
            await send(message)

        try:
            self._admit(scope, headers, state)
            await self._app(scope, _bounded(receive, headers, self._desk.settings.max_body), answer)
        except Failure as failure:
            if not status:
                await refuse(failure.fault, request_id)(scope, receive, answer)
        finally:
            _note(scope, state, status, time.perf_counter() - begun)

    def _admit(self, scope: Scope, headers: Headers, state: State) -> None:
        if not self._desk.settings.keys and not _is_local(scope, headers):
            raise Failure(Fault(403, "forbidden", "without keys the service answers on loopback only"))
        scheme, _, key = headers.get("authorization", "").partition(" ")
        client = self._desk.client(key.strip() if scheme.lower() == "bearer" else "")
        if client is None and scope["path"] not in OPEN:
            raise Failure(Fault(401, "unauthorized", "give a valid key: Authorization: Bearer KEY"))
        state["client"] = client


def refuse(fault: Fault, request_id: str | None) -> JSONResponse:
    """Answer with a failure."""
    headers = fault.headers() | ({"WWW-Authenticate": "Bearer"} if fault.status == UNAUTHORIZED else {})
    return JSONResponse(fault.body(request_id), fault.status, headers)


UNAUTHORIZED, TOO_LARGE = 401, 413


def _id(given: str | None) -> str:
    return given if given and ID.fullmatch(given) else f"req_{uuid.uuid4().hex}"


def _is_local(scope: Scope, headers: Headers) -> bool:
    """Whether a request comes from this machine and knows that it does; in-process ones have no addresses."""
    server, client = (scope.get(name) or ("", 0) for name in ("server", "client"))
    if not _is_loopback(server[0], otherwise=True) or not _is_loopback(client[0], otherwise=True):
        return False
    if not _is_address(server[0]):
        return True
    host = headers.get("host", "").rpartition("]")[0].lstrip("[") or headers.get("host", "").partition(":")[0]
    return host.lower() == "localhost" or _is_loopback(host, otherwise=False)


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _is_loopback(host: str, *, otherwise: bool) -> bool:
    return ipaddress.ip_address(host).is_loopback if _is_address(host) else otherwise


def _bounded(receive: Receive, headers: Headers, most: int) -> Receive:
    """Receive a body of bounded size, whatever its header says."""
    words = f"a body has {most} bytes at most"
    if headers.get("content-length", "0").isdigit() and int(headers.get("content-length", "0")) > most:
        raise Failure(Fault(TOO_LARGE, "too_large", words))
    received = 0

    async def bounded() -> Message:
        nonlocal received
        message = await receive()
        received += len(message.get("body", b""))
        if received > most:
            raise HTTPException(TOO_LARGE, words)  # FastAPI makes a 400 of anything else
        return message

    return bounded


def _note(scope: Scope, state: State, status: int, seconds: float) -> None:
    client = state["client"]
    line = {
        "at": round(time.time(), 3),
        "request_id": state["request_id"],
        "method": scope["method"],
        "path": scope["path"],
        "status": status,
        "duration_ms": round(seconds * 1000.0, 1),
        "client": None if client is None else client.name,
        **state["noted"],
    }
    log.info(json.dumps(line, ensure_ascii=True))


def internal(error: BaseException, request_id: str) -> Fault:
    """What a client is told of a failure of our own; the log has the rest."""
    log.error(json.dumps({"request_id": request_id, "error": type(error).__name__}), exc_info=error)
    return fault_of(error)
