"""What a twin predicts, with its doubt, and how well it predicts what is known."""

from typing import Any, Literal, get_args

import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from llmlab.frame import Frame
from llmlab.plots.canvas import (
    DASHES,
    HATCHED,
    OTHER,
    PALE,
    SERIES,
    axes_for,
    from_zero,
    inert,
    ink,
    legend_beside,
    log_axis,
    note,
    numbers,
    percent,
    plain,
    time_unit,
    title,
)
from llmlab.stats.checks import CALIBRATION, PREDICTION, floats, needs

Figure = Literal["makespan", "p50", "p95", "p99", "cost"]
_UNITS: dict[str, tuple[str, str]] = {
    "makespan": ("s", "time until the job is done"),
    "p50": ("ms", "latency, median of the rows"),
    "p95": ("ms", "latency, p95 of the rows"),
    "p99": ("ms", "latency, p99 of the rows"),
    "cost": ("usd", "cost"),
}
NAMED = (0.5, 0.9, 0.99)
"""Quantiles that are named in a calibration."""
_NEAR = 0.1


def twin(frame: Frame, *, ax: Axes | None = None, of: Figure = "makespan") -> Axes:
    """Draw what a twin predicts against concurrency, as a fan: the median run, and the band of 80% of the runs.

    Args:
        frame: A result of `twin.predict`.
        ax: Where to draw. None: in a figure of its own.
        of: "makespan", "p50", "p95", "p99" (of the rows' latency) or "cost".

    Returns:
        The axes; a line per strategy, with the rows it is expected to lose in the legend. Hollow marks and hatching:
        outside what the pilot has measured. A strategy that sets no number stands where its mean in flight is.

    Raises:
        TypeError, ValueError: `frame` is no frame or lacks a column; `of` is none of these.
    """
    if of not in get_args(Figure):
        raise ValueError(f"of is one of {', '.join(get_args(Figure))}, not {of!r}")
    unit, label = _UNITS[of]
    columns = [f"{of}{end}_{unit}" for end in ("_low", "", "_high")]
    needs(frame, "twin", PREDICTION, ["strategy", "concurrency", "rows", "failed", "in_flight", "outside", *columns])
    ax = axes_for(ax)
    scale, shown = _scale(unit, frame[columns[2]])
    place = frame["concurrency"].astype("float64").fillna(frame["in_flight"])
    fans = pd.DataFrame({"x": floats(place), "strategy": frame["strategy"].astype(object), "outside": frame["outside"]})
    fans[["low", "middle", "high"]] = frame[columns].astype("float64") / scale
    fans["failed"] = frame["failed"] / frame["rows"]
    fans = fans[fans["middle"].notna()].sort_values("x", kind="stable")
    handles: list[Artist] = []
    names: list[str] = []
    for n, (name, fan) in enumerate(fans.groupby("strategy", sort=False)):
        handles.append(_fan(ax, fan, SERIES[n % len(SERIES)], DASHES[n % len(DASHES)]))
        names.append(f"{plain(name, 28)}: {_lost(fan['failed'])} of rows failed")
    if len(fans):
        handles.append(Patch(color=OTHER, alpha=0.3))
        names.append("80% of the runs")
    handles, names = _beyond(ax, fans, handles, names)
    inert(ax.set_xlabel("concurrency (requests in flight at most)"))
    inert(ax.set_ylabel(f"{label} ({shown})"))
    _dress(ax, fans, frame)
    legend_beside(ax, handles, names)
    if fans.empty:
        note(ax, "no prediction" if frame.empty else "no price is known" if of == "cost" else "no answers")
    return ax


def _scale(unit: str, most: "pd.Series[Any]") -> tuple[float, str]:
    """In the frame's unit per drawn one, and its name."""
    if unit == "usd":
        return 1.0, "USD"
    greatest = float(most.max()) if most.notna().any() else 0.0
    return time_unit(greatest) if unit == "s" else (1000.0, "s") if greatest >= 10_000 else (1.0, "ms")  # noqa: PLR2004


def _fan(ax: Axes, fan: Frame, colour: str, style: Any) -> Artist:
    ax.fill_between(fan["x"], fan["low"], fan["high"], color=colour, alpha=0.25, linewidth=0)
    spread = np.abs([fan["middle"] - fan["low"], fan["high"] - fan["middle"]])
    ax.errorbar(fan["x"], fan["middle"], yerr=spread, fmt="none", ecolor=colour, elinewidth=1.0, capsize=2.0)
    ax.plot(fan["x"], fan["middle"], color=colour, linestyle=style, linewidth=1.6)
    faces = ["none" if outside else colour for outside in fan["outside"]]
    ax.scatter(fan["x"], fan["middle"], s=30.0, facecolors=faces, edgecolors=colour, zorder=3.0)
    return Line2D([], [], color=colour, linestyle=style, marker="o")


