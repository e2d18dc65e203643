"""How long answers took, and their pieces."""

from collections.abc import Mapping
from typing import Any, Literal

import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes

from llmlab.frame import Frame
from llmlab.plots.canvas import (
    DASHES,
    OK,
    SERIES,
    axes_for,
    blank,
    duration,
    group_name,
    inert,
    ink,
    latency_unit,
    legend,
    legend_above,
    log_axis,
    note,
    numbers,
)
from llmlab.stats.checks import ATTEMPTS, RESULT, needs
from llmlab.stats.spread import answered, ecdf, histogram, percentiles

MOST = 7
"""Groups that are drawn, the largest; more could not be told apart."""

_WIDE = 30.0
"""From this ratio of the longest to the shortest on, the axis is logarithmic."""
_TIMES = {
    "latency_ms": "latency of the successful attempt",
    "ttft_ms": "time to first token",
    "queue_ms": "time waiting for admission",
    "wait_ms": "time backing off",
}


def latency(
    frame: Frame,
    *,
    ax: Axes | None = None,
    by: str | None = None,
    kind: Literal["histogram", "ecdf"] = "histogram",
    column: str = "latency_ms",
) -> Axes:
    """Draw how the latency of the answered rows is spread, with p50, p95 and p99.

    Rows from llmlab's cache are left out. Failed rows are counted in the legend; in an ECDF they count as never
    answered, so that a group which loses rows does not reach 1.

    Args:
        frame: A result of `run_many`.
        ax: Where to draw. None: in a figure of its own.
        by: A column whose groups are told apart, as "model"; the 7 largest are drawn.
        kind: "histogram" counts rows; "ecdf" shows which share was answered within a time.
        column: Which time: "latency_ms", "ttft_ms", "queue_ms" or "wait_ms".

    Returns:
        The axes.

    Raises:
        TypeError, ValueError: `frame` is no frame or lacks a column; `kind` is neither.
    """
    if kind not in ("histogram", "ecdf"):
        raise ValueError(f"kind is 'histogram' or 'ecdf', not {kind!r}")
    needs(frame, "latency", RESULT, ["status", column, *filter(None, [by])])
    ax = axes_for(ax)
    groups = percentiles(frame, column, by=by)
    scale, unit = latency_unit(float(groups["p99"].max()))
    log = (ratio := _ratio(frame, column)) >= _WIDE
    curves = histogram(frame, column, by=by, log=log) if kind == "histogram" else ecdf(frame, column, by=by)
    handles, names = [], []
    for n, group in enumerate(groups.head(MOST).to_dict("records")):
        curve = curves if by is None else curves[curves[by] == group[by]]
        handles.append(_draw(ax, curve, column, scale, n, many=by is not None) if group["ok"] else blank())
        names.append(_told(group, by))
    if len(groups) > MOST:
        handles.append(blank())
        names.append(f"and {len(groups) - MOST} smaller groups, not drawn")
    if by is None and groups["ok"].sum():
        lines, told = _percentile_lines(ax, groups.iloc[0], scale)
        handles, names = handles + lines, names + told
    _dress(ax, kind, f"{_TIMES.get(column, column)} ({unit})", ratio)
    legend(ax, handles, names)
    if not groups["ok"].sum():
        note(ax, "no answers")
    return ax


def _ratio(frame: Frame, column: str) -> float:
    """Of the longest time to the shortest; 1 if there is none, or one of 0."""
    values = answered(frame, column)
    return float(values.max() / values.min()) if len(values) and values.min() > 0 else 1.0


def _draw(ax: Axes, curve: Frame, column: str, scale: float, n: int, *, many: bool) -> Artist:
    look: dict[str, Any] = {"color": SERIES[n], "linestyle": DASHES[n % len(DASHES)], "linewidth": 1.6}
    if "share" in curve:
        return ax.step([0.0, *curve[column] / scale], [0.0, *curve["share"]], where="post", **look)[0]
    edges = [*curve["left"] / scale, *(curve["right"].tail(1) / scale)] or [0.0, 1.0]
    counts = [*curve["rows"]] or [0]
    if many:
        return ax.stairs(counts, edges, **look)
    return ax.stairs(counts, edges, fill=True, color=SERIES[n], alpha=0.85)


