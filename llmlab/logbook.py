"""The journal of a run: a row reported done is in the file, a row not reported is safe to redo.

One SQLite file per run, in write-ahead mode: one writer, any number of readers meanwhile. An outcome handed to
`append` goes to the writer's thread and from there, with up to 249 others, into one commit; only then is the row's
`then` called. What is committed survives the death of the process, kill -9 included; with durability="power" each
commit also waits for the disk, so that it survives a power cut, too (otherwise the last commits before the cut may be
gone, and nothing is ever corrupt). The journal belongs on a local disk: network file systems break SQLite's locks.

Running the same call again finds the rows already answered by key and occurrence and pays only for the others:
failures are tried again. Settings that differ from those of the first run are an error, not a mixture.
"""

import asyncio
import atexit
import contextlib
import json
import os
import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias, get_args

from llmlab.entries import Attempt, Stored
from llmlab.identity import UNREADABLE, Occurrences, canonical, key_of
from llmlab.mismatch import JournalMismatch
from llmlab.runlock import JournalBusy, RunLock
from llmlab.stored import (
    DONE_ROWS,
    MOVE_ROW,
    PUT_ATTEMPT,
    PUT_ROW,
    attempt_cells,
    create,
    find,
    is_journal,
    open_to_read,
    open_to_write,
    read_attempts,
    read_records,
    row_cells,
    transaction,
)
from llmlab.types import Outcome
from llmlab.writer import Deliver, Then, Writer

__all__ = [
    "UNREADABLE",
    "Attempt",
    "Journal",
    "JournalBusy",
    "JournalMismatch",
    "Occurrences",
    "Stored",
    "key_of",
    "read_attempts",
    "read_records",
]

Durability: TypeAlias = Literal["process", "power"]

ROOM = 1000
"""Rows handed over and not yet committed from which on the journal calls itself full."""


class _Entry(NamedTuple):
    position: int
    key: bytes
    occ: int
    outcome: Outcome
    attempts: Sequence[Attempt]


class _Move(NamedTuple):
    position: int
    key: bytes
    occ: int


