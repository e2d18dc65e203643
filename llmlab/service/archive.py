"""Long jobs and their files, so that a restart of the service loses nothing of them.

    ID.json      who gave the job, its prompts, and when it is over its answers; replaced whole
    ID.sqlite    the journal of a job at work; gone when it is over

A job found without an end when the service starts goes on: rows in its journal are not asked again. Without a folder
jobs live in memory, with a journal in a temporary one, and end with the service.
"""

import asyncio
import json
import logging
import os
import time
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from llmlab.events import Finished
from llmlab.job import Job
from llmlab.service.asking import paced, row_of
from llmlab.service.desk import ANYBODY, Client, Desk, Room
from llmlab.service.faults import fault_of
from llmlab.service.shapes import BatchRequest, JobAnswer, RowAnswer

log = logging.getLogger("llmlab.service")

KEPT = 200
"""Jobs that are over and remembered, if there is no folder for them."""


@dataclass
class Entry:
    """One long job."""

    id: str
    """Nobody guesses it."""
    owner: str
    """Name of the client who gave it."""
    request: BatchRequest
    """What is asked."""
    created_at: float
    """Unix time."""
    status: str = "running"
    """running, done, cancelled or failed."""
    error: str | None = None
    """Why it failed, in words."""
    rows: list[RowAnswer] = field(default_factory=list)
    """The answers so far, in the order in which they came."""
    job: Job[Any] | None = None
    """At work. None: it is over."""
    news: asyncio.Event = field(default_factory=asyncio.Event)
    """Set at the next change, and then replaced."""
    ended: "asyncio.Task[None] | None" = None
    """Waits for its end."""

    def tell(self) -> None:
        """Wake whoever waits for a change."""
        told, self.news = self.news, asyncio.Event()
        told.set()

    def answer(self, *, durable: bool, results: bool) -> JobAnswer:
        """As the client gets it."""
        ok = sum(row.status == "ok" for row in self.rows)
        return JobAnswer(
            id=self.id,
            status=self.status,  # type: ignore[arg-type]
            total=len(self.request.prompts),
            done=len(self.rows),
            success_count=ok,
            error_count=sum(row.status == "error" for row in self.rows),
            created_at=self.created_at,
            durable=durable,
            error=self.error,
            results=self.in_order() if results else None,
        )

    def in_order(self) -> list[RowAnswer]:
        """The answers in the order of the prompts; those not asked are cancelled once it is over."""
        found = {row.index: row for row in self.rows}
        missing = () if self.status == "running" else range(len(self.request.prompts))
        for index in missing:
            found.setdefault(index, RowAnswer(index=index, status="cancelled"))
        return [found[index] for index in sorted(found)]

    def saved(self) -> dict[str, Any]:
        """As it is written to its file."""
        rows = [] if self.status == "running" else [row.model_dump(exclude_none=True) for row in self.rows]
        kept = ("id", "owner", "created_at", "status", "error")
        return {**{name: getattr(self, name) for name in kept}, "request": self.request.model_dump(), "rows": rows}

    @classmethod
    def read(cls, saved: dict[str, Any]) -> "Entry":
        """Back from its file."""
        rows = [RowAnswer(**row) for row in saved.pop("rows")]
        return cls(request=BatchRequest(**saved.pop("request")), rows=rows, **saved)


