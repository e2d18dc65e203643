"""Long jobs and their files, so that a restart of the service loses nothing of them.

    ID.json      who gave the job, its prompts, and when it is over its answers; replaced whole (`llmlab.service.entry`)
    ID.sqlite    the journal of a job at work; gone when it is over

A job found without an end when the service starts goes on: rows in its journal are not asked again. Without a folder
jobs have a temporary one, and end with the service. Answers of jobs that are over are read from their files, so that
memory does not grow with them; what is over is forgotten after a while, or when there is too much of it.
"""

import asyncio
import json
import logging
import time
import uuid
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from llmlab.events import Finished
from llmlab.job import Job
from llmlab.loops import heeds_interrupts
from llmlab.runlock import JournalBusy, RunLock
from llmlab.service.asking import named_mistakes, paced, row_of
from llmlab.service.desk import Client, Desk
from llmlab.service.entry import Entry, head_in, head_of, rows_in, rows_of_journal, write
from llmlab.service.faults import Failure, Fault, fault_of
from llmlab.service.rooms import Room
from llmlab.service.shapes import BatchRequest, RowAnswer

log = logging.getLogger("llmlab.service")

KEPT = 10_000
"""Jobs that are over and remembered, at most."""
LIFE = 30 * 86_400.0
"""Seconds for which they are."""


