"""Read a run's journal as a frame, without a lab, also while the run goes on."""

from pathlib import Path

import pandas as pd

from llmlab.frame import Frame, to_frame, values
from llmlab.logbook import read_records


def read(path: str | Path) -> Frame:
    """Read the rows that a journal holds.

    Args:
        path: The file given as `run_many(…, journal=path)`.

    Returns:
        One row per row of the input that is answered or has failed, in input order; the index is the row's position
        in the input, as a journal does not know the input's own index. See `llmlab.frame.COLUMNS`.

    Raises:
        FileNotFoundError: the file is not there.
        ValueError: it is no journal, or one of a newer llmlab.
    """
    rows = list(read_records(path))
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
    return to_frame(records, pd.Index([row.index for row in rows], dtype="int64"))
