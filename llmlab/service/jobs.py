"""`/v1/jobs`: long jobs that nobody has to wait for with an open connection, and that survive a restart."""

import asyncio
from collections.abc import AsyncGenerator
from typing import Annotated, Any

from fastapi import APIRouter, Header, Path, Query, Request
from fastapi.responses import JSONResponse, Response

from llmlab.service.archive import NO_JOB, Archive
from llmlab.service.desk import Client
from llmlab.service.entry import Entry
from llmlab.service.faults import Failure
from llmlab.service.shapes import FAILURES, BatchRequest, JobAnswer, streamed
from llmlab.service.sse import EventStream, event

router = APIRouter(prefix="/v1/jobs", tags=["jobs"], responses=FAILURES)

STEADY = 0.1
"""Seconds between two reports at most: rows that were settled meanwhile go out together."""
JobId = Annotated[str, Path(max_length=100, examples=["job_6f1c"])]
EXAMPLE = (
    'id: 1\nevent: row\ndata: {"index":1,"status":"ok","content":"Goodbye."}\n\n'
    'event: progress\ndata: {"id":"job_6f1c","status":"running","total":2,"done":1}\n\n'
    'event: end\ndata: {"id":"job_6f1c","status":"done","total":2,"done":2}\n\n'
)


@router.post("", status_code=202, response_model=JobAnswer)
async def begin(request: Request, body: BatchRequest) -> Any:
    """Begin a long job; answers at once with its id."""
    client: Client = request.state.client
    request.state.noted["prompts"] = len(body.prompts)
    if request.state.desk.settings.log_prompts:
        request.state.noted["texts"] = body.prompts
    archive = _archive(request)
    entry = await archive.add(body, client, size=request.state.size)
    request.state.noted["job"] = entry.id
    return JSONResponse(entry.answer(durable=archive.durable).model_dump(), 202)


@router.get("", response_model=list[JobAnswer])
async def own(request: Request) -> Any:
    """All jobs of this key, the newest first, without their results."""
    archive = _archive(request)
    found = archive.of(request.state.client)
    return JSONResponse([entry.answer(durable=archive.durable).model_dump() for entry in found])


@router.get("/{job_id}", response_model=JobAnswer)
async def look(request: Request, job_id: JobId, *, results: Annotated[bool, Query()] = True) -> Any:
    """How far a job is, and the answers so far, in the order of the prompts."""
    entry, archive = _find(request, job_id), _archive(request)
    rows = await archive.rows(entry) if results else None
    return JSONResponse(entry.answer(durable=archive.durable, rows=rows).model_dump())


@router.delete("/{job_id}", response_model=JobAnswer)
async def remove(request: Request, job_id: JobId) -> Any:
    """Cancel a job at work; its answers so far are kept. Of one that is over, forget everything."""
    entry, archive = _find(request, job_id), _archive(request)
    await archive.remove(entry)
    return JSONResponse(entry.answer(durable=archive.durable).model_dump())


@router.get(
    "/{job_id}/events",
    response_class=Response,
    responses={200: streamed("`row`, `progress` and, last, `end`.", EXAMPLE)},
)
async def events(
    request: Request, job_id: JobId, last_event_id: Annotated[int | None, Header(ge=0, le=2**53)] = None
) -> Response:
    """A job as server-sent events: `row` for each answer, `progress`, and `end`; with Last-Event-ID it goes on there.

    Ids count the answers; after a restart of the service in the middle of a job they begin anew, and rows may come
    again.
    """
    entry, archive = _find(request, job_id), _archive(request)
    return EventStream(_events(entry, archive, last_event_id or 0), request.state.desk, ping=True)


async def _events(entry: Entry, archive: Archive, sent: int) -> AsyncGenerator[bytes, None]:
    while True:
        news, over = entry.news, entry.job is None
        for row in (await archive.rows(entry))[sent:]:
            sent += 1
            yield event(row.model_dump(), name="row", key=sent)
        yield event(entry.answer(durable=archive.durable).model_dump(), name="end" if over else "progress")
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
        raise Failure(NO_JOB)
    return entry
