"""Strategies side by side."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from llmlab.frame import Frame
from llmlab.plots.canvas import (
    FAILED,
    RING_LEAST,
    RING_MOST,
    SERIES,
    axes_for,
    inert,
    ink,
    legend_beside,
    log_axis,
    note,
    percent,
    plain,
    time_unit,
    title,
)
from llmlab.stats.checks import floats
from llmlab.stats.strategies import strategies

MARKS = "osD^vP*Xhd"
"""Markers, so that strategies are told apart also without colour."""
_WIDE = 5.0


def compare(frame: Frame, *, ax: Axes | None = None) -> Axes:
    """Draw the strategies of a comparison by how long the job took and how many requests an answer cost.

    Best is at the lower left, with no rows lost. A strategy may be fast because it drops rows: the share of rows that
    failed is the area of the red ring around its mark, and stands in the legend.

    Args:
        frame: A result of `lab.compare`.
        ax: Where to draw. None: in a figure of its own.

    Returns:
        The axes; a mark per strategy at the mean over the seeds, with bars from the least to the most; small dots are
        the single seeds. Axes that span a factor of 5 are logarithmic. A strategy without an answer at all stands in
        the legend only.

    Raises:
        TypeError, ValueError: `frame` is no frame, or lacks a column; names it.
    """
    table = strategies(frame)
    ax = axes_for(ax, size=(7.2, 4.2))
    scale, unit = time_unit(float(table["makespan_s"].max()) if len(table) else 0.0)
    handles: list[Artist] = []
    names: list[str] = []
    for n, line in enumerate(table.to_dict("records")):
        colour, mark = SERIES[n % len(SERIES)], MARKS[n % len(MARKS)]
        handles.append(Line2D([], [], marker=mark, color=colour, linestyle=""))
        names.append(f"{plain(line['strategy'], 28)}: {percent(line['failed_share'])} failed")
        own = frame[(frame["strategy"].astype(object) == line["strategy"]).to_numpy(dtype=bool)]
        _strategy(ax, line, own, scale, colour, mark)
    inert(ax.set_xlabel("requests sent per answered row"))
    inert(ax.set_ylabel(f"time until the job was done ({unit})"))
    _scales(ax, table, scale)
    ax.grid(alpha=0.25, which="both")
    if table["failed"].sum():
        handles.append(Line2D([], [], marker="o", markersize=11, markerfacecolor="none", color=FAILED, linestyle=""))
        names.append("ring's area: share of rows failed")
    legend_beside(ax, handles, names)
    if "scenario" in frame.attrs:
        title(ax, f"scenario: {plain(frame.attrs['scenario'])}")
    if table["ok"].sum() == 0:
        note(ax, "no answers" if len(table) else "no runs")
    return ax


def _strategy(ax: Axes, line: Mapping[Any, Any], own: Frame, scale: float, colour: str, mark: str) -> None:
    x, y = line["attempts_per_ok"], line["makespan_s"] / scale
    if not np.isfinite(x):
        return
    across = [[x - line["attempts_per_ok_min"]], [line["attempts_per_ok_max"] - x]]
    along = [[y - line["makespan_s_min"] / scale], [line["makespan_s_max"] / scale - y]]
    ax.errorbar(x, y, xerr=np.abs(across), yerr=np.abs(along), color=colour, linewidth=1.0, zorder=2)
    ax.scatter(floats(own["attempts_per_ok"]), floats(own["makespan_s"]) / scale, s=8, color=colour, alpha=0.6)
    if (share := line["failed_share"]) > 0:
        area = RING_LEAST + RING_MOST * share
        ax.scatter(x, y, s=area, facecolors="none", edgecolors=FAILED, linewidths=1.6, zorder=3)
    ax.scatter(x, y, s=RING_LEAST, color=colour, marker=mark, edgecolors=ink(), linewidths=0.4, zorder=4)


def _scales(ax: Axes, table: Frame, scale: float) -> None:
    """A logarithmic axis where figures differ by a factor, one from 0 elsewhere."""
    across, along = _known(table["attempts_per_ok"]), _known(table["makespan_s"]) / scale
    if (ratio := _ratio(across)) >= _WIDE:
        log_axis(ax, "x", ratio)
    elif len(across):
        ax.set_xlim(0.0, 1.15 * across.max())
    if (ratio := _ratio(along)) >= _WIDE:
        log_axis(ax, "y", ratio)
    elif len(along):
        ax.set_ylim(0.0, 1.15 * along.max())
    ax.margins(0.12)


def _known(column: Any) -> Any:
    values = floats(column)
    return values[np.isfinite(values) & (values > 0)]


def _ratio(values: Any) -> float:
    return float(values.max() / values.min()) if len(values) else 1.0