class Archive:
    """All long jobs of a service.

    Args:
        desk: The service's.
        folder: Where they are kept. None: nowhere, they end with the service.
    """

    def __init__(self, desk: Desk, folder: Path | None) -> None:
        self._desk = desk
        self.durable = folder is not None
        self._temporary: TemporaryDirectory[str] | None = None
        self._folder = folder or Path()
        self._lock: RunLock | None = None
        self._entries: dict[str, Entry] = {}
        self._opened = self._closing = False

    async def open(self) -> None:
        """Read what is there, and go on with what has no end; once.

        Raises:
            RuntimeError: another service is at work with the same folder.
        """
        if self._opened:
            return
        if not self.durable:
            self._temporary = TemporaryDirectory(prefix="llmlab-jobs-")
            self._folder = Path(self._temporary.name)
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._lock = RunLock(self._folder.resolve() / "jobs")
        try:
            self._lock.take()
        except JournalBusy as busy:
            raise RuntimeError(f"{self._folder} is in use by another service, process {busy.pid}") from None
        self._opened = True
        for path in sorted(self._folder.glob("*.json")):
            try:
                entry = await asyncio.to_thread(head_in, path)
            except (ValueError, TypeError, KeyError) as error:
                _tell(job_file=path.name, error=f"cannot be read: {type(error).__name__}")
                continue
            self._take_up(entry)
        self._forget_old()

    async def add(self, request: BatchRequest, client: Client, *, size: int) -> Entry:
        """Begin a job, whose request has `size` bytes; it is on the disk when this returns.

        Raises:
            Failure: there is no room for it, or it cannot be asked.
        """
        entry = Entry(f"job_{uuid.uuid4().hex}", client.name, time.time(), len(request.prompts), request=request)
        self._desk.check_model(request.model)
        body = self._desk.bodies.take(size, client.name)
        try:
            room = self._desk.take_room(self._desk.job_prompts, entry.total, client)
        except Failure:
            body.leave()
            raise
        try:
            await self._save(entry)
            self._begin(entry, client, (room, body))
        except BaseException:
            room.leave()
            body.leave()
            self._remove_files(entry)
            raise
        self._entries[entry.id] = entry
        self._forget_old()
        return entry

    def find(self, key: str, client: Client) -> Entry | None:
        """A client's own job. None: there is none of that id, or it is somebody else's."""
        entry = self._entries.get(key)
        return entry if entry is not None and entry.owner == client.name else None

    def of(self, client: Client) -> list[Entry]:
        """All jobs of a client, the newest first."""
        own = [entry for entry in self._entries.values() if entry.owner == client.name]
        return sorted(own, key=lambda entry: -entry.created_at)

    async def rows(self, entry: Entry) -> Sequence[RowAnswer]:
        """The answers so far, in the order in which they came."""
        return entry.rows if entry.job is not None else await asyncio.to_thread(rows_in, self._file(entry))

    async def remove(self, entry: Entry) -> None:
        """Cancel a job at work, which keeps its answers; forget one that is over."""
        if entry.job is None:
            self._forget(entry)
            return
        entry.job.cancel()
        if entry.ended is not None:
            await asyncio.wait([entry.ended])

    async def close(self) -> None:
        """Stop what is at work; it goes on when the service starts again."""
        self._closing = True
        ends = [entry.ended for entry in self._entries.values() if entry.ended is not None]
        for entry in self._entries.values():
            if entry.job is not None:
                entry.job.cancel()
        if ends:
            await asyncio.wait(ends)
        if self._lock is not None:
            self._lock.release()
        if self._temporary is not None:
            self._temporary.cleanup()

    # -- inside -------------------------------------------------------------------------------------------

    def _take_up(self, entry: Entry) -> None:
        client = self._desk.named(entry.owner)
        if client is None:
            _tell(job=entry.id, error=f"nobody has a key by the name {entry.owner!r} now: it is left as it is")
            return
        self._entries[entry.id] = entry
        if entry.status == "running":
            room = Room(self._desk.job_prompts, entry.owner)
            room.grow(entry.total, forced=True)
            try:
                self._begin(entry, client, (room,))
            except Failure as failure:
                room.leave()
                entry.status, entry.error = "failed", failure.fault.message

    def _begin(self, entry: Entry, client: Client, rooms: tuple[Room, ...]) -> None:
        request = entry.request
        assert request is not None  # noqa: S101  it is not over
        parameters = request.parameters(self._desk.check_model(request.model))
        with named_mistakes():
            job = client.lab.run_many(
                paced(request.prompts, request.max_concurrency, lambda: job.bus),
                journal=self._journal(entry),
                priority=request.priority,
                progress=False,
                **parameters,
            )
        entry.job = job

        def settled(event: Finished) -> None:
            rooms[0].shrink(1)
            if event.outcome.status != "cancelled":
                entry.add(row_of(event.outcome))

        job.bus.subscribe(settled, Finished)
        entry.ended = asyncio.ensure_future(self._until_end(entry, job, rooms))

    async def _until_end(self, entry: Entry, job: Job[Any], rooms: tuple[Room, ...]) -> None:
        heeds_interrupts.set(False)
        try:
            await job
        except Exception as error:  # the job's own failure is its status
            log.exception(json.dumps({"job": entry.id, "error": type(error).__name__}))
            entry.status, entry.error = "failed", _words(error)
            if not entry.rows:  # it did not even begin: what was answered before is in its journal
                entry.rows = await asyncio.to_thread(rows_of_journal, self._journal(entry))
                entry.recount()
        finally:
            for room in rooms:
                room.leave()
        if self._closing and entry.done < entry.total and entry.status == "running":
            entry.over()
            return  # it has no end yet: the next start goes on with it
        if entry.status == "running":
            _judge(entry, job)
        await self._finish(entry)

    async def _finish(self, entry: Entry) -> None:
        try:
            await self._save(entry)
            self._journal(entry).unlink(missing_ok=True)
        except OSError as error:  # a full disk: its journal has the answers, and the next start tries again
            log.exception(json.dumps({"job": entry.id, "error": type(error).__name__}))
            entry.error = "the answers could not be written to the disk"
        entry.over()

    async def _save(self, entry: Entry) -> None:
        await asyncio.to_thread(write, self._file(entry), head_of(entry), entry.request, tuple(entry.rows))

    def _file(self, entry: Entry) -> Path:
        return self._folder / f"{entry.id}.json"

    def _journal(self, entry: Entry) -> Path:
        return self._folder / f"{entry.id}.sqlite"

    def _remove_files(self, entry: Entry) -> None:
        for path in (self._file(entry), self._journal(entry)):
            path.unlink(missing_ok=True)

    def _forget(self, entry: Entry) -> None:
        self._entries.pop(entry.id, None)
        self._remove_files(entry)

    def _forget_old(self) -> None:
        over = sorted((each for each in self._entries.values() if each.job is None), key=lambda each: each.created_at)
        too_many, too_old = len(over) - KEPT, time.time() - LIFE
        for place, entry in enumerate(over):
            if place >= too_many and entry.created_at >= too_old:
                return
            self._forget(entry)


def _judge(entry: Entry, job: Job[Any]) -> None:
    whole = entry.done == entry.total
    entry.status = "done" if whole else "cancelled" if job.stopped == "cancelled" else "failed"
    if entry.status == "failed":
        error = job.last.error if job.last is not None else None
        entry.error = fault_of(error).message if error is not None else "the job was stopped"


def _words(error: Exception) -> str:
    if isinstance(error, ValueError):  # JournalMismatch: its words have paths in them
        return "the service was started with other settings since: the answers so far are kept, the rest was not asked"
    return fault_of(error).message


def _tell(**fields: object) -> None:
    log.warning(json.dumps(fields))


NO_JOB = Fault(404, "not_found", "there is no such job")
