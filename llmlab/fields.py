"""Columns as pandas knows them: llmlab's own, and those that a schema adds to them."""

import itertools
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import pandas as pd

from llmlab.columns import Column
from llmlab.frontend import in_kernel


def frame_of(
    columns: Sequence[Column], records: Sequence[tuple[Any, ...]], index: pd.Index | None = None
) -> pd.DataFrame:
    """Make a frame with these columns and dtypes of records in their order; without an index count from 0."""
    index = pd.RangeIndex(len(records)) if index is None else index
    show_as_text()
    values = zip(*records, strict=True) if records else itertools.repeat(())
    data = {column.name: series(column, each, index) for column, each in zip(columns, values, strict=False)}
    return pd.DataFrame(data, index=index)


AS_TEXT = {"display.html.use_mathjax": False, "styler.html.mathjax": False, "styler.format.escape": "html"}
"""pandas' options in a notebook: no formula in a frame is typeset, and no HTML in one that has a `style` runs."""


@cache
def show_as_text() -> None:
    """Let pandas show as text whatever stands in frames, if this is a notebook's kernel.

    Done once, when the first Lab or the first frame is made: who sets the options otherwise later has the last word.
    Answers often hold a $, which JupyterLab takes for the beginning of a formula.
    """
    if in_kernel():
        for name, value in AS_TEXT.items():
            pd.set_option(name, value)


def with_fields(out: pd.DataFrame, columns: Sequence[Column], rows: Sequence[tuple[Any, ...]]) -> pd.DataFrame:
    """The frame with the columns behind its own; `rows` has their values for each of its rows, plain."""
    cells = list(zip(*rows, strict=True)) if rows else [()] * len(columns)
    added = {column.name: _field(column, each, out.index) for column, each in zip(columns, cells, strict=True)}
    return pd.concat([out, pd.DataFrame(added, index=out.index)], axis=1) if added else out


def series(column: Column, values: Sequence[Any], index: pd.Index) -> "pd.Series[Any]":
    """A column of llmlab's own, whose values are of its dtype; times as Unix time, 0 or None: missing."""
    if column.dtype.startswith("datetime64"):
        micros = np.array([value * 1e6 if value else np.nan for value in values], dtype="float64")
        micros = np.where(np.isnan(micros), np.iinfo("int64").min, micros.round())  # the minimum is NaT
        stamps = micros.astype("int64")
        return pd.Series(stamps.view("M8[us]"), index=index).dt.tz_localize("UTC")
    try:
        return pd.Series(list(values), index=index, dtype=column.dtype)
    except UnicodeEncodeError:  # Arrow holds no half of a surrogate pair; one bad text must not cost the frame
        return pd.Series(list(map(_writable, values)), index=index, dtype=column.dtype)


def _writable(text: str | None) -> str | None:
    return None if text is None else text.encode(errors="backslashreplace").decode()


def _field(column: Column, values: Sequence[Any], index: pd.Index) -> "pd.Series[Any]":
    """With the column's dtype; as objects if a value is none of it (a number beyond 64 bits, half a surrogate pair)."""
    try:
        if column.dtype == "category" and set(values) <= {None, *column.choices}:
            return pd.Series(pd.Categorical(list(values), categories=list(column.choices)), index=index)
        if column.dtype.startswith("datetime64"):
            return _times(column, values, index)
        dtype = object if column.dtype == "category" else column.dtype
        return pd.Series(list(values), index=index, dtype=dtype)
    except (ValueError, TypeError, OverflowError):
        return pd.Series(list(values), index=index, dtype=object)


def _times(column: Column, values: Sequence[Any], index: pd.Index) -> "pd.Series[Any]":
    zoned = column.dtype.endswith("UTC]")
    times = pd.to_datetime(list(values), utc=zoned, format="ISO8601")
    return pd.Series(times.as_unit("us"), index=index)
