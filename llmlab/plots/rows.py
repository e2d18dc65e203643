"""What became of the rows: a waterfall of their time, retries, errors."""

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from llmlab.frame import Frame
from llmlab.plots.canvas import (
    FAILED,
    OK,
    OTHER,
    PALE,
    WARN,
    axes_for,
    inert,
    ink,
    legend,
    legend_beside,
    log_axis,
    named_ticks,
    note,
    percent,
    time_axis,
    title,
)
from llmlab.stats.rows import PHASES
from llmlab.stats.rows import errors as errors_of
from llmlab.stats.rows import retries as retries_of
from llmlab.stats.rows import timeline as timeline_of

_LOOKS = {
    "queue": ("waiting in line", "#D9D9D9"),
    "wait": ("backing off", WARN),
    "failed": ("failed attempt", FAILED),
    "first token": ("to first token", PALE),
    "stream": ("streaming", OK),
    "answer": ("answer, not streamed", OK),
}
_ENDS = {"ok": ("answered", OK), "error": ("failed", FAILED), "cancelled": ("cancelled", OTHER)}
_BAR = 0.8
_LEAST_BARS = 4


def timeline(frame: Frame, *, ax: Axes | None = None, rows: int = 60, since: pd.Timestamp | None = None) -> Axes:
    """Draw the rows as a waterfall: waiting in line, backing off, failed attempts, first token, stream.

    Args:
        frame: `job.attempts`, for every attempt where it happened; or a result of `run_many`, see
            `llmlab.stats.timeline`.
        ax: Where to draw. None: in a figure of its own.
        rows: How many rows are drawn at most. Of more, some are taken evenly by when they began, among those answered
            at once, those retried and those that failed, so that each kind keeps its share; the title says so.
        since: The moment that is 0 on the x-axis. None: when the first row was taken up.

    Returns:
        The axes. From top to bottom: rows by when they began. A triangle marks each further attempt.

    Raises:
        TypeError, ValueError: `frame` is no frame or lacks a column; `rows` is not at least 1.
    """
    if not isinstance(rows, int) or rows < 1:
        raise ValueError(f"rows is a whole number of at least 1, not {rows!r}")
    phases = timeline_of(frame, since=since)
    ax = axes_for(ax)
    drawn = _sample(phases, rows)
    place = {position: n for n, position in enumerate(drawn)}
    shown = phases[phases["position"].isin(place)]
    scale = time_axis(ax, float(phases["end_s"].max()) if len(shown) else 0.0)
    handles, names = _bars(ax, shown, place, scale)
    if len(again := _again(shown)):
        y = again["position"].map(place)
        marks: dict[str, Any] = {"marker": ">", "color": ink(), "s": 14.0, "zorder": 3.0, "linewidths": 0.0}
        handles.append(ax.scatter(again["begin_s"] / scale, y, **marks))
        names.append("another attempt")
    ax.set_ylim(max(len(drawn), 1) - 0.5, -0.5)
    ax.set_yticks([])
    inert(ax.set_ylabel("rows (by when they began)"))
    count = phases["position"].nunique()
    title(ax, f"{len(drawn):,} of {count:,} rows" if count > len(drawn) else "")
    legend_beside(ax, handles, names)
    if shown.empty:
        note(ax, "no rows")
    return ax


def _bars(ax: Axes, shown: Frame, place: dict[int, int], scale: float) -> tuple[list[Artist], list[str]]:
    handles: list[Artist] = []
    names: list[str] = []
    for phase in PHASES:
        rows = shown[shown["phase"] == phase]
        if rows.empty:
            continue
        name, colour = _LOOKS[phase]
        left, right = rows["begin_s"].to_numpy() / scale, rows["end_s"].to_numpy() / scale
        middle = rows["position"].map(place).to_numpy(dtype="float64")
        low, high = middle - _BAR / 2, middle + _BAR / 2
        corners = np.stack([[left, right, right, left], [low, low, high, high]], axis=-1).transpose(1, 0, 2)
        # An edge of its own colour, as a failure of milliseconds would else be thinner than a pixel.
        ax.add_collection(
            PolyCollection(list(corners), facecolors=colour, edgecolors=colour, linewidths=0.4, label=phase)
        )
        handles.append(Patch(color=colour))
        names.append(name)
    return handles, names


def _again(phases: Frame) -> Frame:
    """Where each attempt but a row's first was sent."""
    sent = phases[phases["phase"].isin(["failed", "first token", "answer"]) & ~phases["kind"].isin(["first", "packed"])]
    return sent.drop_duplicates(["position", "attempt", "kind"])


