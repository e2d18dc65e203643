"""A job over time: what came out, what was sent, what was in flight, what it cost."""

from typing import Any, Literal

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
    blank,
    dollars,
    from_zero,
    group_name,
    inert,
    ink,
    legend,
    legend_above,
    note,
    plain,
    time_axis,
)
from llmlab.stats.checks import ATTEMPTS, LIMITS, RESULT, floats, needs, origin, seconds
from llmlab.stats.course import costs, mean_in_flight
from llmlab.stats.course import in_flight as steps_of
from llmlab.stats.course import requests as requests_of
from llmlab.stats.course import throughput as throughput_of
from llmlab.stats.limits import spans

MOST = 7
"""Groups that are drawn, the largest."""


def throughput(
    frame: Frame,
    *,
    ax: Axes | None = None,
    unit: Literal["rows", "tokens"] = "rows",
    window: float | None = None,
    since: pd.Timestamp | None = None,
) -> Axes:
    """Draw what came out per second: rows answered, on top of them rows that failed; or output tokens.

    Args:
        frame: A result of `run_many`.
        ax: Where to draw. None: in a figure of its own.
        unit: "rows", or "tokens" of the answers.
        window: Seconds over which is counted. None: a round length that makes at most 60 windows.
        since: The moment that is 0 on the x-axis. None: the first row's start.

    Returns:
        The axes.

    Raises:
        TypeError, ValueError: `frame` is no frame or lacks a column; `window` or `unit` is not usable.
    """
    if unit not in ("rows", "tokens"):
        raise ValueError(f"unit is 'rows' or 'tokens', not {unit!r}")
    windows = throughput_of(frame, window=window, since=since)
    ax = axes_for(ax)
    if unit == "tokens":
        _stack(ax, windows, {"tokens_per_s": ("output tokens", OK)})
    else:
        _stack(ax, windows, {"ok_per_s": ("answered", OK), "failed_per_s": ("failed", FAILED)})
    inert(ax.set_ylabel(f"{unit} per second (1/s)"))
    if windows.empty:
        note(ax, "no rows")
    return ax


def requests(
    frame: Frame,
    *,
    ax: Axes | None = None,
    limits: Frame | None = None,
    window: float | None = None,
    since: pd.Timestamp | None = None,
) -> Axes:
    """Draw the requests sent per second by how they ended: a herd that falls on a provider just back stands out.

    Args:
        frame: `job.attempts`.
        ax: Where to draw. None: in a figure of its own.
        limits: `job.limits`, to shade when a breaker was open: the provider was down, as far as could be told.
        window: Seconds over which is counted. None: a round length that makes at most 60 windows.
        since: The moment that is 0 on the x-axis. None: when the first request was sent.

    Returns:
        The axes.

    Raises:
        TypeError, ValueError: `frame` or `limits` is no frame or lacks a column; `window` is not above 0.
    """
    windows = requests_of(frame, window=window, since=since)
    zero = origin(since, frame["sent_at"])
    down = None if limits is None else spans(limits, "breaker", since=zero).query("value == 'open'")
    ax = axes_for(ax)
    looks = {
        "ok_per_s": ("answered", OK),
        "throttled_per_s": ("refused (429)", WARN),
        "failed_per_s": ("failed", FAILED),
    }
    _stack(ax, windows, looks, down)
    inert(ax.set_ylabel("requests sent per second (1/s)"))
    if windows.empty:
        note(ax, "no requests")
    return ax


def _stack(ax: Axes, windows: Frame, looks: dict[str, tuple[str, str]], down: Frame | None = None) -> None:
    """Stack what was counted per window, and name each with its total; shade when a breaker was open."""
    ends = windows["at_s"] + windows["width_s"]
    scale = time_axis(ax, float(ends.max()) if len(windows) else 0.0)
    base = pd.Series(0.0, index=windows.index)
    handles: list[Artist] = []
    names: list[str] = []
    for column, (name, colour) in looks.items():
        count = int(windows[column.removesuffix("_per_s")].sum())
        if len(windows) and (count or not handles):
            top = base + windows[column].fillna(0.0)
            edges = [*windows["at_s"] / scale, float(ends.iloc[-1]) / scale]
            handles.append(ax.stairs(top, edges, baseline=base, fill=True, color=colour, alpha=0.85))
            names.append(f"{name}: {count:,}")
            base = top
    if down is not None and len(down):
        for begin, end in zip(down["begin_s"] / scale, down["end_s"] / scale, strict=True):
            ax.axvspan(begin, end, color=OTHER, alpha=0.25, linewidth=0, zorder=0.5)
        handles.append(Patch(color=OTHER, alpha=0.25))
        names.append("breaker open")
    from_zero(ax)
    ax.grid(axis="y", alpha=0.25)
    legend_above(ax, handles, names, ncols=4)