class Journal:
    """A run's file. Make it, `open` it, `append` outcomes, close it in a `finally`.

    All methods but `open` and `close` return at once or are awaited; none blocks the loop.

    Args:
        path: The file; it is made if it is not there, its folder is not.
        durability: "process": what is reported survives the process's death. "power": a power cut, too.

    Raises:
        ValueError: `durability` is neither.
    """

    def __init__(self, path: str | Path, *, durability: Durability = "process") -> None:
        if durability not in get_args(Durability):
            raise ValueError(f"durability must be 'process' or 'power', not {durability!r}")
        self.path = Path(path).resolve()
        """The file."""
        self.durability = durability
        self._lock = RunLock(self.path)
        self._done: set[bytes] = set()
        self._open: _Open | None = None

    # -- opening and closing ------------------------------------------------------------------------------

    def open(
        self,
        fingerprint: Mapping[str, Any],
        *,
        deliver: Deliver | None = None,
        on_trouble: Callable[[str | None], object] = bool,
        on_failure: Callable[[Exception], object] = bool,
    ) -> None:
        """Open the file for writing, and find out which rows are done.

        Blocks for some milliseconds, for about 0.1 s per 100,000 rows already there: on a loop that serves others call
        it by way of `asyncio.to_thread`.

        Args:
            fingerprint: The run's settings, as JSON, without keys and URLs; a journal is for one set of them.
            deliver: Calls the callbacks where they belong, as `loop.call_soon_threadsafe` does. None: they are called
                on the writer's thread.
            on_trouble: Called with words when the file cannot be written for now (disk full), with None when it can
                again. Nothing is lost meanwhile, and nothing reported.
            on_failure: Called when it never will be again (the file was removed, is corrupt): rows not yet reported
                never will be, stop the run.

        Raises:
            JournalMismatch: the file is the journal of a run with other settings.
            JournalBusy: another live process, or another job of this one, writes it.
            ValueError: the file is no journal, or one of a newer llmlab.
            OSError: the folder is not there, or nothing can be written in it.
            RuntimeError: this journal is open already.
        """
        if self._open is not None:
            raise RuntimeError(f"the journal {self.path} is open already")
        self._refuse_path()
        settings = {name: canonical(value) for name, value in fingerprint.items()}
        with contextlib.ExitStack() as undo:
            self._lock.take()
            undo.callback(self._lock.release)
            db = open_to_write(self.path)
            undo.callback(db.close)
            with _clear_errors(self.path):
                self._prepare(db, settings)
                self._done = {key + occ.to_bytes(4, "big") for key, occ in db.execute(DONE_ROWS)}
            self._open = _Open(self, db, deliver or _at_once, on_trouble, on_failure)
            undo.pop_all()
        atexit.register(self.close)

    def _refuse_path(self) -> None:
        if not self.path.parent.is_dir():
            raise FileNotFoundError(f"journal: the folder {self.path.parent} is not there; make it first")
        if self.path.is_dir():
            raise IsADirectoryError(f"journal: {self.path} is a folder; name a file, as {self.path / 'run.sqlite'}")

    def _prepare(self, db: sqlite3.Connection, settings: Mapping[str, str]) -> None:
        known = is_journal(db, self.path)
        if known:  # looked at before anything is changed: another run's file stays as it is
            self._compare(db, settings)
        db.execute("PRAGMA journal_mode = WAL")
        db.execute(f"PRAGMA synchronous = {'FULL' if self.durability == 'power' else 'NORMAL'}")
        if not known:
            create(db, settings)

    def _compare(self, db: sqlite3.Connection, settings: Mapping[str, str]) -> None:
        there = json.loads(db.execute("SELECT settings FROM run").fetchone()[0])
        names = [name for name in {**there, **settings} if there.get(name) != settings.get(name)]
        if names:
            raise JournalMismatch(str(self.path), {name: (there.get(name), settings.get(name)) for name in names})

    def close(self) -> None:
        """Write what is left, tidy up, let go of the file; blocks meanwhile, and does nothing the second time.

        While there is trouble it tries once more; what then cannot be written was never reported. Callbacks may come
        after it when called on the loop itself: there use `aclose`. Python's exit calls it, too.
        """
        live, self._open = self._open, None
        if live is not None:
            atexit.unregister(self.close)
            live.close()
            self._lock.release()

    async def aclose(self) -> None:
        """Close without blocking the loop; all callbacks come before it returns."""
        await asyncio.get_running_loop().run_in_executor(None, self.close)

    # -- rows that are done -------------------------------------------------------------------------------

    @property
    def done_rows(self) -> int:
        """Rows that were answered when the journal was opened."""
        return len(self._done)

    def is_done(self, key: bytes, occ: int) -> bool:
        """Whether a row was answered when the journal was opened; looks at memory only, 90 bytes a row."""
        return key + occ.to_bytes(4, "big") in self._done

    async def recall(self, rows: Sequence[tuple[int, bytes, int]]) -> dict[int, Stored]:
        """Read rows that are done, some hundred at a time: only these stand in memory.

        Args:
            rows: Of each its position in the input now, its key and its occurrence. A position that differs from the
                one in the file is written there.

        Returns:
            By position. A row that somebody has removed from the file is missing.
        """
        found = await asyncio.to_thread(self._recall, rows)
        for index, row in found.items():
            if row.index != index:
                self._live().writer.put(_Move(index, row.key, row.occ))
        return found

    def _recall(self, rows: Sequence[tuple[int, bytes, int]]) -> dict[int, Stored]:
        with closing(open_to_read(self.path)) as db:
            found = ((index, find(db, key, occ)) for index, key, occ in rows)
            return {index: row for index, row in found if row is not None}

    # -- rows that come -----------------------------------------------------------------------------------

    @property
    def full(self) -> bool:
        """Whether so much waits to be written that no further rows should be taken up: the back-pressure."""
        return self.pending >= ROOM

    @property
    def pending(self) -> int:
        """Rows handed over and not yet committed."""
        return 0 if self._open is None else self._open.writer.pending

    def append(
        self,
        index: int,
        outcome: Outcome,
        *,
        key: bytes,
        occ: int,
        attempts: Sequence[Attempt] = (),
        then: Then | None = None,
    ) -> None:
        """Hand over what became of a row; returns at once, whatever the disk does.

        Args:
            index: The row's position in the input.
            outcome: What became of it. An answer already in the file stays as it is; it beats a failure, any outcome
                beats a cancelled one, and among failures the newest counts.
            key: The request's key, `UNREADABLE` if there is no request.
            occ: Which of the rows with this key, from 0.
            attempts: Its requests, kept beside those of earlier runs.
            then: Called once the row is committed, in the order of appending; the moment to report it.

        Raises:
            RuntimeError: the journal is not open, or has failed.
        """
        self._live().writer.put(_Entry(index, key, occ, outcome, attempts), then)

    async def flush(self) -> None:
        """Commit at once what waits; returns when all of it is committed and reported, a full disk emptied.

        Raises:
            Exception: what made the journal fail meanwhile.
            RuntimeError: the journal is not open, or has failed before.
        """
        await asyncio.wrap_future(self._live().writer.barrier())

    def _live(self) -> "_Open":
        if self._open is None:
            raise RuntimeError(f"the journal {self.path} is not open")
        return self._open

    def __repr__(self) -> str:
        state = "closed" if self._open is None else f"open, {self.pending} rows waiting"
        return f"<Journal {str(self.path)!r}: {state}>"