def _told(group: Mapping[Any, Any], by: str | None) -> str:
    """A group in the legend."""
    head = [] if by is None else [group_name(by, group[by])]
    if group["ok"] and by is not None:
        head.append(f"p50 {duration(group['p50'])}, p99 {duration(group['p99'])}")
    return " · ".join([*head, f"{group['ok']:,} answered", *([f"{group['failed']:,} failed"] * bool(group["failed"]))])


def _percentile_lines(ax: Axes, figures: "pd.Series[Any]", scale: float) -> tuple[list[Artist], list[str]]:
    """Lines at p50, p95 and p99; their names stand in the legend, where they cover nothing."""
    styles = {"p50": "-", "p95": "--", "p99": ":"}
    lines: list[Artist] = [
        ax.axvline(figures[name] / scale, color=ink(), linestyle=style, linewidth=1.1) for name, style in styles.items()
    ]
    return lines, [f"{name}: {duration(figures[name])}" for name in styles]


def _dress(ax: Axes, kind: str, label: str, ratio: float) -> None:
    inert(ax.set_xlabel(label))
    inert(ax.set_ylabel("rows (count)" if kind == "histogram" else "rows answered (share of all)"))
    ax.grid(axis="y", alpha=0.25)
    if ratio >= _WIDE:
        log_axis(ax, "x", ratio)
    numbers(ax.xaxis)
    if kind == "ecdf":
        ax.set_ylim(0.0, 1.02)
        ax.axhline(1.0, color=ink(), linewidth=0.6, alpha=0.5)


def streams(frame: Frame, *, ax: Axes | None = None) -> Axes:
    """Draw how streamed answers felt: the time to first token, and that between tokens (TTFT and ITL) as ECDFs.

    Args:
        frame: `job.attempts`; or a result of `run_many`, which knows the time to first token alone.
        ax: Where to draw. None: in a figure of its own.

    Returns:
        The axes.

    Raises:
        TypeError, ValueError: `frame` is no frame, or lacks a column; names it.
    """
    needs(frame, "streams", f"{ATTEMPTS} or {RESULT}", ["status", "ttft_ms"])
    ax = axes_for(ax)
    handles, names = [], []
    shown = pd.Series(dtype="float64")
    for column, name, colour, style in (
        ("ttft_ms", "to first token (TTFT)", OK, "-"),
        ("itl_ms", "between tokens (ITL), mean of an answer", SERIES[1], "--"),
    ):
        curve = ecdf(frame, column, failed=False) if column in frame else pd.DataFrame()
        if curve.empty:
            continue
        handles += ax.step(curve[column], curve["share"], where="post", color=colour, linestyle=style, linewidth=1.8)
        p50, p99 = (float(curve[column].quantile(q)) for q in (0.5, 0.99))
        names.append(f"{name}: p50 {_fine(p50)}, p99 {_fine(p99)}")
        shown = pd.concat([shown, curve[column]])
    if len(shown) and shown.min() > 0:
        log_axis(ax, "x", float(shown.max() / shown.min()))
    inert(ax.set_xlabel("time (ms)"))
    inert(ax.set_ylabel("streamed answers (share)"))
    ax.set_ylim(0.0, 1.02)
    ax.grid(alpha=0.25)
    if not handles:
        note(ax, "no streamed answers")
    if failed := int((frame["status"] == "error").sum()):
        handles.append(blank())
        names.append(f"{failed:,} of {len(frame):,} {_units(frame)} failed")
    legend_above(ax, handles, names, ncols=1)
    return ax


def _units(frame: Frame) -> str:
    return "requests" if "sent_at" in frame else "rows"


def _fine(ms: float) -> str:
    return f"{ms:.1f} ms" if ms < 100 else duration(ms)  # noqa: PLR2004  between tokens, tenths matter
