"""The file of a cache: finished answers by key, shared by many labs and several processes at once.

    answer    one row per key (see `llmlab.identity`): when it came (Unix time), and the reply as JSON

One SQLite file in write-ahead mode, on a local disk: network file systems break SQLite's locks. A process opens it
once, however many caches use it: one thread writes, in groups, and what waits for its commit is found in memory.

    reading   at once, in the caller's thread: a reader waits for no writer, and no writer for a reader
    trouble   the disk is full or the file locked: up to 1000 answers wait in memory, further ones are not kept
    failure   the file is corrupt: what can still be read is; nothing more is kept
    removed   a file that somebody deletes or replaces is noticed at the next look-up and made anew

No trouble costs an answer: it costs the caching, and is said once. What is committed survives the death of the
process, kill -9 included; a power cut may take the last commits and corrupts nothing. Prompts are not in the file, only
their hashes; no key, header or URL is.
"""

import atexit
import contextlib
import json
import logging
import operator
import os
import sqlite3
import threading
import time
import weakref
from concurrent.futures import wait
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, NamedTuple

from llmlab.stored import APPLICATION_ID as JOURNAL_ID
from llmlab.stored import open_to_write, transaction
from llmlab.types import Reply, Usage
from llmlab.writer import Writer

APPLICATION_ID = 0x6C6C6D63
"""Marks a SQLite file as a cache: "llmc"."""
SCHEMA_VERSION = 1
PATIENCE = 2.0
"""Seconds for which opening waits at most for others that hold the file; the caller waits meanwhile."""
GLANCE = 0.1
"""Seconds for which a look-up waits at most: nobody keeps a reader out but a process that repairs after a kill."""
ROOM = 1000
"""Answers in memory at most while the file cannot be written."""

_SCHEMA = (
    # Not sorted by key with the replies inside: that is several times slower to write, as hashes have no order.
    "CREATE TABLE answer (seq INTEGER PRIMARY KEY, key BLOB NOT NULL UNIQUE, at REAL NOT NULL, reply BLOB NOT NULL)",
    f"PRAGMA application_id = {APPLICATION_ID}",
    f"PRAGMA user_version = {SCHEMA_VERSION}",
)
_PUT = (
    "INSERT INTO answer (key, at, reply) VALUES (?, ?, ?) "
    "ON CONFLICT (key) DO UPDATE SET at = excluded.at, reply = excluded.reply"
)
_GET = "SELECT key, at, reply FROM answer WHERE key = ?"
_HAS = "SELECT 1 FROM answer WHERE key = ?"
_COUNT = "SELECT count(*) FROM answer"
_CLEAR = "DELETE FROM answer"
_NOTHING = "DELETE FROM answer WHERE seq < 0"  # changes nothing, and fails if nothing may be changed
_BUSY = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
_PAUSE = 0.01
_FIELDS = tuple(each.name for each in fields(Reply) if each.name != "parsed")

_log = logging.getLogger("llmlab")


class _Answer(NamedTuple):
    key: bytes
    at: float
    reply: bytes


