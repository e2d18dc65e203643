"""What all plots share: where they draw, in which colours, and how text from outside stays text.

Nothing here touches pyplot. A plot that is given no axes makes a figure of its own, which pyplot does not know; its
axes are a `Picture`, which a notebook shows as the value of a cell, once. (A figure of pyplot's would be shown at the
end of every cell that draws, and be kept until closed.)
"""

import io
import textwrap
from collections.abc import Sequence
from typing import Any, Literal

import matplotlib as mpl
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Text
from matplotlib.ticker import LogLocator, NullFormatter

from llmlab.stats.checks import MISSING

SIZE = (7.2, 3.6)
"""Inches of a plot's own figure: a notebook's width."""
LONGEST = 40
"""Characters of a name that are drawn."""
_LINE = 80

OK, FAILED, OTHER = "#0072B2", "#D55E00", "#8C8C8C"
"""Answered; failed; neither. Blue and vermilion are told apart by all."""
PALE = "#56B4E9"
"""What leads to an answer."""
WARN = "#E69F00"
"""Held back."""
SERIES = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#B8A800")
"""The palette of Okabe and Ito (2008), safe for the colour-blind, without black and with a darker yellow."""
RING_LEAST, RING_MOST = 45.0, 900.0
"""Area in square points of a ring around a mark, from which a share of failed rows begins, and what all would add."""
HATCHED: dict[str, Any] = {"facecolor": "none", "edgecolor": OTHER, "hatch": "///", "alpha": 0.5, "linewidth": 0.0}
"""How what lies outside the measured range is marked."""
DASHES = ("-", "--", "-.", ":")
"""Told apart also in print: the n-th series has the n-th of each."""

_RETINA = 2


class Picture(Axes):
    """Axes of a figure of their own: a notebook shows them as the picture of it."""

    def _repr_png_(self) -> tuple[bytes, dict[str, int]]:
        whole: Any = self.figure.figure  # of a subfigure, the figure that it is part of
        return _png(whole)


class Sheet(Figure):
    """A figure that a notebook shows as the value of a cell; pyplot knows nothing of it."""

    def _repr_png_(self) -> tuple[bytes, dict[str, int]]:
        return _png(self)


def _png(figure: Figure) -> tuple[bytes, dict[str, int]]:
    """A picture in twice the resolution, and the size at which it is to be shown."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=figure.dpi * _RETINA)
    width, height = figure.get_size_inches() * figure.dpi
    return buffer.getvalue(), {"width": round(width), "height": round(height)}


def axes_for(ax: Axes | None, *, size: tuple[float, float] = SIZE) -> Axes:
    """The axes to draw into: those given, or new ones in a figure of their own.

    Raises:
        TypeError: `ax` is something else, as the array that plt.subplots gives.
    """
    if ax is None:
        made: Axes = Figure(figsize=size, layout="constrained").add_subplot(axes_class=Picture)
        ax = made
    elif not isinstance(ax, Axes):
        raise TypeError(f"ax is one matplotlib Axes, or None for a figure of its own; not {type(ax).__name__}")
    ax.spines[["top", "right"]].set_visible(False)
    ax.set_axisbelow(True)
    return ax


def panels(ax: Axes, ratios: Sequence[float]) -> list[Axes]:
    """Divide the place of `ax` into panels one above the other, with one x-axis; `ax` becomes the first."""
    figure, spec = ax.figure, ax.get_subplotspec()
    if spec is not None:
        cells = spec.subgridspec(len(ratios), 1, height_ratios=ratios)
        ax.set_subplotspec(cells[0])
        others = [figure.add_subplot(cells[n], sharex=ax) for n in range(1, len(ratios))]
    else:
        boxes = _boxes(ax.get_position().bounds, ratios)
        ax.set_position(boxes[0])
        others = [figure.add_axes(box, sharex=ax) for box in boxes[1:]]
    every = [ax, *others]
    for panel in every:
        panel.spines[["top", "right"]].set_visible(False)
        panel.set_axisbelow(True)
    for panel in every[:-1]:
        panel.tick_params(labelbottom=False)
    return every


_GAP = 0.15


def _boxes(
    bounds: tuple[float, float, float, float], ratios: Sequence[float]
) -> list[tuple[float, float, float, float]]:
    left, bottom, width, height = bounds
    unit = height / (sum(ratios) + _GAP * (len(ratios) - 1))
    tops = [bottom + height - unit * (sum(ratios[:n]) + _GAP * n) for n in range(len(ratios))]
    return [(left, top - unit * ratio, width, unit * ratio) for top, ratio in zip(tops, ratios, strict=True)]


# -- text -------------------------------------------------------------------------------------------------


def plain(name: object, longest: int = LONGEST) -> str:
    """A name from outside on one line, without characters that cannot be drawn, and not too long."""
    text = " ".join(str(name).split())
    text = "".join(each if each.isprintable() else "\N{REPLACEMENT CHARACTER}" for each in text)
    return text if len(text) <= longest else text[: longest - 1] + "…"


def inert(*texts: Text) -> None:
    """Draw texts as they stand: neither mathtext nor TeX may read what a model or a user has written."""
    for text in texts:
        text.set(parse_math=False, usetex=False)


def group_name(by: str, name: str) -> str:
    """A group of rows, as `stats` names it; failed rows, say, name no model."""
    return plain(f"no {by}" if name == MISSING else name)


def legend(ax: Axes, handles: Sequence[Artist], names: Sequence[str], **options: Any) -> None:
    """A legend whose names are drawn as they stand, also those that begin with an underscore."""
    if not handles:
        return
    # The frame's ground is the axes' own, so that a name is readable where a curve runs under it.
    look = {"framealpha": 0.8, "edgecolor": "none", "fontsize": "small", **options}
    box = ax.legend(handles, ["-"] * len(handles), **look)
    for text, name in zip(box.get_texts(), names, strict=True):
        inert(text)
        text.set_text(name)


def legend_above(ax: Axes, handles: Sequence[Artist], names: Sequence[str], **options: Any) -> None:
    """A legend above the axes, where it covers nothing."""
    place = {"loc": "lower left", "bbox_to_anchor": (0.0, 1.0), "borderaxespad": 0.2, "columnspacing": 1.2}
    legend(ax, handles, names, frameon=False, **place, **options)


def blank() -> Line2D:
    """What stands before a name in a legend that has no mark in the axes."""
    return Line2D([], [], linestyle="")


def legend_beside(ax: Axes, handles: Sequence[Artist], names: Sequence[str], **options: Any) -> None:
    """A legend to the right of the axes, where it covers nothing."""
    place = {"loc": "upper left", "bbox_to_anchor": (1.0, 1.0), "borderaxespad": 0.0}
    legend(ax, handles, names, frameon=False, **place, **options)


def title(ax: Axes, text: str) -> None:
    """A title at the left, drawn as it stands, on as many lines as it needs."""
    inert(ax.set_title(textwrap.fill(text, _LINE), loc="left", fontsize="medium"))


def note(ax: Axes, text: str) -> None:
    """Say in the middle of empty axes why there is nothing to see; their numbers would mean nothing."""
    ax.set_xticks([])
    ax.set_yticks([])
    inert(ax.text(0.5, 0.5, text, transform=ax.transAxes, ha="center", va="center", color=OTHER))


def numbers(axis: Axis) -> None:
    """Write an axis' numbers as people do: 12,000, not 1.2e4."""
    axis.set_major_formatter("{x:,.10g}")
    axis.set_minor_formatter(NullFormatter())


