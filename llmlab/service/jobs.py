"""`/v1/jobs`: long jobs that nobody has to wait for with an open connection, and that survive a restart."""

import asyncio
from collections.abc import AsyncGenerator
from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Request
from fastapi.responses import JSONResponse, Response

from llmlab.service.archive import Archive, Entry
from llmlab.service.completions import FAILURES
from llmlab.service.desk import Client
from llmlab.service.faults import Failure, Fault
from llmlab.service.shapes import BatchRequest, JobAnswer
from llmlab.service.sse import EventStream, event

router = APIRouter(prefix="/v1/jobs", tags=["jobs"], responses=FAILURES)

STEADY = 0.1
"""Seconds between two reports at most: rows that were settled meanwhile go out together."""


@router.post("", status_code=202, response_model=JobAnswer)
async def begin(request: Request, body: BatchRequest) -> Any:
    """Begin a long job; answers at once with its id."""
    client: Client = request.state.client
    client.charge(asyncio.get_running_loop().time())
    request.state.desk.check_model(body.model)
    entry = _archive(request).add(body, client)
    request.state.noted.update(prompts=len(body.prompts), job=entry.id)
    return _answer(request, entry, results=False, status=202)


@router.get("", response_model=list[JobAnswer])
async def own(request: Request) -> Any:
    """All jobs of this key, the newest first, without their results."""
    archive = _archive(request)
    found = archive.of(request.state.client)
    return JSONResponse([entry.answer(durable=archive.durable, results=False).model_dump() for entry in found])


@router.get("/{job_id}", response_model=JobAnswer)
async def look(request: Request, job_id: str, *, results: Annotated[bool, Query()] = True) -> Any:
    """How far a job is, and the answers so far, in the order of the prompts."""
    return _answer(request, _find(request, job_id), results=results)


@router.delete("/{job_id}", response_model=JobAnswer)
async def remove(request: Request, job_id: str) -> Any:
    """Cancel a job at work; its answers so far are kept. Of one that is over, forget everything."""
    entry = _find(request, job_id)
    await _archive(request).remove(entry)
    return _answer(request, entry, results=False)


@router.get(
    "/{job_id}/events",
    response_class=Response,
    responses={200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}}},
)
async def events(
    request: Request, job_id: str, last_event_id: Annotated[int | None, Header(ge=0, le=2**53)] = None
) -> Response:
    """A job as server-sent events: `row` for each answer, `progress`, and `end`; with Last-Event-ID it goes on there.

    Ids count the answers; after a restart of the service they begin anew, and rows may come again.
    """
    entry, archive = _find(request, job_id), _archive(request)
    return EventStream(_events(entry, archive, last_event_id or 0), request.state.desk, ping=True)


async def _events(entry: Entry, archive: Archive, sent: int) -> AsyncGenerator[bytes, None]:
    while True:
        news = entry.news
        for row in entry.rows[sent:]:
            sent += 1
            yield event(row.model_dump(), name="row", key=sent)
        answer = entry.answer(durable=archive.durable, results=False).model_dump()
        over = entry.job is None
        yield event(answer, name="end" if over else "progress")
        if over:
            return
        await news.wait()
        await asyncio.sleep(STEADY)


def _archive(request: Request) -> Archive:
    archive: Archive = request.app.state.archive
    return archive


def _find(request: Request, key: str) -> Entry:
    entry = _archive(request).find(key, request.state.client)
    if entry is None:
        raise Failure(Fault(404, "not_found", "there is no such job"))
    return entry


def _answer(request: Request, entry: Entry, *, results: bool, status: int = 200) -> JSONResponse:
    return JSONResponse(entry.answer(durable=_archive(request).durable, results=results).model_dump(), status)