class _Open:
    """The open file, its writer, and whom to tell."""

    def __init__(
        self,
        journal: Journal,
        db: sqlite3.Connection,
        deliver: Deliver,
        on_trouble: Callable[[str | None], object],
        on_failure: Callable[[Exception], object],
    ) -> None:
        self.path, self.db, self.owner = journal.path, db, os.getpid()
        self._file = _file_id(self.path)
        self._on_trouble = on_trouble
        self.writer: Writer[_Entry | _Move] = Writer(
            self._write, deliver=deliver, on_trouble=self._put_in_words, on_failure=on_failure
        )

    def close(self) -> None:
        if self.owner != os.getpid():  # a forked child has the object but not the thread; the file is its parent's
            return
        self.writer.close()
        with contextlib.suppress(sqlite3.Error):  # a reader is still there: the file stays in two parts
            self.db.execute("PRAGMA busy_timeout = 0")
            self.db.execute(
                "PRAGMA journal_mode = DELETE"
            )  # one plain file, that can be copied, sent and write-protected
        self.db.close()

    def _write(self, items: list[_Entry | _Move]) -> None:
        """One commit; called on the writer's thread."""
        entries = [each for each in items if isinstance(each, _Entry)]
        rows = [row_cells(each.position, each.key, each.occ, each.outcome) for each in entries]
        attempts = [attempt_cells(each.key, each.occ, one) for each in entries for one in each.attempts]
        moves = [each for each in items if isinstance(each, _Move)]
        with transaction(self.db):
            self.db.executemany(PUT_ROW, rows)
            self.db.executemany(PUT_ATTEMPT, attempts)
            self.db.executemany(MOVE_ROW, moves)
        if _file_id(self.path) != self._file:
            # SQLite writes on into a file without a name: nobody would ever find these rows.
            raise FileNotFoundError(f"the journal {self.path} was removed or replaced during the run")

    def _put_in_words(self, trouble: str | None) -> None:
        if trouble is None:
            self._on_trouble(None)
            return
        self._on_trouble(
            f"the journal {self.path} cannot be written: {trouble}. {self.writer.pending} rows wait in memory, none is "
            "lost; it goes on by itself as soon as it can"
        )


@contextlib.contextmanager
def _clear_errors(path: Path) -> Iterator[None]:
    """SQLite's own words name neither the file nor what to do."""
    try:
        yield
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_BUSY:  # no journal of ours, but a browser or DuckDB
            raise JournalBusy(str(path)) from error
        raise OSError(f"the journal {path} cannot be opened for writing: {error}") from error


def _file_id(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino


def _at_once(callback: Then) -> None:
    callback()
