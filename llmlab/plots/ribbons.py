"""How the limits stood: ribbons of what bound the job and of the breaker, and how much might go at once."""

from collections.abc import Mapping
from typing import Any

import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.patches import Patch

from llmlab.frame import Frame
from llmlab.plots.canvas import (
    DASHES,
    FAILED,
    OK,
    OTHER,
    PALE,
    SERIES,
    WARN,
    axes_for,
    inert,
    ink,
    legend_beside,
    named_ticks,
    note,
    percent,
    plain,
    time_axis,
)
from llmlab.stats.limits import levels, shares, spans

CAUSES = {
    "provider": PALE,
    "concurrency": OK,
    "rate limit": WARN,
    "budget": "#CC79A7",
    "source": "#009E73",
    "journal": "#B8A800",
    "event loop": FAILED,
    "paused": "#B0B0B0",
}
"""Colours of what may bind a job."""
STATES = {"closed": PALE, "half_open": WARN, "open": FAILED}
"""Colours of a breaker's states."""
_UNKNOWN = "#D9D9D9"
_THIN = 0.6


def bound_by(frame: Frame, *, ax: Axes | None = None, since: pd.Timestamp | None = None) -> Axes:
    """Draw what bound the job over time, with each cause's share of the time in the legend.

    Args:
        frame: `job.limits`.
        ax: Where to draw. None: in a figure of its own.
        since: The moment that is 0 on the x-axis. None: the first sample's.

    Returns:
        The axes.

    Raises:
        TypeError, ValueError: `frame` is no frame, or lacks a column; names it.
    """
    every = _of_first(spans(frame, "bound_by", since=since))
    ax = axes_for(ax, size=(7.2, 1.6))
    lanes = {"bound by": (every, CAUSES)} if len(every) else {}
    share = {str(cause): percent(part) for cause, part in shares(frame)[["bound_by", "share"]].itertuples(index=False)}
    _ribbons(ax, lanes, {cause: f"{plain(cause)}: {part}" for cause, part in share.items()})
    return ax


def _of_first(every: Frame) -> Frame:
    """The first target's: what bound the job stands with each target, and is the same."""
    return every[every["target"] == every["target"].iloc[0]] if len(every) else every


def breaker(frame: Frame, *, ax: Axes | None = None, since: pd.Timestamp | None = None) -> Axes:
    """Draw the state of each target's breaker over time, and when the provider had asked to wait.

    Args:
        frame: `job.limits`.
        ax: Where to draw. None: in a figure of its own.
        since: The moment that is 0 on the x-axis. None: the first sample's.

    Returns:
        The axes; one ribbon per target with a breaker, one per target that asked to wait.

    Raises:
        TypeError, ValueError: `frame` is no frame, or lacks a column; names it.
    """
    states, pauses = spans(frame, "breaker", since=since), spans(frame, "paused", since=since)
    targets = [*dict.fromkeys([*states["target"], *pauses["target"]])]
    lanes: dict[str, tuple[Frame, Mapping[str, str]]] = {}
    for target in targets:
        head = "" if len(targets) == 1 else f"{plain(target)}: "
        for rows, name, colours in ((states, "breaker", STATES), (pauses, "asked to wait", {"paused": OTHER})):
            own = rows[rows["target"] == target]
            if len(own):
                lanes[f"{head}{name}"] = own, colours
    ax = axes_for(ax, size=(7.2, 1.2 + 0.4 * max(len(lanes), 1)))
    _ribbons(ax, lanes, {"half_open": "half-open: probing", "open": "open: left alone", "paused": "asked to wait"})
    return ax


def _ribbons(ax: Axes, lanes: Mapping[str, tuple[Frame, Mapping[str, str]]], names: Mapping[str, str]) -> None:
    """Draw one lane per name, and a legend of the values in the order of their colours."""
    ends = [float(rows["end_s"].max()) for rows, _ in lanes.values()]
    scale = time_axis(ax, max(ends, default=0.0))
    seen: dict[str, str] = {}
    for n, (rows, colours) in enumerate(lanes.values()):
        for value, own in rows.groupby("value", sort=False):
            colour = colours.get(str(value), _UNKNOWN)
            bars = [
                (begin / scale, (end - begin) / scale) for begin, end in zip(own["begin_s"], own["end_s"], strict=True)
            ]
            # An edge, as what lasts for milliseconds would else be thinner than a pixel.
            ax.broken_barh(bars, (n - _THIN / 2, _THIN), facecolors=colour, edgecolors=colour, linewidth=0.5)
            seen[str(value)] = colour
    order = [*STATES, *CAUSES]
    values = sorted(seen, key=lambda value: order.index(value) if value in order else len(order))
    named_ticks(ax, list(lanes))
    handles: list[Artist] = [Patch(color=seen[value]) for value in values]
    legend_beside(ax, handles, [names.get(value, plain(value)) for value in values])
    if not lanes:
        ax.set_yticks([])
        note(ax, "no samples")


def limiter(frame: Frame, *, ax: Axes | None = None, since: pd.Timestamp | None = None) -> Axes:
    """Draw how much of each rate limit might have gone at once, and shade when the rate limit bound the job.

    At 0 the line stands; below, more was used than had been reckoned with, and is waited off.

    Args:
        frame: `job.limits`.
        ax: Where to draw. None: in a figure of its own.
        since: The moment that is 0 on the x-axis. None: the first sample's.

    Returns:
        The axes; a line per target and limited dimension, in % of a minute's limit (of dollars: a day's).

    Raises:
        TypeError, ValueError: `frame` is no frame, or lacks a column; names it.
    """
    every = levels(frame, since=since)
    held = spans(frame, "bound_by", since=since)
    ax = axes_for(ax)
    scale = time_axis(ax, float(held["end_s"].max()) if len(held) else 0.0)
    handles: list[Artist] = []
    names: list[str] = []
    many = len(every["target"].unique()) > 1
    lines = [*every.groupby(["target", "dimension"], sort=False)]
    for n, ((target, dimension), rows) in enumerate(lines):
        look: dict[str, Any] = {"color": SERIES[n % len(SERIES)], "linestyle": DASHES[n % len(DASHES)]}
        handles += ax.step(rows["at_s"] / scale, 100 * rows["share"], where="post", linewidth=1.3, **look)
        per = "day" if dimension == "usd" else "min"
        owner = f"{plain(target)}: " if many else ""
        names.append(f"{owner}{dimension.replace('_', ' ')}, {rows['limit'].iloc[-1]:,.0f}/{per}")
    bound = _of_first(held[held["value"] == "rate limit"])
    for begin, end in zip(bound["begin_s"] / scale, bound["end_s"] / scale, strict=True):
        ax.axvspan(begin, end, color=WARN, alpha=0.25, linewidth=0)
    if len(bound):
        handles.append(Patch(color=WARN, alpha=0.25))
        names.append("rate limit bound the job")
    ax.axhline(0.0, color=ink(), linewidth=0.8)
    inert(ax.set_ylabel("allowance left (% of a minute's limit)"))
    legend_beside(ax, handles, names)
    if not lines:
        note(ax, "no rate limit is known" if len(frame) else "no samples")
    return ax
