"""What stands in a journal, and how to read it: plain values, without a lab, also while the run goes on.

    run      one row: the settings, when, which llmlab
    row      one row per identity (key, occurrence): the best outcome so far
    attempt  one row per request sent, of all runs of this journal

Keys of the tables are whole numbers in the order of writing, the identity stands in an index of its own: a table
sorted by hashes with the answers inside is five to eight times slower to write. The answers stand last in their row,
so that what looks at a row's state need not read through them. Texts that UTF-8 or SQLite's own tools cannot hold
(half surrogate pairs, NUL) stand as blobs. No key, header or URL has a column.
"""

import contextlib
import json
import math
import sqlite3
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, TypeAlias

from llmlab.entries import Attempt, Stored
from llmlab.types import Outcome, Prompt, Reply, Usage
from llmlab.version import __version__

APPLICATION_ID = 0x6C6C6D6C
"""Marks a SQLite file as a journal: "llml"."""
SCHEMA_VERSION = 2

_ROW = (
    "key BLOB", "occ INTEGER", "status TEXT", "position INTEGER", "attempts INTEGER", "queue_s REAL", "wait_s REAL",
    "started_at REAL", "finished_at REAL", "wasted_input INTEGER", "wasted_output INTEGER", "wasted_usd REAL",
    "error_type TEXT", "error TEXT", "finish_reason TEXT", "provider TEXT", "model TEXT", "input_tokens INTEGER",
    "output_tokens INTEGER", "cached_tokens INTEGER", "cache_write_tokens INTEGER", "reasoning_tokens INTEGER",
    "request_id TEXT", "latency_s REAL", "ttft_s REAL", "itl_s REAL", "cost_usd REAL", "cache_hit INTEGER",
    "tool_calls TEXT", "prompt TEXT", "reasoning TEXT", "content TEXT",
)  # fmt: skip
_ATTEMPT = (
    "row INTEGER", "n INTEGER", "kind TEXT", "target TEXT", "queue_s REAL", "wait_s REAL", "sent_at REAL",
    "ended_at REAL", "http INTEGER", "error_type TEXT", "error TEXT", "input_tokens INTEGER", "output_tokens INTEGER",
    "cached_tokens INTEGER", "cache_write_tokens INTEGER", "reasoning_tokens INTEGER", "cost_usd REAL",
)  # fmt: skip
_ROW_NAMES, _ATTEMPT_NAMES = ([column.split()[0] for column in columns] for columns in (_ROW, _ATTEMPT))

_SCHEMA = (
    "CREATE TABLE run (seq INTEGER PRIMARY KEY, settings TEXT, created_at REAL, llmlab TEXT)",
    f"CREATE TABLE row (seq INTEGER PRIMARY KEY, {', '.join(_ROW)})",
    "CREATE UNIQUE INDEX row_identity ON row (key, occ)",
    f"CREATE TABLE attempt (seq INTEGER PRIMARY KEY, {', '.join(_ATTEMPT)})",
    f"PRAGMA application_id = {APPLICATION_ID}",
    f"PRAGMA user_version = {SCHEMA_VERSION}",
)

# An answer once reported stays as it is; any outcome beats a cancelled one; among failures the newest counts.
PUT_ROW = (
    f"INSERT INTO row ({', '.join(_ROW_NAMES)}) VALUES ({', '.join('?' * len(_ROW))}) "  # noqa: S608  our own names
    f"ON CONFLICT (key, occ) DO UPDATE SET {', '.join(f'{name} = excluded.{name}' for name in _ROW_NAMES[2:])} "
    "WHERE row.status = 'cancelled' OR (row.status = 'error' AND excluded.status <> 'cancelled')"
)
PUT_ATTEMPT = (
    f"INSERT INTO attempt ({', '.join(_ATTEMPT_NAMES)}) VALUES "  # noqa: S608  our own names
    f"((SELECT seq FROM row WHERE key = ? AND occ = ?), {', '.join('?' * (len(_ATTEMPT) - 1))})"
)
MOVE_ROW = "UPDATE row SET position = ? WHERE key = ? AND occ = ?"
DONE_ROWS = "SELECT key, occ FROM row WHERE status = 'ok'"
_GET_ROW = f"SELECT {', '.join(_ROW_NAMES)} FROM row"  # noqa: S608  our own names
_GET_ATTEMPT = f"SELECT position, {', '.join(f'attempt.{name}' for name in _ATTEMPT_NAMES[1:])} FROM attempt"  # noqa: S608

Cells: TypeAlias = tuple[str | bytes | int | float | None, ...]
_MOST = 2**63 - 1
_PAGE = 200


# -- writing ----------------------------------------------------------------------------------------------


