"""The live grid of a notebook: panes that fill while their answers are written. Imported only when one is displayed.

Ten times a second one message says what is new in all panes, each piece with its place in its pane's text. The text
is kept with the model in the browser, so that a view drawn later shows all of it; a model made later (the page was
reloaded) begins with what there is then. A browser that lags or has missed a message holds up nothing and waits for
nothing: it asks for the whole, and a kernel that is busy with a cell may answer late or never.

When the job is over a still picture takes the widget's place, which a notebook reopened without a kernel can show.
"""

import asyncio
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import anywidget
import traitlets

from llmlab.grid import Grid, Pane, clean
from llmlab.gridhtml import bundle, columns
from llmlab.places import Places
from llmlab.show import Show

EVERY = 0.1
"""Seconds between two messages, whatever the streams do."""
_STATIC = Path(__file__).parent / "static"


def _present(_: object, widget: "GridWidget") -> list[dict[str, Any]]:
    """The panes whenever somebody asks for the widget's state, on whatever thread."""
    return widget.whole()


class GridWidget(anywidget.AnyWidget):
    """The browser's side of a grid: fills panes, sends the Stop buttons' messages.

    Args:
        grid: The grid.
    """

    _esm = _STATIC / "grid.js"
    _css = _STATIC / "grid.css"

    uid = traitlets.Unicode().tag(sync=True)
    """Names the model in the browser."""
    columns = traitlets.Int().tag(sync=True)
    """Panes beside each other, where there is room."""
    panes: traitlets.List[Any] = traitlets.List().tag(sync=True, to_json=_present)
    """All panes with their texts, as they are when it is read; what comes later goes as messages."""

    def __init__(self, grid: Grid) -> None:
        self._grid = grid
        super().__init__(uid=uuid.uuid4().hex, columns=columns(len(grid.panes)))

    def whole(self) -> list[dict[str, Any]]:
        """The panes as plain JSON."""
        return [
            {"title": clean(pane.title), "take": pane.take, "text": clean(pane.text), "head": pane.head()}
            for pane in self._grid.panes
        ]


class GridView:
    """Shows a grid, wherever it is displayed.

    Args:
        job: The grid's job.
    """

    def __init__(self, job: Show) -> None:
        self._job = job
        self._news = News(job.grid)
        self._widget = GridWidget(job.grid)
        self._widget.on_msg(self._heard)
        self._places = Places()
        self._over = False

    def show(self) -> None:
        """Display it in the cell at work."""
        self._places.add(self._widget)

    async def run(self) -> None:
        """Send what is new until cancelled."""
        while True:
            self._flush()
            await asyncio.sleep(EVERY)

    def close(self) -> None:
        """Put a still picture in the place of each grid; again for whoever has not heard it the first time."""
        if not self._over:
            self._flush()
        self._over = True
        self._places.end(bundle(self._job.grid))
        self._widget.close()

    def _flush(self) -> None:
        message = self._news.take()
        if message is not None:
            self._widget.send(message)

    def _heard(self, _: object, message: Mapping[str, Any], __: object) -> None:
        """Do what the browser asks for. May be called on any thread."""
        kind, pane = message.get("kind"), message.get("pane")
        if kind == "stop" and pane is None:
            self._job.cancel()
        elif kind == "stop" and type(pane) is int:
            self._job.drop(pane)
        elif kind == "whole":
            self._job.on_loop(self._send_whole)

    def _send_whole(self) -> None:
        self._widget.send({"kind": "whole", "panes": self._widget.whole()})


class News:
    """What has changed in a grid since it was last asked; lives on the job's loop.

    Args:
        grid: The grid.
    """

    def __init__(self, grid: Grid) -> None:
        self._grid = grid
        self._takes = [0] * len(grid.panes)
        self._lengths = [0] * len(grid.panes)
        self._heads: list[dict[str, Any]] = [{} for _ in grid.panes]

    def take(self) -> dict[str, Any] | None:
        """The changes as a message: `texts` of [pane, take, offset, text] and `heads` of [pane, head]; None: none."""
        texts = [text for number, pane in enumerate(self._grid.panes) if (text := self._text(number, pane))]
        heads = [[number, head] for number, pane in enumerate(self._grid.panes) if (head := self._head(number, pane))]
        return {"kind": "news", "texts": texts, "heads": heads} if texts or heads else None

    def _text(self, number: int, pane: Pane) -> list[Any] | None:
        anew = pane.take != self._takes[number]
        if anew:
            self._takes[number], self._lengths[number] = pane.take, 0
        text, offset = clean(pane.news()), self._lengths[number]
        if not (text or anew):
            return None
        self._lengths[number] += _units(text)
        return [number, pane.take, offset, text]

    def _head(self, number: int, pane: Pane) -> dict[str, Any] | None:
        head = pane.head()
        if head == self._heads[number]:
            return None
        self._heads[number] = head
        return head


def _units(text: str) -> int:
    """A text's length as JavaScript counts: characters beyond U+FFFF are two."""
    return len(text) if text.isascii() else len(text.encode("utf-16-le")) // 2
