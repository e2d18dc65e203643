"""Which batches a journal's run has made: the same call, made again, takes them up instead of paying twice.

One more table in the journal's file, written by short connections of its own; a batch is in it before it is made, so
that one made in the moment of a crash is looked for.

    batch    id (NULL: perhaps never made), what names it among the provider's, its rows' names and occurrences, done
"""

import asyncio
import json
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from llmlab.batch.names import read_name
from llmlab.providers.batches import Parcel

T = TypeVar("T")

_TABLE = (
    "CREATE TABLE IF NOT EXISTS batch (seq INTEGER PRIMARY KEY, id TEXT, origin TEXT, known TEXT, names TEXT, "
    "occs TEXT, done INTEGER DEFAULT 0)"
)
_PATIENCE = 30.0
"""Seconds that another connection to the file may take."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A batch of an earlier run whose results are not all in the journal."""

    seq: int
    """Its place in the table."""
    id: str | None
    """The provider's name for it. None: nobody knows whether it was made."""
    origin: str | None
    """As in `Parcel`."""
    known: set[str]
    """As in `Parcel`."""
    names: list[str]
    """Its rows' names, as they stand in it."""
    occs: list[int]
    """Which of the rows that ask the same each of them is."""

    @property
    def parcel(self) -> Parcel:
        """What it was made of, as far as it takes to find it."""
        return Parcel([b""] * len(self.names), {}, self.origin, self.known)

    def places(self, positions: Mapping[tuple[bytes, int], int]) -> list[int | None]:
        """Where its rows stand in the input now, by their identities; None: not any more."""
        read = map(read_name, self.names)
        return [
            None if name is None else positions.get((name.key, occ)) for name, occ in zip(read, self.occs, strict=True)
        ]


class Ledger:
    """The table of batches in a journal.

    Args:
        path: The journal's file, open in this process.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    async def open_entries(self) -> list[Entry]:
        """The batches that are not done, in the order in which they were made."""
        query = "SELECT seq, id, origin, known, names, occs FROM batch WHERE NOT done ORDER BY seq"
        found = await self._do(lambda db: db.execute(query).fetchall())
        return [
            Entry(seq, name, origin, set(json.loads(known)), json.loads(names), json.loads(occs))
            for seq, name, origin, known, names, occs in found
        ]

    async def intend(self, parcel: Parcel, names: Sequence[str], occs: Sequence[int]) -> int:
        """Write down a batch that is about to be made; gives its place."""
        row = (parcel.origin, json.dumps(sorted(parcel.known)), json.dumps(names), json.dumps(occs))
        insert = "INSERT INTO batch (origin, known, names, occs) VALUES (?, ?, ?, ?)"
        seq = await self._do(lambda db: db.execute(insert, row).lastrowid)
        assert seq is not None  # noqa: S101  a row was inserted
        return seq

    async def made(self, seq: int, name: str) -> None:
        """It was made, and this is its id."""
        await self._do(lambda db: db.execute("UPDATE batch SET id = ? WHERE seq = ?", (name, seq)))

    async def forget(self, seq: int) -> None:
        """It was never made, or is no more."""
        await self._do(lambda db: db.execute("DELETE FROM batch WHERE seq = ?", (seq,)))

    async def done(self, names: Sequence[str]) -> None:
        """All that came of these batches is in the journal."""
        rows = [(name,) for name in names]
        await self._do(lambda db: db.executemany("UPDATE batch SET done = 1 WHERE id = ?", rows))

    async def _do(self, work: Callable[[sqlite3.Connection], T]) -> T:
        return await asyncio.to_thread(self._now, work)

    def _now(self, work: Callable[[sqlite3.Connection], Any]) -> Any:
        with closing(sqlite3.connect(self._path, timeout=_PATIENCE)) as db, db:
            db.execute(_TABLE)
            return work(db)
