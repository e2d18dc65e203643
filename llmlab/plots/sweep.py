"""A sweep over concurrency: throughput, latency, and what more concurrency still buys."""

from typing import Any

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from llmlab.fits import Knee
from llmlab.frame import Frame
from llmlab.plots.canvas import (
    FAILED,
    HATCHED,
    OK,
    OTHER,
    PALE,
    RING_LEAST,
    RING_MOST,
    SERIES,
    WARN,
    axes_for,
    from_zero,
    inert,
    ink,
    latency_unit,
    legend_beside,
    log_axis,
    note,
    numbers,
    panels,
    percent,
    title,
)
from llmlab.segmented import SAME
from llmlab.stats.checks import SWEEP, floats, needs
from llmlab.stats.sweeps import BEYOND, fit_of, line_of

ERROR = 0.05
"""From this error of Little's law on, a window was not steady: |N - X W| / N."""
_LEAST = -0.3
_UNITS = {"rows_per_s": "rows per second (1/s)", "tokens_per_s": "output tokens per second (1/s)",
          "goodput_per_s": "rows within the SLO per second (1/s)"}  # fmt: skip


def sweep(
    frame: Frame,
    *,
    ax: Axes | None = None,
    throughput: str = "rows_per_s",
    elasticity: float = 0.2,
    slo: float | None = None,
) -> Axes:
    """Draw a sweep in three panels: throughput with the curve through it, latency, and elasticity with the knee.

    On the x-axis is what was measured in flight, not the limit that was set.

    Args:
        frame: A result of `lab.sweep`.
        ax: Where to draw; its place is divided into three. None: in a figure of its own.
        throughput: What is fitted: "rows_per_s", "tokens_per_s" or "goodput_per_s".
        elasticity: The knee is where 1% more concurrency buys this many % more throughput; see `llmlab.fits.knee`.
        slo: Seconds that an answer may take, for a line in the latency panel. None: no line.

    Returns:
        The axes of the throughput, on top. Beyond the greatest measured concurrency the curve is hatched. Hollow
        points were not steady (Little's law off by 5% or more, or few rows); a red ring's area is the share of rows
        that failed.

    Raises:
        TypeError, ValueError: `frame` is no frame or lacks a column; `elasticity` is not between 0 and 1.
    """
    columns = ["in_flight", throughput, "p50_ms", "p95_ms", "p99_ms", "ok", "failed"]
    needs(frame, "sweep", SWEEP, columns)
    if not 0 < elasticity < 1:
        raise ValueError(f"elasticity must be between 0 and 1, not {elasticity!r}")
    ax = axes_for(ax, size=(7.2, 6.4))
    top, middle, bottom = panels(ax, (1.6, 1.0, 0.8))
    found = fit_of(frame, throughput=throughput)
    line = line_of(found)
    _throughput(top, frame, throughput, line)
    _latency(middle, frame, slo)
    _elasticity(bottom, line, elasticity)
    _mark_knee((top, middle, bottom), None if found is None else found.knee(elasticity))
    _mark_beyond((top, bottom), line)
    inert(bottom.set_xlabel("requests in flight, measured mean (count)"))
    _x_axis(bottom, floats(frame["in_flight"]))
    if frame.empty:
        note(top, "no measurements")
    return ax


def _throughput(ax: Axes, frame: Frame, column: str, line: Frame) -> None:
    n, x = floats(frame["in_flight"]), floats(frame[column])
    handles: list[Artist] = []
    names: list[str] = []
    if len(line):
        handles += ax.plot(line["in_flight"], line["value"], color=OK, linewidth=1.8)
        names.append("fitted curve")
        handles.append(ax.fill_between(line["in_flight"], line["low"], line["high"], color=PALE, alpha=0.4))
        names.append("80% of refits")
    steady = _steady(frame)
    look: dict[str, Any] = {"s": 28.0, "edgecolors": OK, "zorder": 3.0}
    for chosen, face, name in ((steady, OK, "measured"), (~steady, "none", "measured, not steady")):
        if chosen.any():
            handles.append(ax.scatter(n[chosen], x[chosen], facecolors=face, **look))
            names.append(name)
    if column != "goodput_per_s" and "goodput_per_s" in frame and frame["goodput_per_s"].notna().any():
        handles.append(ax.scatter(n, floats(frame["goodput_per_s"]), marker="d", s=24.0, color=SERIES[2], zorder=3.0))
        names.append("within the SLO (rows)")
    _rings(ax, frame, n, x, handles, names)
    inert(ax.set_ylabel(_UNITS.get(column, f"{column} (1/s)")))
    ax.grid(alpha=0.25)
    from_zero(ax)
    numbers(ax.yaxis)
    legend_beside(ax, handles, names)


