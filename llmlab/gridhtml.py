"""A grid as a still picture, and where there are no widgets: one output, redrawn through its display handle.

All text is escaped, keeps its line breaks, and is left alone by MathJax. There is no script, no link and no style
sheet, so that it says the same in JupyterLab, nbconvert and a notebook reopened without a kernel.
"""

import asyncio
import math
from html import escape

from llmlab.grid import Grid, Pane, State, as_text, clean, figures
from llmlab.places import Places
from llmlab.show import Show

EVERY = 0.5
"""Seconds between two drawings."""
LIVE = 2_000
"""Characters at a pane's end that are shown while the job runs: each drawing sends all of them again."""
NARROWEST = 200
"""Pixels that a pane is wide at least."""
DOTS = {"waiting": "#9e9e9e", "streaming": "#0072b2", "done": "#009e73", "stopped": "#9e9e9e", "error": "#d55e00"}
"""The colour of each state's dot."""

_PANE = "border:1px solid rgba(128,128,128,.45);border-radius:4px;padding:6px 8px;min-width:0"
_TITLE = "font-weight:600;overflow:hidden;text-overflow:ellipsis;white-space:nowrap;unicode-bidi:isolate"
_SAID = "font-size:11px;opacity:.75;overflow-wrap:anywhere"
_TEXT = (
    "margin:4px 0 0;padding:0;max-height:220px;overflow:auto;white-space:pre-wrap;word-break:normal;"
    "overflow-wrap:anywhere;font-size:12px;line-height:1.4;background:none;border:0;color:inherit"
)
_ERROR = "margin-top:4px;font-size:12px;color:#c65200;overflow-wrap:anywhere;white-space:pre-wrap"


def columns(count: int) -> int:
    """Panes beside each other, where there is room."""
    return max(1, min(4, count if count <= 3 else math.ceil(math.sqrt(count))))  # noqa: PLR2004  three fit in one row


def summary(grid: Grid) -> str:
    """How many panes there are, by their states, in words."""
    counts = grid.counts
    order: tuple[State, ...] = ("done", "error", "stopped", "streaming", "waiting")
    return ", ".join([f"{len(grid.panes)} panes", *(f"{counts[state]} {state}" for state in order if counts[state])])


def as_html(grid: Grid, most: int | None = None) -> str:
    """The grid as HTML that does nothing.

    Args:
        grid: The grid.
        most: Characters at each pane's end that are shown. None: all.
    """
    share = f"max({NARROWEST}px,(100% - {8 * (columns(len(grid.panes)) - 1)}px)/{columns(len(grid.panes))})"
    style = f"display:grid;grid-template-columns:repeat(auto-fill,minmax({share},1fr));gap:8px;margin:4px 0"
    return (
        f'<div class="llmlab-still tex2jax_ignore mathjax_ignore"><strong>llmlab show: {summary(grid)}</strong>'
        f'<div style="{style}">{"".join(_pane(pane, most) for pane in grid.panes)}</div></div>'
    )


def _pane(pane: Pane, most: int | None) -> str:
    said = ", ".join(filter(None, (pane.state, figures(pane))))
    error = f'<div style="{_ERROR}">{_escaped(pane.error)}</div>' if pane.error else ""
    return (
        f'<div style="{_PANE}"><div style="{_TITLE}" title="{_escaped(pane.title)}">{_escaped(pane.title)}</div>'
        f'<div style="{_SAID}"><span style="color:{DOTS[pane.state]}">&#9679;</span> {_escaped(said)}</div>'
        f'<pre style="{_TEXT}">{_escaped(_end_of(pane.text, most))}</pre>{error}</div>'
    )


def _escaped(text: str) -> str:
    # A line break right after <pre> is the tag's own, so it is written as a reference.
    return escape(clean(text)).replace("\n", "&#10;")


def _end_of(text: str, most: int | None) -> str:
    return text if most is None or len(text) <= most else f"…{text[-most:]}"


def bundle(grid: Grid, most: int | None = None) -> dict[str, str]:
    """The grid for a notebook's output: as plain text and as HTML."""
    plain = "\n\n".join(clean(as_text(pane)) for pane in grid.panes) if most is None else summary(grid)
    return {"text/plain": plain, "text/html": as_html(grid, most)}


class GridHtml:
    """Shows a grid as an output that is redrawn, where there are no widgets.

    Args:
        job: The grid's job.
    """

    def __init__(self, job: Show) -> None:
        self._grid = job.grid
        self._places = Places()

    def show(self) -> None:
        """Display it in the cell at work."""
        self._places.add(bundle(self._grid, LIVE), raw=True)

    async def run(self) -> None:
        """Redraw until cancelled."""
        while True:
            await asyncio.sleep(EVERY)
            self._places.replace(bundle(self._grid, LIVE))

    def close(self) -> None:
        """Draw the end, with the whole texts."""
        self._places.end(bundle(self._grid))
