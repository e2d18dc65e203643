"""What every function of `stats` asks of a frame, and how it reads times and rows."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

RESULT = "a result of run_many"
ATTEMPTS = "job.attempts"
LIMITS = "job.limits"
COMPARE = "a result of lab.compare"
SWEEP = "a result of lab.sweep"
PREDICTION = "a result of twin.predict"
CALIBRATION = "a result of twin.calibration"

MISSING = "(missing)"
"""The group of rows that do not say to which one they belong, as failed rows name no model."""

Floats = npt.NDArray[np.float64]


def needs(frame: object, who: str, what: str, columns: Sequence[str]) -> pd.DataFrame:
    """Give the frame back if it is one and has these columns.

    Args:
        frame: What a function was given.
        who: The function's name.
        what: What it takes, in words.
        columns: The columns that it reads.

    Raises:
        TypeError: it is no DataFrame.
        ValueError: it lacks a column; names the first.
    """
    if not isinstance(frame, pd.DataFrame):
        hint = "; await the job first, or give its frame" if hasattr(frame, "attempts") else ""
        raise TypeError(f"{who} takes the DataFrame that is {what}, not {type(frame).__name__}{hint}")
    if missing := [name for name in columns if name not in frame]:
        raise ValueError(f"{who} takes {what}; this frame has no column {missing[0]!r}")
    return frame


def hits(rows: pd.DataFrame) -> "pd.Series[bool]":
    """Which rows llmlab's own cache answered."""
    if "cache_hit" not in rows:  # attempts: none of them was a hit
        return pd.Series(data=False, index=rows.index, dtype=bool)
    return rows["cache_hit"].astype("boolean").fillna(value=False).astype(bool)


def total(amounts: "pd.Series[Any]") -> int | float:
    """Their sum; unknown is not 0."""
    known = amounts.dropna()
    return float("nan") if len(amounts) and known.empty else int(known.sum())


def floats(column: "pd.Series[Any]") -> Floats:
    """A column as floats; what is missing is NaN."""
    return column.to_numpy(dtype="float64", na_value=np.nan)


def stamps(column: "pd.Series[Any]") -> "pd.Series[pd.Timestamp]":
    """A column of times; read again from a CSV, they are texts."""
    return pd.to_datetime(column, utc=True)


def seconds(column: "pd.Series[Any]", since: pd.Timestamp) -> Floats:
    """Times as seconds since a moment; NaN where there is none."""
    return floats((stamps(column) - since).dt.total_seconds())


def origin(since: pd.Timestamp | None, *columns: "pd.Series[Any]") -> pd.Timestamp:
    """The moment that counts as 0 s: the one that was asked for, or the first in these columns."""
    if since is not None:
        return since
    first = min((stamps(column).min() for column in columns), key=lambda at: (pd.isna(at), at))
    return pd.Timestamp(0, tz="UTC") if pd.isna(first) else first


def groups(frame: pd.DataFrame, by: str | None) -> Iterator[tuple[str, pd.DataFrame]]:
    """A frame's groups, the largest first; one nameless group if `by` is None."""
    if by is None:
        yield "", frame
        return
    names = frame[by].astype("string").fillna(MISSING).astype(object)
    for name in names.value_counts().index:
        yield str(name), frame[names == name]