def row_cells(index: int, key: bytes, occ: int, outcome: Outcome) -> Cells:
    """An outcome as a row of the table."""
    error = outcome.error
    return (
        key, occ, outcome.status, index, outcome.attempts, outcome.queue_s, outcome.wait_s,
        outcome.started_at, outcome.finished_at, *_usage_cells(outcome.wasted)[:2], outcome.wasted_usd,
        None if error is None else type(error).__name__,
        None if error is None else _text(str(error) or type(error).__name__),
        *_reply_cells(outcome.said, outcome.prompt),
    )  # fmt: skip


_NO_REPLY = (None,) * 15


def _reply_cells(reply: Reply | None, prompt: Prompt | None) -> Cells:
    asked = None if prompt is None else _text(prompt.text)
    if reply is None:
        return (*_NO_REPLY, asked, None, None)
    return (
        _text(reply.finish_reason), _text(reply.provider), _text(reply.model), *_usage_cells(reply.usage),
        _text(reply.request_id), reply.latency_s, reply.ttft_s, reply.itl_s, reply.cost_usd, int(reply.cache_hit),
        json.dumps(reply.tool_calls, default=repr) if reply.tool_calls else None,
        asked, _text(reply.reasoning), _text(reply.content),
    )  # fmt: skip


def attempt_cells(key: bytes, occ: int, attempt: Attempt) -> Cells:
    """An attempt as a row of the table, its row's identity first."""
    return (
        key, occ, attempt.n, attempt.kind, _text(attempt.target), attempt.queue_s, attempt.wait_s, attempt.sent_at,
        attempt.ended_at, attempt.http, attempt.error_type, _text(attempt.error), *_usage_cells(attempt.usage),
        attempt.cost_usd,
    )  # fmt: skip


def _usage_cells(usage: Usage | None) -> Cells:
    if usage is None:
        return (None,) * 5
    counts = (usage.input_tokens, usage.output_tokens, usage.cached_tokens, usage.cache_write_tokens,
              usage.reasoning_tokens)  # fmt: skip
    # SQLite's whole numbers end there, and one provider's nonsense must not cost the whole group its commit.
    return counts if max(map(abs, counts)) <= _MOST else tuple(max(-_MOST, min(count, _MOST)) for count in counts)


def _text(text: str | None) -> str | bytes | None:
    if text is None:
        return None
    try:
        encoded = text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-8", "surrogatepass")
    return encoded if b"\0" in encoded else text


def open_to_write(path: Path) -> sqlite3.Connection:
    """Open a file, made if it is not there; for one thread at a time, whichever it is."""
    return sqlite3.connect(path, timeout=5.0, isolation_level=None, check_same_thread=False)


def create(db: sqlite3.Connection, settings: Mapping[str, str]) -> None:
    """Make an empty database a journal for runs with these settings (JSON by name)."""
    with transaction(db):
        for statement in _SCHEMA:
            db.execute(statement)
        run = (json.dumps(settings), time.time(), __version__)
        db.execute("INSERT INTO run (settings, created_at, llmlab) VALUES (?, ?, ?)", run)


@contextlib.contextmanager
def transaction(db: sqlite3.Connection) -> Iterator[None]:
    """All of what is done within, or nothing of it."""
    db.execute("BEGIN IMMEDIATE")
    try:
        yield
        db.execute("COMMIT")
    except BaseException:
        with contextlib.suppress(sqlite3.Error):  # SQLite has rolled back by itself
            db.execute("ROLLBACK")
        raise


# -- reading ----------------------------------------------------------------------------------------------


def read_records(path: str | Path) -> Iterator[Stored]:
    """The rows of a journal in the order of their positions, those that once failed and later succeeded as ok.

    Needs no lab, may be called while a run writes, and then sees what was committed until each row is reached. Rows
    are read in pages: neither all answers stand in memory nor does a slow reader keep the writer from tidying up.
    Rows of an earlier, longer input stand among the others, at the positions they had.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is no journal, or one of a newer llmlab.
    """
    with closing(open_to_read(path)) as db:
        found = [seq for (seq,) in db.execute("SELECT seq FROM row ORDER BY position, seq")]
    return _pages(path, found)


def _pages(path: str | Path, found: Sequence[int]) -> Iterator[Stored]:
    with closing(open_to_read(path)) as db:
        for at in range(0, len(found), _PAGE):
            page = found[at : at + _PAGE]
            marks = ", ".join("?" * len(page))
            query = f"SELECT seq, {', '.join(_ROW_NAMES)} FROM row WHERE seq IN ({marks})"  # noqa: S608  question marks
            rows = {seq: cells for seq, *cells in db.execute(query, page)}
            yield from (_stored(rows[seq]) for seq in page if seq in rows)