def _lost(shares: "pd.Series[float]") -> str:
    """The least and the most of a strategy's shares of failed rows."""
    least, most = percent(float(shares.min())), percent(float(shares.max()))
    return least if least == most else f"{least} to {most}"


def _beyond(ax: Axes, fans: Frame, handles: list[Artist], names: list[str]) -> tuple[list[Artist], list[str]]:
    """Hatch from half-way between the last place inside and the first outside."""
    outside, inside = fans.loc[fans["outside"], "x"], fans.loc[~fans["outside"], "x"]
    if outside.empty:
        return handles, names
    above = outside if inside.empty else outside[outside > inside.max()]
    below = outside[outside < inside.min()]
    far = 1.3
    if len(above):
        begin = above.min() / far if inside.empty else np.sqrt(above.min() * inside.max())
        ax.axvspan(begin, above.max() * far, **HATCHED)
    if len(below):
        ax.axvspan(below.min() / far, np.sqrt(below.max() * inside.min()), **HATCHED)
    return [*handles, Patch(**HATCHED)], [*names, "outside what the pilot measured"]


def _dress(ax: Axes, fans: Frame, frame: Frame) -> None:
    ax.grid(alpha=0.25)
    if len(fans):
        from_zero(ax)
        if fans["x"].max() > fans["x"].min() > 0:
            log_axis(ax, "x", float(fans["x"].max() / fans["x"].min()))
        numbers(ax.yaxis)
        title(ax, f"{frame['rows'].max():,} rows like the pilot's")


def calibration(frame: Frame, *, ax: Axes | None = None) -> Axes:
    """Draw the quantiles of latency that a twin predicts against those measured, on attempts it was not fitted to.

    Args:
        frame: A result of `twin.calibration`.
        ax: Where to draw. None: in a figure of its own.

    Returns:
        The axes, both of one logarithmic scale; on the diagonal a quantile came as predicted, the band is 10% around
        it. The legend says which share of the attempts fell within their 80% interval: about 80% is honest.

    Raises:
        TypeError, ValueError: `frame` is no frame, or lacks a column; names it.
    """
    columns = ["run", "in_flight", "attempts", "coverage", "quantile", "predicted_ms", "actual_ms"]
    needs(frame, "calibration", CALIBRATION, columns)
    ax = axes_for(ax, size=(7.2, 4.4))
    runs = frame["run"].astype("Int64").fillna(-1)
    handles: list[Artist] = []
    names: list[str] = []
    for n, run in enumerate(sorted(runs.unique())):
        own = frame[(runs == run).to_numpy(dtype=bool)]
        colour, mark = SERIES[n % len(SERIES)], "osD^vP*X"[n % 8]
        look: dict[str, Any] = {"color": colour, "marker": mark, "linestyle": DASHES[n % len(DASHES)], "linewidth": 0.8}
        handles += ax.plot(own["predicted_ms"], own["actual_ms"], **look)
        head = own.iloc[0]
        name = "all runs" if run < 0 else f"run {run}, {head['in_flight']:.3g} in flight"
        names.append(f"{name}: {percent(head['coverage'])} of {int(head['attempts']):,}")
        if run < 0 or len(runs.unique()) == 1:
            _name_quantiles(ax, own)
    inert(ax.set_xlabel("latency as predicted (ms)"))
    inert(ax.set_ylabel("latency as measured (ms)"))
    if frame.empty:
        note(ax, "no attempts held out")
        return ax
    title(ax, "quantiles of attempts held out; in the legend: within their 80% interval")
    handles.append(_diagonal(ax, frame))
    legend_beside(ax, handles, [*names, "as predicted, 10% around"])
    return ax


def _name_quantiles(ax: Axes, own: Frame) -> None:
    for line in own[own["quantile"].isin(NAMED)].itertuples(index=False):
        place: Any = (line.predicted_ms, line.actual_ms)
        ax.annotate(f"p{100 * float(line.quantile):g}", place, (6, -10), textcoords="offset points", fontsize="small")  # type: ignore[arg-type]


def _diagonal(ax: Axes, frame: Frame) -> Artist:
    values = np.concatenate([floats(frame["predicted_ms"]), floats(frame["actual_ms"])])
    low, high = float(values.min()) / 1.15, float(values.max()) * 1.15
    ends = np.array([low, high])
    ax.fill_between(ends, ends / (1 + _NEAR), ends * (1 + _NEAR), color=PALE, alpha=0.25, linewidth=0, zorder=0.5)
    log_axis(ax, "x", high / low)
    log_axis(ax, "y", high / low)
    ax.set_xlim(low, high)
    ax.set_ylim(low, high)
    ax.grid(alpha=0.25)
    return ax.plot(ends, ends, color=ink(), linewidth=1.0, zorder=1.0)[0]