def _steady(frame: Frame) -> Any:
    """Which windows can be relied on; where nobody has judged that, all are."""
    if "steady" in frame:
        return frame["steady"].to_numpy(dtype=bool)
    if "little_error" not in frame:
        return np.ones(len(frame), dtype=bool)
    return ~(np.abs(floats(frame["little_error"])) >= ERROR)


def _rings(ax: Axes, frame: Frame, n: Any, x: Any, handles: list[Artist], names: list[str]) -> None:
    """Failed rows around their points, and their share of all in the legend."""
    lost, rows = floats(frame["failed"]), floats(frame["ok"]) + floats(frame["failed"])
    some = lost > 0
    if some.any():
        area = RING_LEAST + RING_MOST * lost[some] / rows[some]
        ax.scatter(n[some], x[some], s=area, facecolors="none", edgecolors=FAILED, linewidths=1.4, zorder=4.0)
        handles.append(Line2D([], [], marker="o", markersize=11, markerfacecolor="none", color=FAILED, linestyle=""))
        names.append(f"rows failed: {percent(lost.sum() / rows.sum())} of all")


def _latency(ax: Axes, frame: Frame, slo: float | None) -> None:
    middle = frame.groupby(frame["in_flight"].round(3))[["p50_ms", "p95_ms", "p99_ms"]].mean()
    scale, unit = latency_unit(float(middle["p99_ms"].max()) if len(middle) else 0.0)
    handles: list[Artist] = []
    for column, style, colour in (("p50_ms", "-", OK), ("p95_ms", "--", SERIES[1]), ("p99_ms", ":", SERIES[3])):
        handles += ax.plot(middle.index, middle[column] / scale, color=colour, linestyle=style, marker=".")
    names = ["p50", "p95", "p99"]
    if slo is not None:
        handles.append(ax.axhline(1000 * slo / scale, color=FAILED, linewidth=1.0))
        names.append(f"SLO {slo:g} s")
    inert(ax.set_ylabel(f"latency ({unit})"))
    numbers(ax.yaxis)
    ax.grid(alpha=0.25)
    from_zero(ax)
    legend_beside(ax, handles, names)


def _elasticity(ax: Axes, line: Frame, wanted: float) -> None:
    handles: list[Artist] = []
    if len(line):
        handles += ax.plot(line["in_flight"], line["elasticity"], color=OK, linewidth=1.8)
    handles.append(ax.axhline(wanted, color=WARN, linestyle="--", linewidth=1.2))
    # Throughput that falls has an elasticity below 0; how far below is of no interest.
    ax.set_ylim(max(_LEAST, line["elasticity"].min() - 0.02) if len(line) else 0.0, 1.05)
    inert(ax.set_ylabel("elasticity (%/%)"))
    ax.grid(alpha=0.25)
    legend_beside(ax, handles, [*(["1% more buys so many %"] * (len(handles) - 1)), f"wanted: {wanted:g}"])


def _mark_knee(axes: tuple[Axes, ...], found: Knee | None) -> None:
    if found is None:
        return
    if found.n is None:
        title(axes[0], f"no knee: {found.reason}")
        return
    for ax in axes:
        ax.axvline(found.n, color=ink(), linewidth=1.2)
        ax.axvspan(found.low or found.n, found.high or found.n, color=OTHER, alpha=0.2, linewidth=0)
    span = f"{found.low:.3g} to {found.high:.3g} in {found.level:.0%} of refits"
    second = "" if found.verdict == "none" else f"; second opinion: {found.verdict}"
    title(axes[0], f"knee at {found.n:.3g} in flight ({span}){second}")


def _mark_beyond(axes: tuple[Axes, ...], line: Frame) -> None:
    """Hatch what lies beyond the measured range."""
    if not len(line):
        return
    last = float(line.loc[line["measured"], "in_flight"].max())
    for ax in axes:
        ax.axvspan(last, BEYOND * last, **HATCHED)


def _x_axis(ax: Axes, n: Any) -> None:
    known = n[np.isfinite(n) & (n > 0)]
    if not len(known):
        return
    if known.max() > SAME * known.min():
        log_axis(ax, "x", float(known.max() / known.min()))
    else:  # one level: how much its means differ is of no interest
        ax.set_xlim(0.0, 2 * known.max())
