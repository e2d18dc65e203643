"""How a figure of the rows is spread: shares, counts and percentiles, of all rows or by group."""

import numpy as np
import pandas as pd

from llmlab.stats.checks import RESULT, Floats, floats, groups, hits, needs

QUANTILES = (0.5, 0.95, 0.99)


def ecdf(out: pd.DataFrame, column: str = "latency_ms", *, by: str | None = None, failed: bool = True) -> pd.DataFrame:
    """Tell for each value which share of the rows had been answered within it.

    Rows from llmlab's cache and cancelled ones do not count. Failed ones do, as never answered: a group that loses a
    tenth of its rows ends at 0.9.

    Args:
        out: A result of `run_many`, or `job.attempts`.
        column: What to look at, as `latency_ms` or `ttft_ms`; rows without a value are left out.
        by: A column whose groups are told apart. None: all rows together.
        failed: Whether failed rows count.

    Returns:
        `by` (if given), `column` and `share` (above 0, up to 1), a row per answered row, ascending within its group.

    Raises:
        TypeError, ValueError: `out` is no frame, or lacks a column; names it.
    """
    rows = needs(out, "ecdf", RESULT, ["status", column, *filter(None, [by])])
    parts = []
    for name, group in groups(rows, by):
        values = np.sort(answered(group, column))
        count = len(values) + (int((group["status"] == "error").sum()) if failed else 0)
        parts.append(_named({column: values, "share": np.arange(1, len(values) + 1) / max(count, 1)}, by, name))
    return _together(parts, [*filter(None, [by]), column, "share"])


def histogram(
    out: pd.DataFrame, column: str = "latency_ms", *, by: str | None = None, bins: int = 40, log: bool = False
) -> pd.DataFrame:
    """Count the answered rows in bins of equal width, the same for all groups; which rows count: as `ecdf`.

    Args:
        out: A result of `run_many`, or `job.attempts`.
        column: What to look at.
        by: A column whose groups are told apart. None: all rows together.
        bins: How many.
        log: Whether bins are of equal width on a logarithmic scale; values of 0 and less are then left out.

    Returns:
        `by` (if given), `left` and `right` (the bin's bounds in the column's unit), `rows`; a row per bin and group.

    Raises:
        TypeError, ValueError: `out` is no frame, or lacks a column; names it.
    """
    rows = needs(out, "histogram", RESULT, ["status", column, *filter(None, [by])])
    edges = _edges(answered(rows, column), bins, log=log)
    parts = []
    for name, group in groups(rows, by):
        counts, _ = np.histogram(answered(group, column), edges)
        parts.append(_named({"left": edges[:-1], "right": edges[1:], "rows": counts}, by, name))
    return _together(parts, [*filter(None, [by]), "left", "right", "rows"])


def percentiles(out: pd.DataFrame, column: str = "latency_ms", *, by: str | None = None) -> pd.DataFrame:
    """Percentiles of the answered rows, with how many failed; which rows count: as `ecdf`.

    Returns:
        `by` (if given), `ok` and `failed` (rows with a value, and rows that ended as an error), `p50`, `p95` and `p99`
        in the column's unit (linear interpolation; NaN without an answer); a row per group, the largest first.

    Raises:
        TypeError, ValueError: `out` is no frame, or lacks a column; names it.
    """
    rows = needs(out, "percentiles", RESULT, ["status", column, *filter(None, [by])])
    lines = []
    for name, group in groups(rows, by):
        values = answered(group, column)
        p50, p95, p99 = np.quantile(values, QUANTILES) if len(values) else [np.nan] * 3
        failed = int((group["status"] == "error").sum())
        line = {"ok": len(values), "failed": failed, "p50": p50, "p95": p95, "p99": p99}
        lines.append(line if by is None else {by: name, **line})
    return pd.DataFrame(lines, columns=[*filter(None, [by]), "ok", "failed", "p50", "p95", "p99"])


def answered(rows: pd.DataFrame, column: str) -> Floats:
    """The values of rows that were asked and answered, those that have one."""
    values = floats(rows.loc[(rows["status"] == "ok") & ~hits(rows), column])
    return values[np.isfinite(values)]


def _edges(values: Floats, bins: int, *, log: bool) -> Floats:
    if log:
        values = values[values > 0]
    if not len(values):
        return np.array([1.0, 10.0] if log else [0.0, 1.0])
    low, high = float(values.min()), float(values.max())
    if low == high:  # numpy would make bins of a unit's width, whatever the unit
        low, high = (low * 0.9, low * 1.1) if low else (0.0, 1.0)
    edges = np.geomspace(low, high, bins + 1) if log else np.linspace(low, high, bins + 1)
    edges[0], edges[-1] = low, high  # as rounding may leave the outermost value outside
    return edges


def _named(columns: dict[str, Floats], by: str | None, name: str) -> pd.DataFrame:
    frame = pd.DataFrame(columns)
    if by is not None:
        frame.insert(0, by, name)
    return frame


def _together(parts: list[pd.DataFrame], columns: list[str]) -> pd.DataFrame:
    parts = [part for part in parts if len(part)]
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=columns, dtype="float64")