class Answers:
    """The open file. Made by `lease`; may be used from any thread.

    Raises:
        ValueError: the file is no cache, or one of a newer llmlab; it is left as it is.
        OSError: the folder is not there, nothing can be written, or somebody holds the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        """The file."""
        self.leases: weakref.WeakSet[Lease] = weakref.WeakSet()
        """Who uses it."""
        self._writing = _opened(path)
        self._reading = open_to_write(path)
        self._reading.execute(f"PRAGMA busy_timeout = {1000 * GLANCE:.0f}")
        self._file = _file_id(path)
        self._owner = os.getpid()
        self._lock = threading.Lock()
        self._waiting: dict[bytes, _Answer] = {}
        self._closed = False
        self._trouble: str | None = None
        self._told: set[str] = set()
        self._writer: Writer[_Answer | None] = Writer(
            self._write, deliver=operator.call, on_trouble=self._on_trouble, on_failure=self._on_failure, name="cache"
        )
        atexit.register(self.close)

    @property
    def current(self) -> bool:
        """Whether it is open, of this process, and still the file of that name."""
        return not self._closed and self._owner == os.getpid() and _file_id(self.path) == self._file

    def find(self, key: bytes, since: float) -> Reply | None:
        """The answer that came at Unix time `since` or later, also when it is not yet committed. Never raises."""
        try:
            with self._lock:
                found = self._waiting.get(key) or self._reading.execute(_GET, (key,)).fetchone()
            return None if found is None or found[1] < since else _reply(found[2])
        except (sqlite3.Error, ValueError, TypeError, LookupError, AttributeError) as error:
            self._say(f"an answer in it cannot be read and is asked for anew ({error})")
            return None

    def put(self, key: bytes, at: float, reply: Reply) -> None:
        """Keep an answer that came at Unix time `at`, in place of an older one. Returns at once and never raises."""
        try:
            answer = _Answer(key, at, _json(reply))
        except (TypeError, ValueError, RecursionError):  # tool calls that are no JSON
            return
        with self._lock:
            if self._trouble is not None and len(self._waiting) >= ROOM:
                return
            try:
                self._writer.put(answer)
            except RuntimeError:  # it has failed and said so, or is closed
                return
            self._waiting[key] = answer

    def clear(self) -> None:
        """Remove all answers; blocks until that is committed.

        Raises:
            OSError: the file cannot be written; if that is trouble that passes, they are removed when it has.
        """
        try:
            self._writer.put(None)
            done = self._writer.barrier()
            while not wait([done], PATIENCE).done and self._trouble is None:
                continue  # many answers take their time: only trouble ends the patience
            done.result(timeout=0)
        except (RuntimeError, TimeoutError, sqlite3.Error) as error:
            raise OSError(f"the cache {self.path} cannot be cleared now: {self._trouble or error}") from error

    def __len__(self) -> int:
        with self._lock:
            waiting = tuple(self._waiting)
            self._reading.execute("BEGIN")  # one moment for all: a commit in between would be counted twice or never
            try:
                count: int = self._reading.execute(_COUNT).fetchone()[0]
                return count + sum(self._reading.execute(_HAS, (key,)).fetchone() is None for key in waiting)
            finally:
                self._reading.execute("COMMIT")

    def close(self) -> None:
        """Write what waits and let go of the file; blocks meanwhile, and does nothing the second time."""
        if self._closed or self._owner != os.getpid():  # a forked child has the object but neither thread nor file
            return
        self._closed = True
        atexit.unregister(self.close)
        self._writer.close()
        with self._lock:
            self._reading.close()
            self._writing.close()

    # -- the writer's thread ------------------------------------------------------------------------------

    def _write(self, items: list[_Answer | None]) -> None:
        """One commit. None among the items: all before it is removed."""
        with transaction(self._writing):
            for item in items:
                if item is None:
                    self._writing.execute(_CLEAR)
                else:
                    self._writing.execute(_PUT, item)
        if _file_id(self.path) != self._file:
            raise FileNotFoundError("it was removed or replaced")
        with self._lock:
            for item in items:
                if item is not None and self._waiting.get(item.key) is item:
                    del self._waiting[item.key]

    def _on_trouble(self, trouble: str | None) -> None:
        self._trouble = trouble
        if trouble is not None:
            self._say(f"it cannot be written for now ({trouble}); it goes on by itself as soon as it can")

    def _on_failure(self, error: Exception) -> None:
        self._say(f"it can no longer be written, and what waited for its commit is not kept ({error})")

    def _say(self, what: str) -> None:
        if what not in self._told:
            self._told.add(what)
            _log.warning("llmlab: the cache %s: %s. No answer is lost by it, only its caching", self.path, what)


class Lease:
    """One cache's use of an open file. A lease that is dropped counts no more.

    Args:
        answers: The file.
    """

    def __init__(self, answers: Answers) -> None:
        self.answers = answers
        """The file."""
        answers.leases.add(self)

    def give_back(self) -> None:
        """Let go of the file, and close it if nobody else of this process uses it; blocks meanwhile."""
        with _opening:
            self.answers.leases.discard(self)
            if not self.answers.leases:
                self.answers.close()


_open: dict[tuple[int, Path], Answers] = {}
_opening = threading.Lock()


def lease(path: Path) -> Lease:
    """Use a file, opened if it is not yet; made if it is not there, which its folder must be.

    Blocks for some milliseconds, for up to two seconds if somebody holds the file. The file stays open until its last
    lease is given back, or until Python's end: a script that closes nothing loses nothing.

    Raises:
        ValueError, OSError: as `Answers`.
    """
    with _opening:
        # By process: a forked child must neither use its parent's connections nor close them.
        answers = _open.get((os.getpid(), path))
        if answers is None or not answers.current:
            if answers is not None:
                answers.close()
            answers = _open[os.getpid(), path] = Answers(path)
        return Lease(answers)


# -- opening ----------------------------------------------------------------------------------------------


def _opened(path: Path) -> sqlite3.Connection:
    if not path.parent.is_dir():
        raise FileNotFoundError(f"cache: the folder {path.parent} is not there; make it first")
    if path.is_dir():
        raise IsADirectoryError(f"cache: {path} is a folder; name a file, as {path / 'answers.sqlite'}")
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            return _prepared(path)
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF not in _BUSY:
                raise OSError(f"the cache {path} cannot be opened for writing: {error}") from error
            if time.monotonic() > deadline:
                raise OSError(f"the cache {path} is held by another program: {error}") from error
        except sqlite3.DatabaseError as error:
            raise ValueError(f"{path} is no cache of llmlab: {error}") from None
        time.sleep(_PAUSE)


def _prepared(path: Path) -> sqlite3.Connection:
    """Open the file, and make it a cache if it is empty; others may do the same at this moment."""
    with contextlib.ExitStack() as undo:
        db = open_to_write(path)
        undo.callback(db.close)
        # SQLite's own patience ends where it sees no use in waiting, as when two switch to write-ahead mode at once.
        db.execute("PRAGMA busy_timeout = 0")
        db.execute("BEGIN")  # one moment for all that is read: another process may be making it
        _is_cache(db, path)  # before anything is changed
        db.execute("COMMIT")
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = NORMAL")
        with transaction(db):
            for statement in (_NOTHING,) if _is_cache(db, path) else _SCHEMA:
                db.execute(statement)
        db.execute(f"PRAGMA busy_timeout = {1000 * PATIENCE:.0f}")
        undo.pop_all()
        return db


def _is_cache(db: sqlite3.Connection, path: Path) -> bool:
    """Whether a database is a cache; False if it is empty, ValueError if it is something else."""
    mark, version, tables = (
        db.execute(query).fetchone()[0]
        for query in ("PRAGMA application_id", "PRAGMA user_version", "SELECT count(*) FROM sqlite_master")
    )
    if mark == 0 and tables == 0:
        return False
    if mark == JOURNAL_ID:
        raise ValueError(f"{path} is the journal of a run: give the cache a file of its own; nothing was changed")
    if mark != APPLICATION_ID:
        raise ValueError(f"{path} is no cache of llmlab but some other program's database; nothing was changed")
    if version > SCHEMA_VERSION:
        raise ValueError(
            f"{path} was written by a newer llmlab (cache format {version}, this one knows {SCHEMA_VERSION}): "
            "update llmlab, or start a new cache"
        )
    return True


def _file_id(path: Path) -> tuple[int, int] | None:
    try:
        found = os.stat(path)  # noqa: PTH116  asked at every look-up, and Path.stat takes half as long again
    except OSError:
        return None
    return found.st_dev, found.st_ino


# -- replies ----------------------------------------------------------------------------------------------


def _json(reply: Reply) -> bytes:
    values = {name: getattr(reply, name) for name in _FIELDS}
    values["usage"] = None if reply.usage is None else asdict(reply.usage)
    # Not orjson: a reply may hold halves of surrogate pairs.
    return json.dumps(values, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "surrogatepass")


def _reply(cell: bytes) -> Reply:
    values: dict[str, Any] = {name: value for name, value in json.loads(cell).items() if name in _FIELDS}
    usage = values["usage"]
    values["usage"] = None if usage is None else Usage(**usage)
    values["tool_calls"] = tuple(values["tool_calls"])
    return Reply(**values)
