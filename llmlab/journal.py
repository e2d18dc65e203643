"""Read a run's journal as a frame, without a lab, also while the run goes on."""

from pathlib import Path
from typing import Any

import pandas as pd

from llmlab.errors import SchemaMismatch
from llmlab.fields import with_fields
from llmlab.frame import Frame, to_frame, values
from llmlab.logbook import Stored, read_records
from llmlab.stored import read_settings
from llmlab.typed import Typed, reader_of, remembered


def read(path: str | Path, *, schema: object = None) -> Frame:
    """Read the rows that a journal holds.

    Args:
        path: The file given as `run_many(…, journal=path)`.
        schema: The type that the run was given as `schema=`, for the very same columns. None: those of the JSON schema
            in the file, which knows nothing of a Python type's own: dates, aliases, what its validators change.

    Returns:
        One row per row of the input that is answered or has failed, in input order; the index is the row's position
        in the input, as a journal does not know the input's own index. See `llmlab.frame.COLUMNS`; the fields of a
        schema follow them.

    Raises:
        FileNotFoundError: the file is not there.
        TypeError: `schema` is no type.
        ValueError: it is no journal, or one of a newer llmlab.
    """
    rows = list(read_records(path))
    reader = reader_of(schema) or _reader_in(read_settings(path))
    records = [
        values(
            prompt=row.prompt,
            status=row.status,
            reply=row.reply,
            error=row.error,
            error_type=row.error_type,
            queue_s=row.queue_s,
            wait_s=row.wait_s,
            attempts=row.attempts,
            started_at=row.started_at,
            finished_at=row.finished_at,
            wasted=row.wasted,
            wasted_usd=row.wasted_usd,
        )
        for row in rows
    ]
    out = to_frame(records, pd.Index([row.index for row in rows], dtype="int64"))
    return out if reader is None else with_fields(out, reader.columns, [_cells(reader, row) for row in rows])


def _reader_in(settings: dict[str, Any]) -> Typed | None:
    found = settings.get("schema")
    return None if found is None else remembered(found)


def _cells(reader: Typed, row: Stored) -> tuple[Any, ...]:
    if row.status != "ok" or row.reply is None:
        return reader.cells(None)
    try:
        return reader.cells(reader.read(row.reply))
    except SchemaMismatch:  # of another schema than the run's
        return reader.cells(None)