def log_axis(ax: Axes, name: Literal["x", "y"], ratio: float) -> None:
    """Make an axis logarithmic; `ratio` of its greatest to its least value decides how many ticks there is room for."""
    axis = ax.xaxis if name == "x" else ax.yaxis
    (ax.set_xscale if name == "x" else ax.set_yscale)("log")
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if ratio < _DECADES else (1.0,)))
    numbers(axis)


_DECADES = 300.0


def from_zero(ax: Axes) -> None:
    """Begin the y-axis at 0, with some air above."""
    ax.set_ylim(0.0, 1.05 * max(ax.get_ylim()[1], 1e-12))


def named_ticks(ax: Axes, names: Sequence[str]) -> None:
    """Name the places 0, 1, 2, … of the y-axis, the first at the top."""
    ax.set_yticks(range(len(names)), labels=[plain(name) for name in names], parse_math=False, usetex=False)
    ax.set_ylim(max(len(names), 1) - 0.5, -0.5)
    ax.tick_params(axis="y", length=0, labelsize="small")


def ink() -> Any:
    """The colour of text and marks under the user's style, light or dark."""
    return mpl.rcParams["text.color"]


# -- units ------------------------------------------------------------------------------------------------

_MINUTES_FROM, _HOURS_FROM = 600.0, 3 * 3600.0


def time_unit(span: float) -> tuple[float, str]:
    """Seconds per unit, and the unit's name, for a span of seconds."""
    if span >= _HOURS_FROM:
        return 3600.0, "h"
    return (60.0, "min") if span >= _MINUTES_FROM else (1.0, "s")


def latency_unit(most: float) -> tuple[float, str]:
    """Milliseconds per unit, and the unit's name, for latencies up to `most` milliseconds."""
    return (1000.0, "s") if most >= 10_000 else (1.0, "ms")  # noqa: PLR2004  from here seconds are easier to read


def duration(ms: float) -> str:
    """A latency in words: 812 ms, 3.4 s."""
    if ms != ms:  # noqa: PLR0124  NaN: there is none
        return "-"
    return f"{ms:,.0f} ms" if ms < 10_000 else f"{ms / 1000:,.1f} s"  # noqa: PLR2004  as above


def dollars(usd: float) -> str:
    """An amount in words; a small one keeps two digits."""
    return f"{usd:,.2f} USD" if usd >= 0.1 or usd == 0 else f"{usd:.2g} USD"  # noqa: PLR2004


def percent(share: float) -> str:
    """A share in words: 12%, 0.3%, and never 0% or 100% for what is not."""
    if share != share:  # noqa: PLR0124  NaN: there is none
        return "-"
    if share == 0:
        return "0%"
    if share < 0.001:  # noqa: PLR2004
        return "<0.1%"
    if 0.999 < share < 1:  # noqa: PLR2004
        return ">99.9%"
    return f"{share:.1%}" if share < 0.1 or 0.99 < share < 1 else f"{share:.0%}"  # noqa: PLR2004


SINCE = "time since the job began"
"""The x-axis of what goes on over time."""


def time_axis(ax: Axes, span: float) -> float:
    """Name the x-axis for a span of seconds; returns the seconds per unit."""
    scale, unit = time_unit(span)
    inert(ax.set_xlabel(f"{SINCE} ({unit})"))
    numbers(ax.xaxis)
    numbers(ax.yaxis)
    ax.set_xlim(0.0, span / scale if span > 0 else 1.0)
    return scale
