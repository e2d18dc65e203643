"""One long job, in memory and on the disk.

Its file has a line of JSON for what it is, one for what is asked, and one for each answer once it is over; who wants
to know how it ended need not read its answers.
"""

import asyncio
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from llmlab.job import Job
from llmlab.logbook import read_records
from llmlab.service.shapes import BatchRequest, JobAnswer, RowAnswer, UsageShape

KEPT = ("id", "owner", "created_at", "total", "status", "error", "ok", "failed")
"""What the first line has."""


@dataclass
class Entry:
    """One long job."""

    id: str
    """Nobody guesses it."""
    owner: str
    """Name of the client who gave it."""
    created_at: float
    """Unix time."""
    total: int
    """Prompts."""
    status: str = "running"
    """running, done, cancelled or failed."""
    error: str | None = None
    """Why it failed, in words."""
    ok: int = 0
    """Prompts answered."""
    failed: int = 0
    """Prompts that failed."""
    request: BatchRequest | None = None
    """What is asked. None: it is over."""
    rows: list[RowAnswer] = field(default_factory=list)
    """The answers so far, in the order in which they came; when it is over they are in its file."""
    job: Job[Any] | None = None
    """At work. None: it is over."""
    news: asyncio.Event = field(default_factory=asyncio.Event)
    """Set at the next change, and then replaced."""
    ended: "asyncio.Task[None] | None" = None
    """Waits for its end."""

    @property
    def done(self) -> int:
        """Prompts answered or failed."""
        return self.ok + self.failed

    def add(self, row: RowAnswer) -> None:
        """Take an answer."""
        self.rows.append(row)
        self.ok += row.status == "ok"
        self.failed += row.status == "error"
        self.tell()

    def recount(self) -> None:
        """Count the answers anew."""
        self.ok = sum(row.status == "ok" for row in self.rows)
        self.failed = len(self.rows) - self.ok

    def over(self) -> None:
        """It is at work no more."""
        self.job, self.request, self.rows = None, None, []
        self.tell()

    def tell(self) -> None:
        """Wake whoever waits for a change."""
        told, self.news = self.news, asyncio.Event()
        told.set()

    def answer(self, *, durable: bool, rows: Sequence[RowAnswer] | None = None) -> JobAnswer:
        """As the client gets it, with the answers `rows` in the order of the prompts; None: without any."""
        return JobAnswer(
            id=self.id,
            status=self.status,  # type: ignore[arg-type]
            total=self.total,
            done=self.done,
            success_count=self.ok,
            error_count=self.failed,
            created_at=self.created_at,
            durable=durable,
            error=self.error,
            results=None if rows is None else self._in_order(rows),
        )

    def _in_order(self, rows: Sequence[RowAnswer]) -> list[RowAnswer]:
        """The answers in the order of the prompts; those not asked are cancelled once it is over."""
        found = {row.index: row for row in rows}
        for index in () if self.status == "running" else range(self.total):
            if index not in found:
                found[index] = RowAnswer(index=index, status="cancelled")
        return [found[index] for index in sorted(found)]


def head_of(entry: Entry) -> dict[str, Any]:
    """The first line of an entry's file."""
    return {name: getattr(entry, name) for name in KEPT}


def write(path: Path, head: dict[str, Any], request: BatchRequest | None, rows: Sequence[RowAnswer]) -> None:
    """Write a job down, for its owner's eyes only; whole or not at all, also if the power fails."""
    beside = path.with_suffix(".new")
    with os.fdopen(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        file.write(orjson.dumps(head) + b"\n")
        file.write(orjson.dumps(None if request is None else request.model_dump()) + b"\n")
        if head["status"] != "running":
            file.writelines(orjson.dumps(row.model_dump(exclude_none=True)) + b"\n" for row in rows)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)


def head_in(path: Path) -> Entry:
    """Read a job without its answers.

    Raises:
        ValueError, TypeError, KeyError: the file is none of ours.
    """
    with path.open("rb") as file:
        head, asked = orjson.loads(file.readline()), file.readline()
    entry = Entry(**{name: head[name] for name in KEPT})
    if entry.status == "running":
        entry.request = BatchRequest(**orjson.loads(asked))
        entry.ok = entry.failed = 0  # its journal tells them again
    return entry


def rows_in(path: Path) -> list[RowAnswer]:
    """Read the answers of a job that is over, in the order in which they came; none if it was forgotten meanwhile."""
    try:
        with path.open("rb") as file:
            return [RowAnswer(**orjson.loads(line)) for place, line in enumerate(file) if place > 1]
    except FileNotFoundError:
        return []


def rows_of_journal(path: Path) -> list[RowAnswer]:
    """The answers that a job's journal holds, as far as it can be read."""
    try:
        return list(_answered(path))
    except (OSError, ValueError):
        return []


def _answered(path: Path) -> Iterator[RowAnswer]:
    for row in read_records(path):
        if row.reply is not None and row.status == "ok":
            yield RowAnswer(
                index=row.index,
                status="ok",
                content=row.reply.content,
                model=row.reply.model,
                usage=UsageShape.of(row.reply.usage),
                latency_ms=row.reply.latency_s * 1000.0,
                finish_reason=row.reply.finish_reason,
            )
