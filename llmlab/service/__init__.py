"""A lab behind HTTP: the same strategy, limits, cache and simulator for whoever speaks JSON or the OpenAI API.

Example:
    app = llmlab.service.create_app(llmlab.Lab("openai:MODEL"), keys={"team": "a-long-secret"})
    # uvicorn module:app, or from a shell: llmlab serve --model openai:MODEL
"""

import contextlib
from collections.abc import AsyncIterator, Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

try:
    from fastapi import FastAPI, Request
    from fastapi.exceptions import RequestValidationError
    from fastapi.responses import JSONResponse
    from starlette.exceptions import HTTPException
    from starlette.middleware.cors import CORSMiddleware
except ImportError as missing:
    raise ImportError(f'llmlab.service needs {missing.name}: pip install "llmlab[serve]"') from missing

from llmlab.errors import LLMError
from llmlab.lab import Lab
from llmlab.service import chat, completions, jobs, page, state
from llmlab.service.archive import Archive
from llmlab.service.desk import Desk, Settings
from llmlab.service.faults import Failure, Fault, fault_of
from llmlab.service.guard import Guard, refuse
from llmlab.service.openapi import describe
from llmlab.version import __version__

__all__ = ["create_app"]


def create_app(
    lab: Lab,
    *,
    keys: Mapping[str, str] | Iterable[str] = (),
    models: Collection[str] | None = None,
    state_dir: str | Path | None = None,
    rpm: float | None = None,
    max_body: int = 10_000_000,
    max_prompts: int = 1_000,
    max_pending: int = 10_000,
    max_job_prompts: int = 100_000,
    deadline: float = 600.0,
    stall: float = 30.0,
    grace: float = 30.0,
    cors: Collection[str] = (),
    log_prompts: bool = False,
) -> FastAPI:
    """Put a lab behind HTTP.

    Args:
        lab: Answers; stays yours to close. The app must run on the event loop on which the lab lives.
        keys: Bearer keys of those who may ask, by name, or without names; at least 8 characters each. None: anybody on
            this machine may ask, and nobody else.
        models: Models that may be asked for besides the lab's own. None: any.
        state_dir: Folder in which long jobs are kept, so that they survive a restart. None: they do not.
        rpm: Prompts per minute for each key, of which a tenth may come at once. A batch or long job is let in when one
            prompt would be, and then counts with all of its prompts. None: no limit.
        max_body: Bytes of a request, at most; 32 times as many are held at a time.
        max_prompts: Prompts of one batch, at most; long jobs may have more.
        max_pending: Prompts whose clients wait, at a time; more are refused with 429. With several keys none of them
            may have more at work than it leaves free.
        max_job_prompts: Prompts of long jobs at a time; likewise. They are taken up as the lab has room for them.
        deadline: Seconds after which a request that has no whole answer gets a 504, a stream an error.
        stall: Seconds for which a client may take nothing of its answer, or send nothing of its request, before it is
            dropped.
        grace: Seconds for which requests at work are waited for when the service ends; long jobs go on after a restart.
        cors: Origins whose web pages may ask. (): none.
        log_prompts: Put the text of prompts into the log.

    Returns:
        A FastAPI app; its pages `/` (live numbers) and `/docs` say more.

    Raises:
        TypeError, ValueError: an argument is not usable.
    """
    if state_dir is not None and not isinstance(keys, Mapping) and len(keys := list(keys)) > 1:
        raise ValueError("with state_dir keys need names, by which jobs find their owners after a restart: {name: key}")
    if not isinstance(lab, Lab):
        raise TypeError(f"create_app takes a Lab, not {type(lab).__name__}")
    settings = Settings(
        keys=_named(keys),
        models=models,
        rpm=rpm,
        max_body=max_body,
        max_prompts=max_prompts,
        max_pending=max_pending,
        max_job_prompts=max_job_prompts,
        deadline=deadline,
        stall=stall,
        grace=grace,
        cors=cors,
        log_prompts=log_prompts,
    )
    desk = Desk(lab, settings)
    archive = Archive(desk, None if state_dir is None else Path(state_dir))
    app = FastAPI(title="llmlab", version=__version__, lifespan=_lifespan(desk, archive), redoc_url=None)
    app.state.desk, app.state.archive = desk, archive
    for each in (completions, chat, jobs, state, page):
        app.include_router(each.router)
    _tell_failures(app)
    describe(app, needs_key=bool(settings.keys))
    app.add_middleware(Guard, desk=desk)
    if cors:
        shown = ["X-Request-Id", "Retry-After"]
        app.add_middleware(
            CORSMiddleware, allow_origins=list(cors), allow_methods=["*"], allow_headers=["*"], expose_headers=shown
        )
    return app


def _named(keys: Mapping[str, str] | Iterable[str]) -> dict[str, str]:
    if isinstance(keys, str):
        raise TypeError("keys is a mapping of names to keys, or several keys; for one write [key]")
    if isinstance(keys, Mapping):
        return dict(keys)
    return {f"key {place}": key for place, key in enumerate(keys, 1)}


def _lifespan(desk: Desk, archive: Archive) -> Any:
    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await archive.open()
        try:
            yield
        finally:
            await desk.drain()
            await archive.close()

    return lifespan


def _tell_failures(app: FastAPI) -> None:
    @app.exception_handler(Failure)
    @app.exception_handler(LLMError)
    async def failed(request: Request, error: Exception) -> JSONResponse:
        fault = fault_of(error)
        request.state.noted["error"] = fault.type
        return refuse(fault, request.state.request_id)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        wrong = "; ".join(f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors())
        if "json" not in request.headers.get("content-type", "json"):
            wrong += "; send it with Content-Type: application/json"
        return refuse(Fault(422, "invalid_request", wrong), request.state.request_id)

    @app.exception_handler(HTTPException)
    async def unknown(request: Request, error: HTTPException) -> JSONResponse:
        fault = Fault(error.status_code, _TYPES.get(error.status_code, "http"), str(error.detail))
        answer = refuse(fault, request.state.request_id)
        answer.headers.update(error.headers or {})
        return answer


_TYPES = {404: "not_found", 405: "method_not_allowed", 408: "body_timeout", 413: "too_large", 429: "queue_full"}