def _sample(phases: Frame, most: int) -> list[int]:
    """Positions to draw, by when they began."""
    rows = phases.groupby("position").agg(begin=("begin_s", "min"), tries=("attempt", "max"))
    answers = phases["phase"].isin(["first token", "stream", "answer"])
    good = rows.index.isin(phases.loc[answers, "position"])
    rows["kind"] = np.where(~good, 0, np.where(rows["tries"] > 1, 1, 2))
    if len(rows) > most:
        ordered = rows.sort_values(["kind", "begin"], kind="stable")
        rows = ordered.iloc[np.unique(np.linspace(0, len(ordered) - 1, most).round().astype(int))]
    return [int(position) for position in rows.sort_values("begin", kind="stable").index]


def retries(frame: Frame, *, ax: Axes | None = None) -> Axes:
    """Draw how many requests the rows took, and what became of those rows.

    Args:
        frame: A result of `run_many`.
        ax: Where to draw. None: in a figure of its own.

    Returns:
        The axes; the scale of the rows is logarithmic, so that the few that took many can be seen.

    Raises:
        TypeError, ValueError: `frame` is no frame, or lacks a column; names it.
    """
    counts = retries_of(frame)
    ax = axes_for(ax)
    ends = [end for end in _ENDS if counts[end].sum()]
    width = 0.8 / max(len(ends), 1)
    handles: list[Artist] = []
    names: list[str] = []
    for n, end in enumerate(ends):
        name, colour = _ENDS[end]
        own = counts[counts[end] > 0]
        at = own["attempts"] + (n - (len(ends) - 1) / 2) * width
        bars = ax.bar(at, own[end], width, color=colour)
        ax.bar_label(bars, [f"{count:,}" for count in own[end]], fontsize="small")
        handles.append(bars[0])
        names.append(f"{name}: {own[end].sum():,}")
    inert(ax.set_xlabel("requests sent for a row (count)"))
    inert(ax.set_ylabel("rows (count)"))
    if not ends:
        note(ax, "no rows")
        return ax
    _count_axes(ax, counts, ends)
    sent, good = int(frame["attempts"].sum()), int(counts["ok"].sum())
    title(ax, f"{sent:,} requests for {good:,} answers" + (f": {sent / good:.2f} each" if good else ""))
    legend(ax, handles, names, loc="upper right")
    return ax


def _count_axes(ax: Axes, counts: Frame, ends: list[str]) -> None:
    log_axis(ax, "y", float(counts[ends].to_numpy().max()))
    ax.set_ylim(0.7, 5 * counts[ends].to_numpy().max())
    ax.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    ax.set_xlim(counts["attempts"].min() - 0.6, counts["attempts"].max() + 0.6)


def errors(frame: Frame, *, ax: Axes | None = None, most: int = 12) -> Axes:
    """Draw what went wrong, by class of error, and how much of it was mended by another attempt.

    Args:
        frame: `job.attempts`, for each request that failed; or a result of `run_many`, for the rows without an answer.
        ax: Where to draw. None: in a figure of its own.
        most: Classes that are drawn; the rest are summed up as one.

    Returns:
        The axes.

    Raises:
        TypeError, ValueError: `frame` is no frame, or lacks a column; names it.
    """
    counts = errors_of(frame)
    what = "requests" if "position" in frame else "rows"
    ax = axes_for(ax)
    if len(counts) > most:
        rest = counts.iloc[most:]
        last = {"error_type": f"{len(rest)} other classes", **rest.drop(columns="error_type").sum().to_dict()}
        counts = pd.concat([counts.head(most), pd.DataFrame([last])], ignore_index=True)
    places = np.arange(len(counts))
    handles: list[Artist] = []
    names: list[str] = []
    left = np.zeros(len(counts))
    for column, name, colour in (("mended", "answered by another attempt", PALE), ("lost", "lost", FAILED)):
        if counts[column].sum():
            handles.append(ax.barh(places, counts[column], left=left, color=colour))  # type: ignore[arg-type]
            names.append(f"{name}: {counts[column].sum():,}")
            left += counts[column].to_numpy()
    for place, count in zip(places, counts["count"], strict=True):
        ax.annotate(f" {count:,}", (count, place), va="center", fontsize="small")
    named_ticks(ax, counts["error_type"].tolist())
    inert(ax.set_xlabel(f"{what} that failed (count)"))
    # A single bar of the axes' whole height would be a wall.
    ax.set_ylim(max(len(counts), _LEAST_BARS) - 0.5, -0.5)
    ax.set_xlim(0.0, 1.1 * max(counts["count"].max(), 1) if len(counts) else 1.0)
    legend(ax, handles, names, loc="lower right")
    failed = int(counts["count"].sum())
    title(ax, f"{failed:,} of {len(frame):,} {what} failed ({percent(failed / len(frame))})" if failed else "")
    if not failed:
        note(ax, f"none of {len(frame):,} {what} failed" if len(frame) else f"no {what}")
    return ax