def in_flight(
    frame: Frame, *, ax: Axes | None = None, limits: Frame | None = None, since: pd.Timestamp | None = None
) -> Axes:
    """Draw how many requests were in flight, as measured, against the limit that was in force.

    Args:
        frame: `job.attempts`, for what was in flight at every moment; or `job.limits`, as it was sampled.
        ax: Where to draw. None: in a figure of its own.
        limits: `job.limits`, to draw the limit beside attempts; each target's is a line of its own.
        since: The moment that is 0 on the x-axis. None: the frame's first.

    Returns:
        The axes.

    Raises:
        TypeError, ValueError: `frame` or `limits` is no frame, or lacks a column; names it.
    """
    if isinstance(frame, pd.DataFrame) and "bound_by" in frame:
        limits = frame
        zero = origin(since, needs(frame, "in_flight", LIMITS, ["at"])["at"])
        steps = _sampled(frame, zero)
    else:
        steps = steps_of(frame, since=since)
        zero = origin(since, frame["sent_at"])
    ax = axes_for(ax)
    scale = time_axis(ax, float(steps["at_s"].max()) if len(steps) else 0.0)
    handles: list[Artist] = []
    names: list[str] = []
    if len(steps):
        handles.append(ax.fill_between(steps["at_s"] / scale, steps["in_flight"], step="post", color=PALE, alpha=0.8))
        names.append(f"in flight, mean {mean_in_flight(steps):.3g}" if len(steps) > 1 else "in flight")
    if limits is not None:
        _draw_limits(ax, limits, zero, scale, handles, names)
    inert(ax.set_ylabel("requests in flight (count)"))
    from_zero(ax)
    ax.grid(axis="y", alpha=0.25)
    legend_above(ax, handles, names, ncols=3)
    if not handles:
        note(ax, "no requests")
    return ax


def _sampled(limits: Frame, zero: pd.Timestamp) -> Frame:
    """All targets' samples of one moment together."""
    needs(limits, "in_flight", LIMITS, ["at", "target", "limit", "in_flight"])
    seen = limits[["at", "target", "in_flight"]].drop_duplicates(["at", "target"], keep="last")
    sums = pd.Series(floats(seen["in_flight"]), index=seconds(seen["at"], zero)).groupby(level=0).sum()
    return pd.DataFrame({"at_s": sums.index.to_numpy("float64"), "in_flight": sums.to_numpy()})


def _draw_limits(
    ax: Axes, limits: Frame, zero: pd.Timestamp, scale: float, handles: list[Artist], names: list[str]
) -> None:
    needs(limits, "in_flight", LIMITS, ["at", "target", "limit"])
    limited = limits[limits["limit"].notna()]
    targets = list(limited["target"].astype(object).unique())
    for n, target in enumerate(targets[:MOST]):
        rows = limited[(limited["target"] == target).to_numpy(dtype=bool)]
        style = DASHES[n % len(DASHES)]
        at = seconds(rows["at"], zero) / scale
        handles += ax.step(at, floats(rows["limit"]), where="post", color=ink(), linestyle=style, linewidth=1.4)
        names.append("limit" if len(targets) == 1 else f"limit of {plain(target)}")


def cost(
    frame: Frame,
    *,
    ax: Axes | None = None,
    by: str | None = None,
    unit: Literal["auto", "usd", "tokens"] = "auto",
    since: pd.Timestamp | None = None,
) -> Axes:
    """Draw what had been spent by each moment, and how much of it brought no answer.

    Args:
        frame: `job.attempts`, where every failed request counts as wasted; or a result of `run_many`, where rows
            without an answer do.
        ax: Where to draw. None: in a figure of its own.
        by: A column whose groups are told apart, as "model" or "target"; the 7 largest are drawn.
        unit: "usd", "tokens", or "auto": dollars where a price is known, else tokens.
        since: The moment that is 0 on the x-axis. None: the frame's first.

    Returns:
        The axes.

    Raises:
        TypeError, ValueError: `frame` is no frame or lacks a column; `unit` is not usable.
    """
    if unit not in ("auto", "usd", "tokens"):
        raise ValueError(f"unit is 'auto', 'usd' or 'tokens', not {unit!r}")
    needs(frame, "cost", f"{RESULT} or {ATTEMPTS}", ["cost_usd", *filter(None, [by])])
    if unit == "auto":
        unit = "usd" if frame["cost_usd"].notna().any() else "tokens"
    sums = costs(frame, by=by, since=since)
    ax = axes_for(ax)
    spent, wasted = ("cost_usd", "wasted_usd") if unit == "usd" else ("tokens", "wasted_tokens")
    scale = time_axis(ax, float(sums["at_s"].max()) if len(sums) else 0.0)
    handles: list[Artist] = []
    names: list[str] = []
    groups = [("", sums)] if by is None else [(str(name), rows) for name, rows in sums.groupby(by, sort=False)]
    for n, (name, rows) in enumerate(groups[:MOST]):
        at = [0.0, *rows["at_s"] / scale]
        look: dict[str, Any] = {"color": SERIES[n], "linestyle": DASHES[n % len(DASHES)]}
        handles += ax.step(at, [0.0, *rows[spent]], where="post", linewidth=1.8, **look)
        names.append(_said("in all" if by is None else group_name(by, name), rows, spent, unit))
        if by is None and len(rows) and rows[wasted].iloc[-1] > 0:
            handles.append(ax.fill_between(at, [0.0, *rows[wasted]], step="post", color=FAILED, alpha=0.7))
            names.append(_said("brought no answer", rows, wasted, unit))
    inert(ax.set_ylabel("cost so far (USD)" if unit == "usd" else "used so far (tokens)"))
    from_zero(ax)
    ax.grid(axis="y", alpha=0.25)
    if len(groups) > MOST:
        handles.append(blank())
        names.append(f"and {len(groups) - MOST} smaller groups, not drawn")
    if unit == "usd" and (blind := _unpriced(frame)):
        handles.append(blank())
        names.append(f"{blind:,} of {len(frame):,} have tokens but no known price: they add nothing")
    legend(ax, handles, names, loc="upper left")
    if sums.empty:
        note(ax, "no rows")
    return ax


def _said(name: str, rows: Frame, column: str, unit: str) -> str:
    last = float(rows[column].iloc[-1]) if len(rows) else 0.0
    amount = dollars(last) if unit == "usd" else f"{last:,.0f} tokens"
    return f"{name}: {amount}"


def _unpriced(frame: Frame) -> int:
    return int((frame["cost_usd"].isna() & frame["output_tokens"].notna()).sum())