class Archive:
    """All long jobs of a service.

    Args:
        desk: The service's.
        folder: Where they are kept. None: nowhere, they end with the service.
    """

    def __init__(self, desk: Desk, folder: Path | None) -> None:
        self._desk = desk
        self.durable = folder is not None
        self._temporary = None if folder is not None else TemporaryDirectory(prefix="llmlab-jobs-")
        self._folder = folder or Path(self._temporary.name)  # type: ignore[union-attr]
        self._entries: dict[str, Entry] = {}
        self._closing = False

    async def open(self) -> None:
        """Read what is there, and go on with what has no end."""
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        for path in sorted(self._folder.glob("*.json")):
            try:
                entry = Entry.read(json.loads(await asyncio.to_thread(path.read_bytes)))
            except (ValueError, TypeError, KeyError) as error:
                log.warning(json.dumps({"job_file": path.name, "error": f"cannot be read: {error}"}))
                continue
            self._entries[entry.id] = entry
            if entry.status == "running":
                self._begin(entry, self._client(entry.owner))

    def add(self, request: BatchRequest, client: Client) -> Entry:
        """Begin a job.

        Raises:
            Failure: there is no room for it.
        """
        entry = Entry(f"job_{uuid.uuid4().hex}", client.name, request, time.time())
        room = self._desk.take_room(len(request.prompts), waits=False)
        try:
            self._save(entry)
            self._begin(entry, client, room)
        except BaseException:
            room.leave()
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

    async def remove(self, entry: Entry) -> None:
        """Cancel a job at work, which keeps its answers; forget one that is over."""
        if entry.job is None:
            del self._entries[entry.id]
            for path in (self._file(entry), self._journal(entry)):
                path.unlink(missing_ok=True)
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
        if self._temporary is not None:
            self._temporary.cleanup()

    # -- inside -------------------------------------------------------------------------------------------

    def _client(self, name: str) -> Client:
        clients = {client.name: client for client in self._desk.clients}
        return clients.get(name) or clients.get(ANYBODY) or next(iter(clients.values()))

    def _begin(self, entry: Entry, client: Client, room: Room | None = None) -> None:
        request = entry.request
        job = entry.job = client.lab.run_many(
            paced(request.prompts, request.max_concurrency, lambda: job.bus),
            journal=self._journal(entry),
            priority=request.priority,
            progress=False,
            **request.parameters(self._desk.check_model(request.model)),
        )

        def settled(event: Finished) -> None:
            if event.outcome.status != "cancelled":
                entry.rows.append(row_of(event.outcome))
                entry.tell()

        job.bus.subscribe(settled, Finished)
        taken = room or Room(self._desk, len(request.prompts), waits=False)
        entry.ended = asyncio.ensure_future(self._until_end(entry, job, taken))

    async def _until_end(self, entry: Entry, job: Job[Any], room: Room) -> None:
        try:
            await job
        except Exception as error:  # the job's own failure is its status
            entry.status, entry.error = "failed", fault_of(error).message
            log.exception(json.dumps({"job": entry.id}))
        finally:
            room.leave()
        entry.job = None
        if self._closing and len(entry.rows) < len(entry.request.prompts):
            entry.tell()
            return  # it has no end yet: the next start goes on with it
        if entry.status == "running":
            self._judge(entry, job)
        self._save(entry)
        self._journal(entry).unlink(missing_ok=True)
        entry.tell()

    def _judge(self, entry: Entry, job: Job[Any]) -> None:
        whole = len(entry.rows) == len(entry.request.prompts)
        entry.status = "done" if whole else "cancelled" if job.stopped == "cancelled" else "failed"
        if entry.status == "failed":
            error = job.last.error if job.last is not None else None
            entry.error = fault_of(error).message if error is not None else "the job was stopped"

    def _save(self, entry: Entry) -> None:
        path = self._file(entry)
        beside = path.with_suffix(".new")
        with beside.open("w", encoding="utf-8") as file:
            json.dump(entry.saved(), file, ensure_ascii=True)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)

    def _file(self, entry: Entry) -> Path:
        return self._folder / f"{entry.id}.json"

    def _journal(self, entry: Entry) -> Path:
        return self._folder / f"{entry.id}.sqlite"

    def _forget_old(self) -> None:
        if self.durable:
            return
        over = [entry for entry in self._entries.values() if entry.job is None]
        for entry in sorted(over, key=lambda entry: entry.created_at)[:-KEPT]:
            del self._entries[entry.id]
            self._file(entry).unlink(missing_ok=True)