def read_attempts(path: str | Path) -> Iterator[tuple[int, Attempt]]:
    """The requests of a journal in the order in which they were written, each with its row's position.

    Raises:
        FileNotFoundError, ValueError: as `read_records`.
    """
    with closing(open_to_read(path)) as db:
        cells = db.execute(f"{_GET_ATTEMPT} JOIN row ON row.seq = attempt.row ORDER BY attempt.seq").fetchall()
    return map(_attempt, cells)


def read_settings(path: str | Path) -> dict[str, Any]:
    """The settings of a journal's run.

    Raises:
        FileNotFoundError, ValueError: as `read_records`.
    """
    with closing(open_to_read(path)) as db:
        settings = json.loads(db.execute("SELECT settings FROM run").fetchone()[0])
    return {name: json.loads(value) for name, value in settings.items()}


def find(db: sqlite3.Connection, key: bytes, occ: int) -> Stored | None:
    """The row of an identity, if there is one."""
    cells = db.execute(f"{_GET_ROW} WHERE key = ? AND occ = ?", (key, occ)).fetchone()
    return None if cells is None else _stored(cells)


def open_to_read(path: str | Path) -> sqlite3.Connection:
    """Open a journal that is there, without the right to change it.

    Raises:
        FileNotFoundError, ValueError: as `read_records`.
    """
    whole = Path(path).resolve()
    if not whole.is_file():
        raise FileNotFoundError(f"there is no journal {whole}")
    db = sqlite3.connect(f"{whole.as_uri()}?mode=ro", uri=True, isolation_level=None, check_same_thread=False)
    with contextlib.ExitStack() as undo:
        undo.callback(db.close)
        if is_journal(db, whole):
            undo.pop_all()
            return db
    raise ValueError(f"{whole} is empty: no journal of llmlab, or one in the moment of its making")


def is_journal(db: sqlite3.Connection, path: Path) -> bool:
    """Whether a database is a journal; False if it is empty.

    Raises:
        ValueError: it is something else, or a journal of a newer llmlab.
    """
    try:
        db.execute("BEGIN")  # one moment for all three: somebody may be making the file just now
        mark, version, tables = (
            db.execute(query).fetchone()[0]
            for query in ("PRAGMA application_id", "PRAGMA user_version", "SELECT count(*) FROM sqlite_master")
        )
        db.execute("COMMIT")
    except sqlite3.OperationalError:
        raise
    except sqlite3.DatabaseError as error:
        raise ValueError(f"{path} is no journal of llmlab: {error}") from None
    if mark == 0 and tables == 0:
        return False
    if mark != APPLICATION_ID:
        raise ValueError(f"{path} is no journal of llmlab but some other program's database; nothing was changed")
    if version != SCHEMA_VERSION:
        other = "a newer llmlab" if version > SCHEMA_VERSION else "llmlab before its first release"
        raise ValueError(
            f"{path} was written by {other} (journal format {version}, this one knows {SCHEMA_VERSION}): "
            "update llmlab, or start a new journal"
        )
    return True


def _stored(cells: Sequence[Any]) -> Stored:
    key, occ, status, index, attempts, queue_s, wait_s, started_at, finished_at, *rest = cells
    *wasted, wasted_usd, error_type, error = rest[:5]
    *reply, prompt, reasoning, content = rest[5:]
    return Stored(
        index, key, occ, _read(prompt), status, _reply(reply, reasoning, content), _read(error), error_type,
        attempts, queue_s, wait_s, started_at, finished_at, _usage(wasted), wasted_usd,
    )  # fmt: skip


def _reply(cells: Sequence[Any], reasoning: Any, content: Any) -> Reply | None:
    if content is None:
        return None
    reason, provider, model, *tokens, request_id, latency_s, ttft_s, itl_s, cost_usd, cache_hit, tools = cells
    return Reply(
        _read(content) or "", _read(reason) or "", _read(provider) or "", _read(model) or "", _usage(tokens),
        _read(request_id), _read(reasoning) or "", () if tools is None else tuple(json.loads(tools)),
        math.nan if latency_s is None else latency_s, ttft_s, cost_usd, bool(cache_hit), itl_s,
    )  # fmt: skip


def _attempt(cells: Sequence[Any]) -> tuple[int, Attempt]:
    index, n, kind, target, queue_s, wait_s, sent_at, ended_at, http, error_type, error, *tokens, cost_usd = cells
    return index, Attempt(
        n, kind, _read(target), queue_s, wait_s, sent_at, ended_at, http, error_type, _read(error), _usage(tokens),
        cost_usd,
    )  # fmt: skip


def _usage(tokens: Sequence[int | None]) -> Usage | None:
    return None if tokens[0] is None else Usage(*(count or 0 for count in tokens))


def _read(cell: Any) -> str | None:
    return cell.decode("utf-8", "surrogatepass") if isinstance(cell, bytes) else cell
